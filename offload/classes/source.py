"""Source that is pushed with a version, for other Python versions and for display.

It consists of the class or function and its shipped helper functions, as their statements are
written, what they import, their constants, and the versions of other classes they name. Another
Python builds the modules from that and runs the definitions; nothing else of the modules runs.

A version has no source if it depends on something that isn't a class or function statement at the
outermost level of a file or notebook cell, an import, or a constant of library types: on lambdas,
closures, functions within functions, or constants that hold shipped objects. Changes to a class
after its definition are in its hash and its bytecode, but not in its source.
"""

from __future__ import annotations

import ast
import difflib
import dis
import importlib
import inspect
import io
import linecache
import logging
import pickle
import re
import reprlib
import sys
import threading
import typing
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from operator import attrgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any

import orjson

from offload.classes.apps import own, what_of_celery
from offload.classes.definitions import (
    FUTURE,
    Definition,
    NoSource,
    definition_of,
    file_of,
    namespace_of,
)
from offload.classes.hashing.code import names_in
from offload.classes.hashing.identity import python_tag
from offload.classes.pickling import UNNAMED_TYPES, loading
from offload.classes.reducers import reduce_constant, reduce_named, submodules
from offload.classes.scope import Scope, found
from offload.classes.versions import ClassVersion, Record, name_of
from offload.errors import CodeRefused, OffloadError, SerializationError, WrongPython
from offload.stores.processes import PerProcess
from offload.text import reason_of, short_repr

__all__ = ("Source", "build", "diff", "show_lines", "source_of")

logger = logging.getLogger(__name__)

_FORMAT = 2
_NOT_TAKEN = frozenset({"__name__", "__package__", "__builtins__", "__spec__", "__loader__"})
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL"})
_RUN_AT_ONCE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<generic parameters of")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SHOWN = 2000  # characters of a constant
_modules_lock = PerProcess(threading.RLock)


