"""How things are written: their statements in a file, or in a cell of a notebook.

A statement counts only where it is the one that made what a process has. For functions, and
classes with methods, the code that it compiles to is compared with the code that is there, so a
file that was edited since, or another cell, is not taken. Of a class without methods what can be
seen of it is compared: its fields and what is written out as their values.
"""

from __future__ import annotations
import __future__

import ast
import copy
import inspect
import linecache
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from types import CodeType, FunctionType
from typing import Any

from offload.registry.annotations import annotations_of

__all__ = ("OWN", "Written", "definition", "import_of", "namespace_of", "statement")

OWN = "<offload "
"""How the file names begin of what was made from source here."""
FUTURE = __future__.annotations.compiler_flag
_PARTS = ("__func__", "fget", "fset", "fdel", "func", "__wrapped__")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_Path = tuple[ast.stmt, ...]


@dataclass(frozen=True)
class Written:
    """A statement that can be run by itself.

    Attributes:
        file: where it stands; may be the name of a cell.
        line: its first one there.
        text: its source, within the headers of the classes that it stands in.
        future: whether annotations in it are not evaluated (PEP 563).
    """

    file: str
    line: int
    text: str
    future: bool

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def code(self) -> CodeType:
        return _compiled(self.tree, future=self.future)


def definition(obj: Any) -> Written | None:
    """Return how a class or function is written; None if that is not to be had.

    Decorators that only register it with a `ClassRegistry` are left out.
    """
    path = obj.__qualname__.split(".")
    names = namespace_of(obj)
    live = list(_made(obj))
    for file in dict.fromkeys([*(code.co_filename for code in live), *_files(names)]):
        lines = _lines(file, names)
        tree = _parsed("".join(lines))
        its = {code for code in live if code.co_filename == file}
        future = _is_future(tree) or any(code.co_flags & FUTURE for code in its or live)
        codes = _codes("".join(lines), future=future) if live else frozenset()
        its |= {code for code in live if code in codes and not _lines(code.co_filename, names)}
        for nodes in reversed(list(_at(tree.body, path))):
            if its:
                within = {code for code in its if _stands_in(code, nodes[-1])}
                if within != its or not its <= codes:
                    continue
            elif (
                not isinstance(obj, type)
                or not _is_bound(obj, names)
                or not _looks(nodes, obj)
                or _has_other_methods(nodes[-1], obj, codes)
            ):
                continue
            else:
                future = future or _is_as_written(nodes[-1], obj)
            return _written(file, lines, nodes, names, future=future)
    if isinstance(obj, type) and _is_bound(obj, names):  # as by namedtuple(…)
        return statement(obj.__qualname__, names, (), (ast.Assign,))
    return None


def statement(
    name: str,
    names: Mapping[str, Any],
    files: tuple[str, ...] = (),
    kinds: tuple[type[ast.stmt], ...] = (),
) -> Written | None:
    """Return the last statement at the outermost level that gives *name* its value.

    Args:
        names: what the module holds.
        files: where to look first.
        kinds: what it may be; empty: an assignment, a function, a class.
    """
    for file in dict.fromkeys([*files, *_files(names)]):
        lines = _lines(file, names)
        tree = _parsed("".join(lines))
        for nodes in reversed(list(_outermost(tree.body))):
            if _binds(nodes[-1]) == name and isinstance(nodes[-1], kinds or ast.stmt):
                return _written(file, lines, nodes, names, future=_is_future(tree))
    return None


