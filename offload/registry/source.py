"""The source of a version, for Pythons whose bytecode is another one, and for people.

What is shipped with a class is taken module by module: what it imports, its constants, the
versions of other classes it names, and its definitions as they are written. From that
`offload.registry.rebuild` puts the modules together again and runs the definitions; nothing else
of the original modules runs.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import io
import linecache
import pickle
import sys
import textwrap
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any

import orjson

from offload.errors import SerializationError
from offload.registry.pickling import Pair, reduce_pair
from offload.registry.scope import Scope

__all__ = ("Source", "diff", "source_of")


@dataclass
class Source:
    """What is taken of one module.

    Attributes:
        module: its name.
        imports: names and what they are imported as: a module, and maybe a name in it.
        constants: names and their values, pickled, in base64.
        classes: names and the versions of classes that they are; whether a definition needs it
            when it is made, not only when it is used.
        others: names that are functions of other modules here: module and name.
        definitions: line and source of each, in their order.
        future: whether annotations are not evaluated (PEP 563).
    """

    module: str
    imports: dict[str, list[str]] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    classes: dict[str, tuple[str, str, bool]] = field(default_factory=dict)
    others: dict[str, tuple[str, str]] = field(default_factory=dict)
    definitions: list[tuple[int, str]] = field(default_factory=list)
    future: bool = False


def source_of(obj: Any, scope: Scope, pair_of: Callable[[Any], Pair]) -> bytes:
    """Return the source of *obj* and of the functions that are shipped with it, as JSON.

    Empty if it is not to be had: it stands within a function, was made at run time, or depends
    on what only bytecode carries.
    """
    taking = _Taking(obj, scope, pair_of)
    try:
        taking.definition(obj)
    except _NoSource:
        return b""
    modules = [asdict(source) for source in taking.sources.values()]
    # Those that were met last are needed by those before.
    return orjson.dumps({"root": [obj.__module__, obj.__qualname__], "modules": modules[::-1]})


def diff(a: bytes, b: bytes, name_a: str, name_b: str) -> str:
    """Return how source *b* differs from *a*, as a unified diff."""
    old, new = ([f"{line}\n" for line in _text(each).splitlines()] for each in (a, b))
    return "".join(difflib.unified_diff(old, new, name_a, name_b))


def _text(source: bytes) -> str:
    modules = orjson.loads(source)["modules"]
    return "\n\n".join(text for each in modules for _line, text in each["definitions"])


class _NoSource(Exception):
    """Something's source is not to be had."""


class _Taking:
    def __init__(self, root: Any, scope: Scope, pair_of: Callable[[Any], Pair]) -> None:
        self.root = root
        self.scope = scope
        self.pair_of = pair_of
        self.sources: dict[str, Source] = {}
        self._seen: set[int] = set()

    def definition(self, obj: Any) -> None:
        """Take a class or function, and what it names."""
        if id(obj) in self._seen:
            return
        self._seen.add(id(obj))
        source = self.sources.setdefault(obj.__module__, Source(obj.__module__))
        written = _written(obj)
        source.definitions = sorted([*source.definitions, (written.line, written.text)])
        source.future = source.future or written.future
        early = _names(written.tree, early=True)
        for name in sorted(_names(written.tree)):
            if name in written.names and written.names[name] is not self.root:
                self._name(source, name, written.names[name], early=name in early)

    def _name(self, source: Source, name: str, value: Any, *, early: bool) -> None:
        function = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, ModuleType):
            source.imports[name] = [value.__name__]
        elif isinstance(value, type) and value in self.scope:
            before = source.classes.get(name, ("", "", False))[2]
            source.classes[name] = (*self.pair_of(value), early or before)
        elif isinstance(function, FunctionType) and function in self.scope:
            self.definition(value)
            if value.__module__ != source.module or value.__qualname__ != name:
                source.others[name] = (value.__module__, value.__qualname__)
        elif isinstance(value, (type, FunctionType)):
            source.imports[name] = [value.__module__, value.__qualname__]
        else:
            source.constants[name] = b64encode(self._pickled(value)).decode()

    def _pickled(self, value: Any) -> bytes:
        taking = self

        class Pickler(pickle.Pickler):
            def reducer_override(self, obj: Any) -> Any:
                if isinstance(obj, type) and obj in taking.scope:
                    return reduce_pair(taking.pair_of(obj))
                if isinstance(obj, FunctionType) and obj in taking.scope:
                    raise _NoSource(obj.__qualname__)
                return NotImplemented

        file = io.BytesIO()
        try:
            Pickler(file, protocol=4).dump(value)  # which all Pythons read
        except SerializationError:
            raise
        except Exception as exc:
            raise _NoSource(str(exc)) from exc
        return file.getvalue()