@dataclass
class Module:
    """State of a module besides its definitions.

    Attributes:
        imports: names, and what they import: a module, and maybe a name in it.
        modules: names of modules that are shipped, too.
        celery: names of the Celery app and its parts; see `offload.classes.apps`.
        versions: names of other classes: their name, hash, and whether a definition needs it
            when it runs.
        shown: constants as they are displayed.
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
        outer: the version within which it is defined; None if it is outermost.
        nested: classes within the class: their qualified name, and their version.
        loads: submodules that have to be imported as attributes of their packages.
        constants: by module and name, pickled, in base64.
        definitions: in the order in which they are run.
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
        """Read a source; raises CodeRefused if it is malformed or of an older offload."""
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
        """Return the versions it refers to, and whether a definition needs them when it runs."""
        needs = {} if self.outer is None else {(self.outer[0], self.outer[1]): True}
        for module in self.modules:
            for name, code_hash, early in module.versions.values():
                needs[name, code_hash] = early or needs.get((name, code_hash), False)
        return needs


# -- taking it


def source_of(obj: Any, scope: Scope, pair_of: Callable[[Any], ClassVersion]) -> bytes:
    """Return the source of *obj* as JSON; empty if it has none, which is logged as a warning.

    Args:
        scope: what ships by value.
        pair_of: returns the name and hash of a class or function that is shipped.
    """
    taking = _Taking(obj, scope, pair_of)
    try:
        return taking.take().to_bytes()
    except (NoSource, SerializationError) as exc:
        _warn(name_of(obj), str(exc))
        return b""


@lru_cache(maxsize=1000)
def _warn(name: str, reason: str) -> None:
    """Warn, once for each reason."""
    logger.warning(
        "%s is pushed without its source, so only workers of this Python version can load it: %s",
        name,
        reason,
    )


class _Taking:
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

    def take(self) -> Source:
        root, source = self._root, self._source
        outer, _, name = root.__qualname__.rpartition(".")
        if outer:
            outermost, around = (
                found(root.__module__, each) for each in (outer.partition(".")[0], outer)
            )
            if not isinstance(around, type) or vars(around).get(name) is not root:
                raise NoSource(f"{root.__qualname__} is defined within a function")
            source.outer = self._pair_of(around)
            source.definitions = [definition_of(outermost)]  # for people
            return source
        self._define(root)
        if isinstance(root, type):
            self._nested(root)
        source.modules = [self._modules[name] for name in sorted(self._modules)]
        source.definitions = self._order
        source.constants = self._pickled()
        return source

    def _define(self, obj: Any) -> Definition:
        """Take the statement of *obj*: after what it uses when it runs, before all else it uses."""
        if id(obj) in self._definitions:
            return self._definitions[id(obj)]
        if obj.__name__ == "<lambda>" or "." in obj.__qualname__:
            raise NoSource(f"{obj.__qualname__} is a lambda or defined within a function")
        definition = self._definitions[id(obj)] = definition_of(obj)
        self._modules.setdefault(definition.module, Module(definition.module))
        names = namespace_of(obj)
        tree = ast.parse(definition.text)
        code = compile(
            tree, "<text>", "exec", FUTURE if definition.future else 0, dont_inherit=True
        )
        early, late = _globals_in(code)
        annotated = _names_in_annotations(tree) - early - late
        self._use_all(definition.module, names, code, early, early=True)
        self._order.append(definition)
        self._use_all(definition.module, names, code, late | annotated, early=False)
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
        elif (celery := what_of_celery(value)) is not None:
            its.celery[name] = celery
        elif value is self._root or (callable(value) and self._is_helper(name, value)):
            defined = self._define(value)
            alias = module, name
            if alias != (defined.module, defined.name) and alias not in defined.aliases:
                defined.aliases.append(alias)
        elif (path := _path(value)) is not None and not self._scope.includes(path[0]):
            its.imports[name] = path
        elif isinstance(value, (type, FunctionType)):
            raise NoSource(f"{name} can't be imported")
        else:
            self._constants.setdefault(module, {})[name] = value

    def _is_helper(self, name: str, value: Any) -> bool:
        """Return whether *value* is a function that ships with the root; raises NoSource."""
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
        """Note the versions of the classes defined within *cls*, at any depth."""
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


def _globals_in(code: CodeType) -> tuple[set[str], set[str]]:
    """Return the globals that a statement uses when it runs, and those it uses later."""
    early = {each.argval for each in dis.get_instructions(code) if each.opname in _GLOBALS}
    late: set[str] = set()
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            first, then = _globals_in(inner)
            is_body = not inner.co_flags & inspect.CO_OPTIMIZED
            at_once = is_body or inner.co_name.startswith(_RUN_AT_ONCE)
            early |= first if at_once else set()
            late |= then if at_once else first | then
    return early, late - early


def _names_in_annotations(tree: ast.AST) -> set[str]:
    """Return the names in annotations, quoted ones too: evaluated at once, later, or never."""
    found: set[str] = set()
    for node in ast.walk(tree):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if part is not None:
                found.update(re.findall(r"[^\W\d]\w*", ast.unparse(part)))
    return found


def _path(obj: Any) -> list[str] | None:
    """Return where *obj* can be imported from: a module, as public as possible, and a name.

    Its own module may exist in one version of Python only, as ``pathlib._local`` does.
    """
    if isinstance(obj, type) and obj in UNNAMED_TYPES:
        return ["types", UNNAMED_TYPES[obj]]
    module, qualname = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        return None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        if found(".".join(parts[:end]), qualname) is obj:
            return [".".join(parts[:end]), qualname]
    return None


class _Pickler(pickle.Pickler):
    """Pickles constants that hold nothing shipped."""

    def __init__(self, file: io.BytesIO, scope: Scope) -> None:
        super().__init__(file, protocol=4)  # which all Pythons read
        self._scope = scope

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, FunctionType)):
            if obj in self._scope:
                raise NoSource(f"{obj.__qualname__} is within a constant")
            path = _path(obj)
            moved = path is not None and path[0] != obj.__module__
            return (_imported, tuple(path)) if path and moved else NotImplemented
        if isinstance(obj, typing.ForwardRef):  # it may hold code
            return typing.ForwardRef, (obj.__forward_arg__,)
        return reduce_named(obj) or reduce_constant(obj) or NotImplemented


def _dump(value: Any, scope: Scope) -> bytes:
    file = io.BytesIO()
    _Pickler(file, scope).dump(value)
    return file.getvalue()


# -- building from it


def build(content: bytes, record: Record, loader: Any) -> Any:
    """Return the class or function that a source defines. Runs it: check it before.

    Args:
        loader: the `offload.classes.loading.Loading` that asks for it.

    Raises:
        WrongPython: this Python can't compile the source, or running it fails.
        CodeRefused: it doesn't define the class or function.
    """
    what = f"{record.class_name}@{record.hash[:12]}, pushed by {record.python},"
    try:
        with loading(loader):
            return _Building(Source.from_bytes(content), record, loader).build()
    except OffloadError:
        raise
    except SyntaxError as exc:
        raise WrongPython(
            f"{what} can't be built from its source by {python_tag()}, which doesn't know its "
            f"syntax: {exc.msg} in {(exc.text or '').strip()!r:.100}; run both sides on one minor "
            "version of Python, or write it for the older one"
        ) from exc
    except Exception as exc:
        raise WrongPython(
            f"{what} can't be built from its source by {python_tag()}: {type(exc).__name__}: "
            f"{exc}; run both sides on one minor version of Python and with the same packages, or "
            "push it from this one, too"
        ) from exc


class _Building:
    """Builds one version.

    Versions may need each other. Those that a definition needs when it runs are built before it,
    and others as well, unless they are being built already and wait for this one: their names are
    set once they are defined.
    """

    def __init__(self, source: Source, record: Record, loader: Any) -> None:
        self._source = source
        self._pair = record.pair
        self._version = f"{record.class_name}@{record.hash[:12]}"
        self._loader = loader
        self._modules = {module.name: ModuleType(module.name) for module in source.modules}

    def build(self) -> Any:
        source, loader = self._source, self._loader
        if source.outer is not None:
            loader.load(*source.outer)
            if self._pair not in loader.made:
                raise CodeRefused(f"the source of {self._version} does not define it")
            return loader.made[self._pair]
        loader.waiting.setdefault(self._pair, [])
        needs = source.needs()
        for pair in sorted(needs, key=lambda pair: not needs[pair]):
            if pair != self._pair and (needs[pair] or pair not in loader.waiting):
                loader.load(*pair)
        if self._pair in loader.made:  # one of them needs this one, and built it
            return loader.made[self._pair]
        self._fill()
        for definition in source.definitions:
            self._run(definition)
        return loader.made[self._pair]

    def _fill(self) -> None:
        """Set all names but those of definitions."""
        for loaded in self._source.loads:
            importlib.import_module(loaded)
        for name, constants in pickle.loads(b64decode(self._source.constants)).items():
            vars(self._modules[name]).update(constants)
        for module in self._source.modules:
            names = vars(self._modules[module.name])
            names["__package__"] = module.name.rpartition(".")[0]
            names |= {name: _imported(*path) for name, path in module.imports.items()}
            names |= {name: own(*what) for name, what in module.celery.items()}
            names |= {name: self._modules[shipped] for name, shipped in module.modules.items()}
            for name, (class_name, code_hash, _) in module.versions.items():
                pair = class_name, code_hash
                if pair in self._loader.waiting:
                    self._loader.waiting[pair].append(partial(self._set, names, name))
                else:
                    names[name] = self._loader.load(*pair)

    def _run(self, definition: Definition) -> None:
        names = vars(self._modules[definition.module])
        file = file_of(self._version, definition.file)
        text = "\n" * (definition.line - 1) + definition.text
        flags = FUTURE if definition.future else 0
        with _known(self._modules):
            exec(compile(text, file, "exec", flags, dont_inherit=True), names)  # noqa: S102 (checked)
        obj = names.get(definition.name)
        for module, alias in definition.aliases:
            setattr(self._modules[module], alias, obj)
        if (definition.module, definition.name) == tuple(self._source.root):
            if not isinstance(obj, (type, FunctionType)):
                raise CodeRefused(f"the source of {self._version} does not define it")
            self._begin(obj, names)

    def _begin(self, obj: Any, names: dict[str, Any]) -> None:
        self._loader.begin(*self._pair, obj)
        for qualname, pair in self._source.nested.items():
            self._loader.begin(*pair, attrgetter(qualname.partition(".")[2])(obj))
        self._complete(names)

    def _set(self, names: dict[str, Any], name: str, value: Any) -> None:
        """Set a name once the version it stands for is defined."""
        names[name] = value
        self._complete(names)

    def _complete(self, names: dict[str, Any]) -> None:
        """Have a pydantic model look up annotations that it couldn't resolve yet."""
        obj: Any = self._loader.made.get(self._pair)
        if getattr(obj, "__pydantic_complete__", True) is False:
            obj.model_rebuild(raise_errors=False, _types_namespace=names)