def import_of(name: str, names: Mapping[str, Any], files: tuple[str, ...]) -> list[str]:
    """Return what *name* is imported from by a statement: a module, and a name in it.

    Empty if there is no such statement.
    """
    for file in dict.fromkeys([*files, *_files(names)]):
        for node in ast.walk(_parsed("".join(_lines(file, names)))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                for each in node.names:
                    if (each.asname or each.name) == name:
                        return [node.module or "", each.name]
    return []


def namespace_of(obj: Any) -> Mapping[str, Any]:
    """Return the globals of a class or function."""
    if not isinstance(obj, type):
        names: dict[str, Any] = inspect.unwrap(obj).__globals__
        return names
    for value in vars(obj).values():
        for function in _functions(value):
            if function.__globals__.get("__name__") == obj.__module__:
                return function.__globals__
    return vars(sys.modules[obj.__module__]) if obj.__module__ in sys.modules else {}


# -- what is there


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the functions that a class' attribute was made of."""
    if isinstance(value, FunctionType) and not hasattr(value, "__wrapped__"):
        yield value
    for part in _PARTS:
        inner = getattr(value, part, None) if not isinstance(value, type) else None
        if inner is not None and inner is not value:
            yield from _functions(inner)


def _made(obj: Any) -> Iterator[CodeType]:
    """Yield the code that was made by the statement that defines *obj*."""
    if not isinstance(obj, type):
        yield inspect.unwrap(obj).__code__
        return
    for value in vars(obj).values():
        for function in _functions(value):
            if function.__qualname__ == f"{obj.__qualname__}.{function.__name__}":
                yield function.__code__


def _is_bound(obj: Any, names: Mapping[str, Any]) -> bool:
    first, *rest = obj.__qualname__.split(".")
    at = names.get(first)
    for part in rest:
        at = getattr(at, part, None)
    return at is obj


def _looks(nodes: _Path, cls: type) -> bool:
    """Return whether a class without methods may have been made by the last of *nodes*."""
    node = nodes[-1]
    if not isinstance(node, ast.ClassDef):
        return False
    first = vars(cls).get("__firstlineno__")  # Python 3.13
    if first is not None and first != _begin(node):
        return False
    own = vars(cls)
    annotated = {_binds(each) for each in node.body if isinstance(each, ast.AnnAssign)}
    if annotated != set(annotations_of(cls)):
        return False
    for each in node.body:
        name = _binds(each)
        if isinstance(each, (ast.Assign, ast.AnnAssign)) and name in own and each.value:
            there = own[name].value if isinstance(own[name], Enum) else own[name]
            try:
                written = ast.literal_eval(each.value)
            except (ValueError, TypeError):
                continue
            if type(there) is type(written) and there != written:
                return False
    return True


def _has_other_methods(node: ast.stmt, cls: type, codes: frozenset[CodeType]) -> bool:
    """Return whether methods of *node* have code in a class that is not compiled from its file.

    Such a class was loaded, and the file is that of another version.
    """
    names = {each.name for each in getattr(node, "body", ()) if isinstance(each, _FUNCTIONS)}
    return any(code.co_name in names and code not in codes for code in _made(cls))


def _is_as_written(node: ast.stmt, cls: type) -> bool:
    """Return whether annotations of a class are texts although they are not written so."""
    found = annotations_of(cls)
    return any(
        isinstance(each, ast.AnnAssign) and found.get(_binds(each)) == ast.unparse(each.annotation)
        for each in getattr(node, "body", ())
    )


# -- files


def _files(names: Mapping[str, Any]) -> list[str]:
    """Return where what is in a module may stand: in its file, or in cells, the newest first."""
    file = names.get("__file__")
    files = [file] if isinstance(file, str) else []
    if not files or names.get("__name__") == "__main__":
        cells = [each for each in reversed(linecache.cache) if not each.startswith(OWN)]
        files += [each for each in cells if not os.path.exists(each)]  # noqa: PTH110 (no paths)
    return files


def _lines(file: str, names: Mapping[str, Any]) -> list[str]:
    linecache.checkcache(file)
    return linecache.getlines(file, dict(names))


@lru_cache(maxsize=32)
def _parsed(text: str) -> ast.Module:
    """Return what is written in a file or cell; nothing if that is no Python."""
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        tree: ast.Module = compile(text, "<text>", "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError):
        return ast.Module([], [])
    return tree


def _is_future(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(each.name == "annotations" for each in node.names)
        for node in tree.body
    )


def _compiled(tree: ast.Module, *, future: bool) -> CodeType:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | (FUTURE if future else 0)
    code: CodeType = compile(tree, "<text>", "exec", flags, dont_inherit=True)
    return code


@lru_cache(maxsize=32)
def _codes(text: str, *, future: bool) -> frozenset[CodeType]:
    """Return what a file or cell compiles to, as a whole and, as IPython does it, statement by
    statement: what is imported at the outermost level changes how functions are compiled.
    """
    tree = _parsed(text)
    parts = (tree, *(ast.Module([node], []) for node in tree.body))
    return frozenset(code for part in parts for code in _within(_compiled(part, future=future)))


def _within(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _within(constant)


def _stands_in(code: CodeType, node: ast.stmt) -> bool:
    return _begin(node) <= code.co_firstlineno <= (node.end_lineno or 0)


# -- statements


def _outermost(body: list[ast.stmt]) -> Iterator[_Path]:
    """Yield the statements of a module or class, also those under conditions."""
    for node in body:
        yield (node,)
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            for field in ("body", "orelse", "finalbody"):
                yield from _outermost(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _outermost(handler.body)


def _at(body: list[ast.stmt], path: list[str]) -> Iterator[_Path]:
    """Yield the definitions of this qualified name, each after the classes it stands in."""
    first, *rest = path
    for (node,) in _outermost(body):
        if getattr(node, "name", None) != first:
            continue
        if not rest:
            yield (node,)
        elif isinstance(node, ast.ClassDef):
            yield from ((node, *inner) for inner in _at(node.body, rest))


def _binds(node: ast.stmt) -> str:
    """Return the name that a statement gives a value to; "" if that is not what it does."""
    target: Any = getattr(node, "name", "")  # of a class, a function, a type alias
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    elif isinstance(node, ast.AnnAssign):
        target = node.target
    name: Any = target.id if isinstance(target, ast.Name) else target
    return name if isinstance(name, str) else ""


def _begin(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])


def _written(
    file: str, lines: list[str], nodes: _Path, names: Mapping[str, Any], *, future: bool
) -> Written:
    *around, node = nodes
    begin, end = _begin(node), node.end_lineno or node.lineno
    left_out = [each for each in getattr(node, "decorator_list", ()) if _registers(each, names)]
    without = {n for each in left_out for n in range(each.lineno, (each.end_lineno or 0) + 1)}
    text = "".join(lines[n - 1] for n in range(begin, end + 1) if n not in without)
    before = lines[begin - 1].encode()[: node.col_offset].strip()
    after = lines[end - 1].encode()[node.end_col_offset :].strip()
    if (before and not before.startswith(b"@")) or (after and not after.startswith(b"#")):
        alone: Any = copy.copy(node)  # it shares its line with another one
        if left_out:
            alone.decorator_list = [each for each in alone.decorator_list if each not in left_out]
        text = textwrap.indent(ast.unparse(alone), " " * node.col_offset)
    headers = [" " * each.col_offset + f"class {each.name}:\n" for each in around]  # type: ignore[attr-defined]
    if nodes[0].col_offset:
        headers.insert(0, "if True:\n")
    return Written(file, begin, "".join([*headers, text.rstrip(), "\n"]), future)


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
