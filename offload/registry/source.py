"""The source of a version, for Pythons whose bytecode is another one, and for people.

What is shipped with a class is taken module by module: what it imports, its constants, the
versions of other classes it names, and its definitions as they are written. From that
`offload.registry.rebuild` puts the modules together again and runs the definitions; nothing else
of the original modules runs.

The hash covers what a class is when it is pushed; the source says how it was made. What was done
to it after its definition is in the hash, and not in the source: attributes that were set or
replaced, decorators that were called and not written above it. What stands within a function has
values that only bytecode carries (closures), so there is no source of it; nor of lambdas, unless
an assignment gives them a name that other definitions use.

Values of constants are those of the moment of pushing. Two constants of one version that share an
object share it again, as do all that use it; constants of two versions do not.
"""

from __future__ import annotations

import inspect
import io
import linecache
import logging
import pickle
import re
import reprlib
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from types import FunctionType, ModuleType
from typing import Any

from offload.errors import SerializationError
from offload.registry.apps import what_of_celery
from offload.registry.names import name_of
from offload.registry.parts import Module, Source, Step
from offload.registry.pickling import Pair
from offload.registry.scope import Scope, found
from offload.registry.uses import (
    attributes_of,
    attributes_used,
    globals_in,
    inner_classes,
    names_in_annotations,
)
from offload.registry.written import Written, definition, import_of, namespace_of, statement
from offload.serializers.advice import reason_of
from offload.text import short_repr

__all__ = ("source_of",)

logger = logging.getLogger(__name__)

_NOT_TAKEN = frozenset({"__name__", "__package__", "__builtins__", "__spec__", "__loader__"})
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SHOWN = 2000  # characters of a constant


def source_of(obj: Any, scope: Scope, pair_of: Callable[[Any], Pair]) -> bytes:
    """Return the source of *obj* and of what is shipped with it, as JSON.

    Empty if it is not to be had: it stands within a function, was made at run time or by what
    was not written to a file (``python -c``), or depends on what only bytecode carries.
    """
    taking = _Taking(obj, scope, pair_of)
    try:
        taking.definition(obj)
        steps = taking.ordered()
    except (_NoSource, SerializationError) as exc:
        _warn(name_of(obj), str(exc))
        return b""
    at = [step is taking.nodes[id(obj)].step for step in steps].index(True)
    modules = [taking.modules[name] for name in sorted(taking.modules)]
    root = (obj.__module__, obj.__qualname__)
    return Source(root, at, modules, taking.plain_constants(), steps).to_bytes()


@lru_cache(maxsize=1000)
def _warn(name: str, reason: str) -> None:
    """Warn, once for each reason."""
    logger.warning(
        "%s is pushed without its source, so only workers of this Python version can load it: %s",
        name,
        reason,
    )


class _NoSource(Exception):
    """Something's source is not to be had."""


_Key = Any  # of a step: the id of what is defined, or the module and name of a constant


@dataclass
class _Node:
    step: Step
    place: tuple[Any, ...]
    at_once: set[_Key] = field(default_factory=set)
    later: set[_Key] = field(default_factory=set)


@dataclass(frozen=True)
class _Place:
    """Where a name is used: the globals of a module, and how it uses them."""

    names: Mapping[str, Any]
    written: Written
    module: str