@dataclass
class _Written:
    line: int
    text: str
    tree: ast.AST
    names: Mapping[str, Any]
    future: bool


def _written(obj: Any) -> _Written:
    """Return how *obj* is written: at a module's outermost level."""
    if not obj.__qualname__.isidentifier():
        raise _NoSource(obj.__qualname__)
    for code in _codes(obj):
        lines = linecache.getlines(code.co_filename)
        try:
            file = ast.parse("".join(lines))
        except SyntaxError:
            continue
        for node in file.body:
            begin = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            end = node.end_lineno or begin
            if getattr(node, "name", "") == obj.__qualname__ and (
                begin <= code.co_firstlineno <= end
            ):
                names = _namespace(obj)
                text = "".join(lines[begin - 1 : end])
                node.decorator_list = [  # type: ignore[attr-defined]
                    each
                    for each in node.decorator_list  # type: ignore[attr-defined]
                    if not _registers(each, names)
                ]
                kept = min([node.lineno, *(d.lineno for d in node.decorator_list)])  # type: ignore[attr-defined]
                text = text if kept == begin else "".join(lines[kept - 1 : end])
                return _Written(begin, textwrap.dedent(text), node, names, _has_future(file))
    raise _NoSource(obj.__qualname__)


def _has_future(file: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(each.name == "annotations" for each in node.names)
        for node in file.body
    )


def _functions(obj: Any) -> Iterator[FunctionType]:
    for value in vars(obj).values():
        for part in (value, getattr(value, "__func__", None), getattr(value, "fget", None)):
            if isinstance(part, FunctionType) and part.__module__ == obj.__module__:
                yield inspect.unwrap(part)


def _codes(obj: Any) -> Iterator[CodeType]:
    """Yield code whose file and line are within the definition of *obj*."""
    if not isinstance(obj, type):
        yield inspect.unwrap(obj).__code__
        return
    yield from (function.__code__ for function in _functions(obj))
    try:  # a class without methods
        lines, line = inspect.getsourcelines(obj)
        file = inspect.getsourcefile(obj)
    except (OSError, TypeError):
        return
    if file is not None and lines:
        yield compile("\n" * (max(line, 1) - 1) + "0", file, "eval")


def _namespace(obj: Any) -> Mapping[str, Any]:
    if not isinstance(obj, type):
        names: dict[str, Any] = inspect.unwrap(obj).__globals__
        return names
    for function in _functions(obj):
        if function.__globals__.get("__name__") == obj.__module__:
            return function.__globals__
    return vars(sys.modules[obj.__module__]) if obj.__module__ in sys.modules else {}


def _registers(decorator: ast.expr, names: Mapping[str, Any]) -> bool:
    """Return whether a decorator only registers what it decorates, by `ClassRegistry.register`."""
    at = decorator.func if isinstance(decorator, ast.Call) else decorator
    path: list[str] = []
    while isinstance(at, ast.Attribute):
        path.insert(0, at.attr)
        at = at.value
    value = names.get(at.id) if isinstance(at, ast.Name) else None
    for part in path:
        value = getattr(value, part, None)
    return getattr(value, "__qualname__", "") == "ClassRegistry.register"


def _names(tree: ast.AST, *, early: bool = False) -> set[str]:
    """Return the names that a definition uses; with *early*, only those it uses at once."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(node.id)
        for name, value in ast.iter_fields(node):
            if early and name == "body" and not isinstance(node, ast.ClassDef):
                continue
            inner = value if isinstance(value, list) else [value]
            waiting += [each for each in inner if isinstance(each, ast.AST)]
    return found
