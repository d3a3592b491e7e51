"""Source that is pushed with a version, for other Python versions and for display.

It consists of the statements of the class or function and of its shipped helper functions, their
imports and constants, and the versions of other classes that they name. Another Python version
builds the modules from these and runs the definitions; nothing else in the modules runs.

A version can depend only on top-level class or function statements of a file or notebook cell,
imports, and constants of library types. If it depends on something else (lambdas, closures, nested
functions, or constants that contain shipped objects), it has no source. Changes to a class after
its definition are in its hash and its bytecode, but not in its source.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import io
import linecache
import logging
import pickle
import re
import reprlib
import typing
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from operator import attrgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any

import orjson

from offload.classes.definitions import (
    Definition,
    NoSource,
    definition_of,
    file_of,
    names_used,
    namespace_of,
)
from offload.classes.hashing.code import names_in
from offload.classes.reducers import reduce_constant, reduce_named, submodules
from offload.classes.scope import Scope, describe_app_part, find_object, import_path
from offload.classes.versions import ClassVersion, Record, label, name_of
from offload.errors import CodeRefused, SerializationError
from offload.text import reason_of, short_repr

logger = logging.getLogger(__name__)

_FORMAT = 2
_NOT_TAKEN = frozenset({"__name__", "__package__", "__builtins__", "__spec__", "__loader__"})
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SHOWN = 2000  # characters to show of a constant


@dataclass
class Module:
    """The state of a module besides its definitions.

    Attributes:
        name: the module's name.
        imports: for each name, the module that it imports, and perhaps a name in that module.
        modules: for each name, the shipped module that it refers to.
        celery: for each name, the Celery app, or part of it; see `offload.classes.scope`.
        versions: for each name, another class's name and hash, and whether a definition needs it
            when it runs.
        shown: for each constant, the text to display.
    """

    name: str
    imports: dict[str, list[str]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    celery: dict[str, tuple[str, str]] = field(default_factory=dict)
    versions: dict[str, tuple[str, str, bool]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)


@dataclass
class Source:
    """The source of a version.

    Attributes:
        root: module and qualified name of the class or function.
        outer: the version within which it is defined; None if it is at the top level.
        nested: versions of classes within the class, by qualified name.
        loads: submodules to import as attributes of their packages.
        modules: the state of each module.
        constants: constants by module and name, pickled, in base64.
        definitions: the definitions, in the order in which to run them.
        format: version of this format.
    """

    root: tuple[str, str]
    outer: ClassVersion | None = None
    nested: dict[str, ClassVersion] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    constants: str = ""
    definitions: list[Definition] = field(default_factory=list)
    format: int = _FORMAT

    def to_bytes(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> Source:
        """Parse a source. Raises CodeRefused if it is malformed or from another release."""
        try:
            plain = orjson.loads(content)
            if plain.get("format") != _FORMAT:
                raise ValueError("it was pushed by another release of offload")
            modules = [Module(**each) for each in plain.pop("modules")]
            definitions = [Definition(**each) for each in plain.pop("definitions")]
            return cls(**plain, modules=modules, definitions=definitions)
        except (ValueError, TypeError, LookupError, AttributeError) as exc:
            raise CodeRefused(
                f"the stored source of a class can't be read: {exc}; push the class again"
            ) from exc

    def needs(self) -> dict[ClassVersion, bool]:
        """Return the versions it refers to, and whether a definition needs each when it runs."""
        needs = {} if self.outer is None else {(self.outer[0], self.outer[1]): True}
        for module in self.modules:
            for name, code_hash, early in module.versions.values():
                needs[name, code_hash] = early or needs.get((name, code_hash), False)
        return needs


# -- collecting it


def source_of(obj: Any, scope: Scope, pair_of: Callable[[Any], ClassVersion]) -> bytes:
    """Return the source of *obj* as JSON; if it has none, log a warning and return ``b""``.

    Args:
        scope: what ships by value.
        pair_of: returns the name and hash of a shipped class or function.
    """
    try:
        return _Collector(obj, scope, pair_of).collect().to_bytes()
    except (NoSource, SerializationError) as exc:
        _warn(name_of(obj), str(exc))
        return b""


@lru_cache(maxsize=1000)
def _warn(name: str, reason: str) -> None:
    """Warn once for each name and reason."""
    logger.warning(
        "%s is pushed without its source, so only workers of this Python version can load it: %s",
        name,
        reason,
    )


class _Collector:
    """Collects the source of one class or function."""

    def __init__(self, root: Any, scope: Scope, pair_of: Callable[[Any], ClassVersion]) -> None:
        self._root = root
        self._scope = scope
        self._pair_of = pair_of
        self._modules: dict[str, Module] = {}
        self._constants: dict[str, dict[str, Any]] = {}
        self._definitions: dict[int, Definition] = {}
        self._order: list[Definition] = []
        self._entered: set[tuple[str, str, bool]] = set()
        self._source = Source((root.__module__, root.__qualname__))

    def collect(self) -> Source:
        root, source = self._root, self._source
        outer, _, name = root.__qualname__.rpartition(".")
        if outer:
            outermost, around = (
                find_object(root.__module__, each) for each in (outer.partition(".")[0], outer)
            )
            if not isinstance(around, type) or vars(around).get(name) is not root:
                raise NoSource(f"{root.__qualname__} is defined within a function")
            source.outer = self._pair_of(around)
            source.definitions = [definition_of(outermost)]  # for display
            return source
        self._define(root)
        if isinstance(root, type):
            self._nested(root)
        source.modules = [self._modules[name] for name in sorted(self._modules)]
        source.definitions = self._order
        source.constants = self._pickled()
        return source

    def _define(self, obj: Any) -> Definition:
        """Add the statement of *obj*: after what it uses when run, before what it uses later."""
        if id(obj) in self._definitions:
            return self._definitions[id(obj)]
        if obj.__name__ == "<lambda>" or "." in obj.__qualname__:
            raise NoSource(f"{obj.__qualname__} is a lambda or defined within a function")
        definition = self._definitions[id(obj)] = definition_of(obj)
        self._modules.setdefault(definition.module, Module(definition.module))
        names = namespace_of(obj)
        code, early, late = names_used(definition)
        self._use_all(definition.module, names, code, early, early=True)
        self._order.append(definition)
        self._use_all(definition.module, names, code, late, early=False)
        return definition

    def _use_all(
        self, module: str, names: Mapping[str, Any], code: CodeType, used: set[str], *, early: bool
    ) -> None:
        for name in sorted(used & names.keys() - _NOT_TAKEN):
            if (module, name, early) not in self._entered:
                self._entered.add((module, name, early))
                self._use(module, name, names[name], code, early=early)

    def _use(self, module: str, name: str, value: Any, code: CodeType, *, early: bool) -> None:
        its = self._modules.setdefault(module, Module(module))
        if isinstance(value, ModuleType):
            if value in self._scope:
                its.modules[name] = value.__name__
                used = names_in(code) & vars(value).keys()
                self._modules.setdefault(value.__name__, Module(value.__name__))
                self._use_all(value.__name__, vars(value), code, used, early=early)
                return
            its.imports[name] = [value.__name__]
            loads = {each.__name__ for each in submodules(code, [value])}
            self._source.loads = sorted({*self._source.loads, *loads})
        elif value is not self._root and self._scope.is_apart(value):
            before = its.versions.get(name, ("", "", False))[2]
            its.versions[name] = (*self._pair_of(value), early or before)
        elif (celery := describe_app_part(value)) is not None:
            its.celery[name] = celery
        elif value is self._root or (callable(value) and self._is_helper(name, value)):
            defined = self._define(value)
            alias = module, name
            if alias != (defined.module, defined.name) and alias not in defined.aliases:
                defined.aliases.append(alias)
        elif (path := import_path(value)) is not None and not self._scope.includes(path[0]):
            its.imports[name] = path
        elif isinstance(value, (type, FunctionType)):
            raise NoSource(f"{name} can't be imported")
        else:
            self._constants.setdefault(module, {})[name] = value

    def _is_helper(self, name: str, value: Any) -> bool:
        """Return whether *value* is a function that ships with the root. Raises NoSource."""
        function = inspect.unwrap(value)
        if isinstance(value, type) or not isinstance(function, FunctionType):
            return False
        if function not in self._scope and value not in self._scope:
            return False
        if len(getattr(value, "registry", ())) > 1:
            raise NoSource(f"{name} combines several functions (functools.singledispatch)")
        if namespace_of(value).get(function.__qualname__) is not value:
            raise NoSource(f"{name} isn't defined by a function statement of its own")
        return True

    def _nested(self, cls: type) -> None:
        """Record the versions of the classes defined within *cls*, at any depth."""
        for name, value in vars(cls).items():
            if isinstance(value, type) and value.__qualname__ == f"{cls.__qualname__}.{name}":
                self._source.nested[value.__qualname__] = self._pair_of(value)
                self._nested(value)

    def _pickled(self) -> str:
        for module, constants in self._constants.items():
            shown = self._modules[module].shown
            for name in sorted(constants):
                try:
                    _dump(constants[name], self._scope)
                except (NoSource, SerializationError):
                    raise
                except Exception as exc:
                    kind = type(constants[name]).__qualname__
                    raise NoSource(f"{name}, a {kind}: {reason_of(exc)}") from None
                shown[name] = _displayed(constants[name])
        everything = {name: self._constants[name] for name in sorted(self._constants)}
        return b64encode(_dump(everything, self._scope)).decode()


class _Pickler(pickle.Pickler):
    """Pickles constants; refuses those that contain shipped objects."""

    def __init__(self, file: io.BytesIO, scope: Scope) -> None:
        super().__init__(file, protocol=4)  # all supported Python versions can read it
        self._scope = scope

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, FunctionType)):
            if obj in self._scope:
                raise NoSource(f"{obj.__qualname__} is within a constant")
            path = import_path(obj)
            moved = path is not None and path[0] != obj.__module__
            return (_imported, tuple(path)) if path and moved else NotImplemented
        if isinstance(obj, typing.ForwardRef):  # it may contain code
            return typing.ForwardRef, (obj.__forward_arg__,)
        return reduce_named(obj) or reduce_constant(obj) or NotImplemented


def _dump(value: Any, scope: Scope) -> bytes:
    file = io.BytesIO()
    _Pickler(file, scope).dump(value)
    return file.getvalue()


def _imported(module: str, name: str | None = None) -> Any:
    """Import a module, or an object from it. Stored constants refer to this function by name."""
    imported = importlib.import_module(module)
    return imported if name is None else attrgetter(name)(imported)


# -- for people


def show_lines(content: bytes, record: Record) -> None:
    """Make tracebacks of a loaded version show its source lines."""
    try:
        definitions = Source.from_bytes(content).definitions
    except CodeRefused:  # from another release; its bytecode still runs
        return
    for definition in definitions:
        file = file_of(label(record.pair), definition.file)
        lines = linecache.getlines(file)
        text = definition.text.splitlines(keepends=True)
        start, end = definition.line - 1, definition.line - 1 + len(text)
        lines = lines + ["\n"] * (end - len(lines))
        lines[start:end] = text
        linecache.cache[file] = (sum(map(len, lines)), None, lines, file)


def diff(a: bytes, b: bytes, name_a: str, name_b: str) -> str:
    """Return a unified diff from source *a* to source *b*."""
    old, new = ([f"{line}\n" for line in _shown(each).splitlines()] for each in (a, b))
    return "".join(difflib.unified_diff(old, new, name_a, name_b))


def _shown(content: bytes) -> str:
    """Format a source for display, module by module, with unchanged definitions."""
    source = Source.from_bytes(content)
    parts = [f"# within {label(source.outer)}"] if source.outer else []
    for module in source.modules:
        lines = [f"# {module.name}"]
        for name, path in {**module.imports, **{n: [m] for n, m in module.modules.items()}}.items():
            given = "" if path[-1] == name else f" as {name}"
            where = f"from {path[0]} " if path[1:] else ""
            lines.append(f"{where}import {path[-1]}{given}")
        lines += [f"{n} = {value}" for n, value in sorted(module.shown.items())]
        lines += [f"{n} = <{label((c, h))}>" for n, (c, h, _) in sorted(module.versions.items())]
        parts.append("\n".join(lines))
        its = (each for each in source.definitions if each.module == module.name)
        parts += [each.text.rstrip() for each in sorted(its, key=lambda it: (it.file, it.line))]
    return "\n\n".join(parts)


_repr = reprlib.Repr()
vars(_repr).update({name: 10**6 for name in vars(_repr) if name.startswith("max")}, maxlevel=20)


def _displayed(value: Any) -> str:
    """Return the text to display for a constant: the same for equal values in all processes."""
    try:
        text = _ADDRESS.sub("", _repr.repr(value))
    except Exception:
        text = short_repr(value)
    if len(text) > _SHOWN:
        text = (
            f"{text[:_SHOWN]}… ({len(text)} characters, {sha256(text.encode()).hexdigest()[:12]})"
        )
    return text