class _Taking:
    def __init__(self, root: Any, scope: Scope, pair_of: Callable[[Any], Pair]) -> None:
        self.root = root
        self.scope = scope
        self.pair_of = pair_of
        self.modules: dict[str, Module] = {}
        self.nodes: dict[_Key, _Node] = {}
        self._plain: dict[str, dict[str, Any]] = {}
        self._entered: set[tuple[str, str, bool]] = set()

    # -- definitions

    def definition(self, obj: Any) -> _Key:
        """Take a class or function, and what it names."""
        key = id(obj)
        if key not in self.nodes:
            written = definition(obj)
            if written is None:
                raise _NoSource(f"how {obj.__qualname__} is written is not to be had")
            self._statement(
                key, obj.__qualname__, _Place(namespace_of(obj), written, obj.__module__)
            )
            if isinstance(obj, type):
                self._nested(obj, written)
        return key

    def _statement(self, key: _Key, name: str, place: _Place) -> None:
        written = place.written
        step = Step(place.module, name, written.text, future=written.future)
        cells = list(linecache.cache)
        cell = cells.index(written.file) if written.file in cells else -1
        node = _Node(step, (place.module == self.root.__module__, place.module, cell, written.line))
        self.nodes[key] = node
        self._module(place.module)
        early, late = globals_in(written.code)
        late |= names_in_annotations(written.tree)
        for each in sorted((early | late) - _NOT_TAKEN):
            if each in place.names:
                keys = self._name(place, each, place.names[each], early=each in early)
                (node.at_once if each in early else node.later).update(keys)

    def _nested(self, cls: type, written: Written) -> None:
        """Take the classes that stand within another one as the versions that they are."""
        for path in inner_classes(written.tree):
            inner: Any = cls
            if path.startswith(f"{cls.__qualname__}."):
                for part in path[len(cls.__qualname__) + 1 :].split("."):
                    inner = vars(inner).get(part) if isinstance(inner, type) else None
                if isinstance(inner, type) and inner.__qualname__ == path and inner in self.scope:
                    self._module(cls.__module__).classes[path] = (*self.pair_of(inner), True)

    def _module(self, name: str) -> Module:
        return self.modules.setdefault(name, Module(name))

    # -- what they use

    def _name(self, place: _Place, name: str, value: Any, *, early: bool) -> set[_Key]:
        """Take what a name stands for; return the steps by which it gets that."""
        module = self._module(place.module)
        if isinstance(value, ModuleType):
            return self._imported_module(place, name, value, early=early)
        if value is not self.root and self.scope.is_apart(value):
            before = module.classes.get(name, ("", "", False))[2]
            module.classes[name] = (*self.pair_of(value), early or before)
            return set()
        if isinstance(value, type):
            if value is self.root:
                return {self._alias(id(value), place.module, name)}
        elif what_of_celery(value) or not callable(value) or _is_named(value, self.scope):
            return self._constant(place, name, value, early=early)
        elif isinstance(inspect.unwrap(value), FunctionType) and value in self.scope:
            return {self._function(place, name, value)}
        path = _path(value)
        if not path and isinstance(value, (type, FunctionType)):
            path = import_of(name, place.names, (place.written.file,))
            if not path or found(*path) is not value:
                raise _NoSource(f"{name} cannot be imported")
        if not path:
            return self._constant(place, name, value, early=early)
        module.imports[name] = path
        return set()

    def _imported_module(
        self, place: _Place, name: str, value: ModuleType, *, early: bool
    ) -> set[_Key]:
        module = self._module(place.module)
        if value not in self.scope:
            module.imports[name] = [value.__name__]
            for path in sorted(set(attributes_of(name, place.written.tree))):
                loaded = value.__name__ + path
                if loaded in sys.modules and loaded not in module.loads:
                    module.loads.append(loaded)
            return set()
        module.modules[name] = value.__name__
        self._module(value.__name__)
        used = attributes_used(place.written.tree)
        inside = _Place(vars(value), place.written, value.__name__)
        keys: set[_Key] = set()
        for each in sorted(used & vars(value).keys() - _NOT_TAKEN):
            entering = (value.__name__, each, early)
            if entering not in self._entered:
                self._entered.add(entering)
                keys |= self._name(inside, each, vars(value)[each], early=early)
        return keys

    def _function(self, place: _Place, name: str, value: Any) -> _Key:
        """Take a function that is shipped, by its definition, else by what gives it its name."""
        if len(getattr(value, "registry", ())) > 1:  # by functools.singledispatch
            raise _NoSource(f"{name} was put together of several functions")
        if value is self.root or self._is_bound(value):
            return self._alias(self.definition(value), place.module, name)
        return self._named(place, name)

    def _named(self, place: _Place, name: str) -> _Key:
        """Take the statement that gives a name its value."""
        key = (place.module, name)
        if key not in self.nodes:
            written = statement(name, place.names, (place.written.file,))
            if written is None:
                raise _NoSource(f"how {name} is written is not to be had")
            self._statement(key, name, _Place(place.names, written, place.module))
        return key

    @staticmethod
    def _is_bound(function: Any) -> bool:
        return namespace_of(function).get(function.__qualname__) is function

    def _alias(self, key: _Key, module: str, name: str) -> _Key:
        step = self.nodes[key].step
        if (step.module, step.name) != (module, name) and (module, name) not in step.aliases:
            step.aliases.append((module, name))
        return key

    # -- constants

    def _constant(self, place: _Place, name: str, value: Any, *, early: bool) -> set[_Key]:
        key = (place.module, name)
        if key in self.nodes:
            self.nodes[key].step.early |= early
            return {key}
        if name in self._plain.get(place.module, ()):
            return set()
        if _is_named(value, self.scope):  # as a TypeVar
            return {self._named(place, name)}
        pickler = _Pickler(self, place)
        content = pickler.content(value)
        self._module(place.module).shown[name] = _pretty(value, content)
        if not pickler.pairs and not pickler.keys:
            self._plain.setdefault(place.module, {})[name] = value
            return set()
        step = Step(place.module, name, pickle=_text(content), needs=pickler.pairs, early=early)
        self.nodes[key] = _Node(step, (False, place.module, -2, name), at_once=pickler.keys)
        return {key}

    def plain_constants(self) -> str:
        """Return the constants without anything of their own, by module and name."""
        everything = {module: self._plain[module] for module in sorted(self._plain)}
        return _text(_Pickler(self, None).content(everything))

    # -- their order

    def ordered(self) -> list[Step]:
        """Return the steps as they are written, but each after what it needs at once."""
        done: dict[_Key, Step] = {}
        begun: set[_Key] = set()

        def put(key: _Key) -> None:
            if key in begun:
                return
            begun.add(key)
            needed = self.nodes[key].at_once
            for each in sorted(needed, key=self._place):
                put(each)
            for each in sorted(self._called(needed) - needed, key=self._place):
                # What those call may have to wait for this one, and then is not called yet.
                if self._needed({each}).isdisjoint(begun - done.keys()):
                    put(each)
            done[key] = self.nodes[key].step

        for key in sorted(self.nodes, key=self._place):
            put(key)
        return list(done.values())

    def _place(self, key: _Key) -> tuple[Any, ...]:
        return self.nodes[key].place

    def _called(self, keys: set[_Key]) -> set[_Key]:
        return _reached(keys, lambda key: self.nodes[key].at_once | self.nodes[key].later)

    def _needed(self, keys: set[_Key]) -> set[_Key]:
        return _reached(keys, lambda key: self.nodes[key].at_once)