@contextmanager
def _known(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Put modules into ``sys.modules`` within this: dataclasses and others look there."""
    with _modules_lock.get():
        before = {name: sys.modules[name] for name in modules if name in sys.modules}
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in modules:
                sys.modules.pop(name, None)
            sys.modules.update(before)


def _imported(module: str, name: str | None = None) -> Any:
    imported = importlib.import_module(module)
    return imported if name is None else attrgetter(name)(imported)


# -- for people


def show_lines(content: bytes, record: Record) -> None:
    """Have tracebacks of a loaded version show the lines of its source."""
    try:
        definitions = Source.from_bytes(content).definitions
    except CodeRefused:  # from another release; its bytecode still runs
        return
    for definition in definitions:
        file = file_of(f"{record.class_name}@{record.hash[:12]}", definition.file)
        lines = linecache.getlines(file)
        text = definition.text.splitlines(keepends=True)
        start, end = definition.line - 1, definition.line - 1 + len(text)
        lines = lines + ["\n"] * (end - len(lines))
        lines[start:end] = text
        linecache.cache[file] = (sum(map(len, lines)), None, lines, file)


def diff(a: bytes, b: bytes, name_a: str, name_b: str) -> str:
    """Return how source *b* differs from *a*, as a unified diff."""
    old, new = ([f"{line}\n" for line in _shown(each).splitlines()] for each in (a, b))
    return "".join(difflib.unified_diff(old, new, name_a, name_b))


def _shown(content: bytes) -> str:
    """Return a source for people: module by module, the definitions as they are written."""
    source = Source.from_bytes(content)
    parts = [f"# within {source.outer[0]}@{source.outer[1][:12]}"] if source.outer else []
    for module in source.modules:
        lines = [f"# {module.name}"]
        for name, path in {**module.imports, **{n: [m] for n, m in module.modules.items()}}.items():
            given = "" if path[-1] == name else f" as {name}"
            where = f"from {path[0]} " if path[1:] else ""
            lines.append(f"{where}import {path[-1]}{given}")
        lines += [f"{n} = {value}" for n, value in sorted(module.shown.items())]
        lines += [f"{n} = <{c}@{h[:12]}>" for n, (c, h, _) in sorted(module.versions.items())]
        parts.append("\n".join(lines))
        its = (each for each in source.definitions if each.module == module.name)
        parts += [each.text.rstrip() for each in sorted(its, key=lambda it: (it.file, it.line))]
    return "\n\n".join(parts)


_repr = reprlib.Repr()
vars(_repr).update({name: 10**6 for name in vars(_repr) if name.startswith("max")}, maxlevel=20)


def _displayed(value: Any) -> str:
    """Return how a constant is displayed: the same for equal values in all processes."""
    try:
        text = _ADDRESS.sub("", _repr.repr(value))
    except Exception:
        text = short_repr(value)
    if len(text) > _SHOWN:
        text = (
            f"{text[:_SHOWN]}… ({len(text)} characters, {sha256(text.encode()).hexdigest()[:12]})"
        )
    return text