def _reached(begin: set[_Key], following: Callable[[_Key], set[_Key]]) -> set[_Key]:
    reached: set[_Key] = set()
    waiting = set(begin)
    while waiting:
        reached |= waiting
        waiting = set().union(*map(following, waiting)) - reached
    return reached


class _Pickler(pickle.Pickler):
    """Pickles constants; what is shipped, and what is imported, is named.

    Attributes:
        pairs: the versions that were named.
        keys: the steps that define what was named.
    """

    def __init__(self, taking: _Taking, place: _Place | None) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, protocol=4)  # which all Pythons read
        self._taking = taking
        self._use = place
        self.pairs: list[Pair] = []
        self.keys: set[_Key] = set()

    def content(self, value: Any) -> bytes:
        """Return *value* pickled; raises _NoSource if it cannot be."""
        try:
            self.dump(value)
        except (_NoSource, SerializationError):
            raise
        except Exception as exc:
            raise _NoSource(f"a {type(value).__qualname__}: {reason_of(exc)}") from None
        return self._file.getvalue()

    def persistent_id(self, obj: Any) -> tuple[str, ...] | None:
        taking = self._taking
        if isinstance(obj, ModuleType):
            return ("import", obj.__name__)
        celery = what_of_celery(obj)
        if celery is not None:
            return ("own", *celery)
        if isinstance(obj, type) or taking.scope.is_apart(obj):
            if obj in taking.scope:
                pair = taking.pair_of(obj)
                self.pairs.append(pair)
                self.keys |= {id(obj)} & taking.nodes.keys()
                return ("version", *pair)
        elif isinstance(obj, FunctionType):
            if obj in taking.scope:
                if not (obj is taking.root or taking._is_bound(obj)):
                    raise _NoSource(f"{obj.__qualname__} is within a constant")
                self.keys.add(taking.definition(obj))
                return ("name", obj.__module__, obj.__qualname__)
        elif _is_named(obj, taking.scope):
            name, use = obj.__name__, self._use
            if use is None or use.names.get(name) is not obj:
                raise _NoSource(f"{name} is within a constant")
            self.keys.add(taking._named(use, name))
            return ("name", use.module, name)
        else:
            return None
        path = _path(obj)
        return ("import", *path) if path else None


def _text(content: bytes) -> str:
    return b64encode(content).decode()


class _Repr(reprlib.Repr):
    """Shows all of a value, sets in the order of their items."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 20
        self.maxtuple = self.maxlist = self.maxset = self.maxfrozenset = sys.maxsize
        self.maxdeque = self.maxarray = self.maxlong = self.maxstring = self.maxother = sys.maxsize

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        items = (f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in x.items())
        return f"{{{', '.join(items)}}}"


def _pretty(value: Any, content: bytes) -> str:
    """Return what people are shown of a constant, the same for the same value."""
    try:
        text = _ADDRESS.sub("", _Repr().repr(value))
    except Exception:
        text = short_repr(value)
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}… ({len(content)} bytes, {sha256(text.encode()).hexdigest()[:12]})"
    return text


def _is_named(value: Any, scope: Scope) -> bool:
    """Return whether pickle would only name *value*, in a module that is shipped."""
    return (
        type(value).__module__ == "typing"
        and scope.includes(value.__module__)
        and isinstance(value.__reduce_ex__(4), str)
    )


def _path(obj: Any) -> list[str]:
    """Return where something can be imported from: a module, as public as can be, and a name.

    Its own module may be there in one version of Python only, as ``pathlib._local`` is.
    """
    module, qualname = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        return []
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        if found(".".join(parts[:end]), qualname) is obj:
            return [".".join(parts[:end]), qualname]
    return []
