"""Find the source text of a class or function, in a file or in a notebook cell.

`inspect.getsource` doesn't find classes defined in notebook cells, and returns the wrong text after
a file was edited. So a statement is accepted only if it compiles to the object's code. A class
without methods is compared by its annotations and literal values.
"""

from __future__ import annotations
import __future__

import ast
import dis
import inspect
import linecache
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from offload.classes.hashing.values import annotations_of

FUTURE = __future__.annotations.compiler_flag
_PARTS = ("__func__", "fget", "fset", "fdel", "func", "__wrapped__")  # of methods and properties
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL"})
_RUN_AT_ONCE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<generic parameters of")
_SHIPPED_FILE = re.compile(r"<\S+@[0-9a-f]{12} (.*)>")
"""Pattern of the file name of shipped code, as `file_of` builds it; it contains the original."""


class NoSource(Exception):
    """The source can't be shipped; the message says which object has none."""


@dataclass
class Definition:
    """A class or function statement at the outermost level of a module or cell.

    Attributes:
        module: the module's name.
        name: the name it defines.
        text: the statement; it can run by itself.
        file: base name of the file or cell.
        line: the line of *file* where *text* starts.
        future: whether its annotations aren't evaluated (PEP 563).
        aliases: other names of the same object, as (module, name).
    """

    module: str
    name: str
    text: str
    file: str
    line: int
    future: bool
    aliases: list[tuple[str, str]]


def file_of(version: str, file: str) -> str:
    """Return the file name that tracebacks show for shipped code: ``<version file>``.

    Args:
        version: name and short hash, such as ``shop.Filter@3f0c11aa9d52``.
        file: where the code is from: a path, or the file name of shipped code.
    """
    return f"<{version} {_SHIPPED_FILE.sub(chr(92) + '1', file).rpartition('/')[2]}>"


def definition_of(obj: Any) -> Definition:
    """Return the statement that defined *obj*. Raises NoSource if it can't be found.

    Omits decorators that register it with a `ClassRegistry`.
    """
    names = namespace_of(obj)
    live = list(_codes_of(obj))
    for file in dict.fromkeys([*(code.co_filename for code in live), *_files(names)]):
        lines = _lines(file, names)
        tree = _parsed("".join(lines))
        here = {code for code in live if code.co_filename == file}
        future = _is_future(tree) or any(code.co_flags & FUTURE for code in here or live)
        codes = _codes("".join(lines), future=future) if live else frozenset()
        here |= {code for code in live if code in codes and not _lines(code.co_filename, names)}
        for node in reversed(list(_named(tree.body, obj.__qualname__))):
            if here:
                span = range(_first_line(node), (node.end_lineno or 0) + 1)
                matches = here <= codes and all(code.co_firstlineno in span for code in here)
            else:
                matches = isinstance(obj, type) and _looks_like(node, obj, names, live)
                future = future or _has_text_annotations(node, obj)
            if matches:
                return _definition(obj, file, lines, node, names, future=future)
    raise NoSource(f"the class or function statement of {obj.__qualname__} can't be found")


def namespace_of(obj: Any) -> Mapping[str, Any]:
    """Return the globals of the module that defines a class or function."""
    if not isinstance(obj, type):
        names: dict[str, Any] = inspect.unwrap(obj).__globals__
        return names
    for value in vars(obj).values():
        for function in _functions(value):
            if function.__globals__.get("__name__") == obj.__module__:
                return function.__globals__
    return vars(sys.modules[obj.__module__]) if obj.__module__ in sys.modules else {}


# -- objects


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the functions that a class attribute is made of."""
    if isinstance(value, FunctionType) and not hasattr(value, "__wrapped__"):
        yield value
    for part in _PARTS:
        inner = getattr(value, part, None) if not isinstance(value, type) else None
        if inner is not None and inner is not value:
            yield from _functions(inner)


def _codes_of(obj: Any) -> Iterator[CodeType]:
    """Yield the code of *obj*, or of the methods of a class."""
    if not isinstance(obj, type):
        yield inspect.unwrap(obj).__code__
        return
    for value in vars(obj).values():
        for function in _functions(value):
            if function.__qualname__ == f"{obj.__qualname__}.{function.__name__}":
                yield function.__code__


def _looks_like(node: ast.stmt, cls: type, names: Mapping[str, Any], live: list[CodeType]) -> bool:
    """Return whether *node* may define *cls*, if the file contains none of its code."""
    if not isinstance(node, ast.ClassDef) or names.get(cls.__qualname__) is not cls:
        return False
    own = vars(cls)
    methods = {each.name for each in node.body if isinstance(each, _FUNCTIONS)}
    if any(code.co_name in methods for code in live):  # methods of another version
        return False
    if own.get("__firstlineno__", _first_line(node)) != _first_line(node):  # Python 3.13
        return False
    fields = {_bound(each) for each in node.body if isinstance(each, ast.AnnAssign)}
    if fields != set(annotations_of(cls)):
        return False
    for each in node.body:
        name = _bound(each)
        if isinstance(each, (ast.Assign, ast.AnnAssign)) and name in own and each.value:
            there = own[name].value if isinstance(own[name], Enum) else own[name]
            try:
                written = ast.literal_eval(each.value)
            except (ValueError, TypeError):
                continue
            if type(there) is type(written) and there != written:
                return False
    return True


def _has_text_annotations(node: ast.stmt, cls: Any) -> bool:
    """Return whether a class's annotations are strings although the source doesn't quote them."""
    found = annotations_of(cls)
    return any(
        isinstance(each, ast.AnnAssign) and found.get(_bound(each)) == ast.unparse(each.annotation)
        for each in getattr(node, "body", ())
    )


# -- files and cells


def _files(names: Mapping[str, Any]) -> list[str]:
    """Return the file of a module, or the notebook cells, newest first."""
    file = names.get("__file__")
    files = [file] if isinstance(file, str) else []
    if not files or names.get("__name__") == "__main__":
        cells = [each for each in reversed(linecache.cache) if not _SHIPPED_FILE.fullmatch(each)]
        files += [each for each in cells if not os.path.exists(each)]  # noqa: PTH110 (no paths)
    return files


def _lines(file: str, names: Mapping[str, Any]) -> list[str]:
    linecache.checkcache(file)
    return linecache.getlines(file, dict(names))


@lru_cache(maxsize=32)
def _parsed(text: str) -> ast.Module:
    """Return the syntax tree of a file or cell; empty if it isn't Python."""
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


@lru_cache(maxsize=32)
def _codes(text: str, *, future: bool) -> frozenset[CodeType]:
    """Return all code objects that a file or cell compiles to.

    Compiles it as a whole and, like IPython, statement by statement, because top-level imports
    change how functions are compiled.
    """
    tree = _parsed(text)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | (FUTURE if future else 0)
    found: set[CodeType] = set()
    for part in (tree, *(ast.Module([node], []) for node in tree.body)):
        waiting = [compile(part, "<text>", "exec", flags, dont_inherit=True)]
        while waiting:
            code = waiting.pop()
            found.add(code)
            waiting += [each for each in code.co_consts if isinstance(each, CodeType)]
    return frozenset(found)


# -- statements


def _named(body: list[ast.stmt], name: str) -> Iterator[ast.stmt]:
    """Yield the top-level definitions of this name, including those in conditions."""
    for node in body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            if node.name == name:
                yield node
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from _named(getattr(node, field, []), name)
        for handler in getattr(node, "handlers", []):
            yield from _named(handler.body, name)


def _bound(node: ast.stmt) -> str:
    """Return the variable that a statement assigns; "" if there isn't exactly one."""
    target: Any = getattr(node, "target", None)
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    return target.id if isinstance(target, ast.Name) else ""


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])


def _definition(
    obj: Any, file: str, lines: list[str], node: Any, names: Mapping[str, Any], *, future: bool
) -> Definition:
    first, last = _first_line(node), node.end_lineno or node.lineno
    kept = dict(enumerate(lines[first - 1 : last], first))
    for decorator in node.decorator_list:
        if _registers(decorator, names):
            for number in range(decorator.lineno, (decorator.end_lineno or 0) + 1):
                kept[number] = "\n"
    while kept[first] == "\n":  # skip the lines of omitted decorators
        del kept[first]
        first += 1
    text = "".join(kept.values()).rstrip() + "\n"
    if node.col_offset:
        first, text = first - 1, f"if True:\n{text}"
    file = _SHIPPED_FILE.sub(r"\1", file).rpartition("/")[2]
    return Definition(obj.__module__, obj.__qualname__, text, file, first, future, [])


def _registers(decorator: ast.expr, names: Mapping[str, Any]) -> bool:
    """Return whether a decorator is `ClassRegistry.register`."""
    at = decorator.func if isinstance(decorator, ast.Call) else decorator
    path: list[str] = []
    while isinstance(at, ast.Attribute):
        path.insert(0, at.attr)
        at = at.value
    value = names.get(at.id) if isinstance(at, ast.Name) else None
    for part in path:
        value = getattr(value, part, None)
    return getattr(value, "__qualname__", "") == "ClassRegistry.register"


# -- names


def names_used(definition: Definition) -> tuple[CodeType, set[str], set[str]]:
    """Return a statement's code, the globals it uses when it runs, and those it uses later.

    Names in annotations count as used later.
    """
    tree = ast.parse(definition.text)
    flags = FUTURE if definition.future else 0
    code = compile(tree, "<text>", "exec", flags, dont_inherit=True)
    early, late = _globals_in(code)
    return code, early, late | (_names_in_annotations(tree) - early)


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
    """Return the names in annotations, even if these are quoted or never evaluated."""
    found: set[str] = set()
    for node in ast.walk(tree):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if part is not None:
                found.update(re.findall(r"[^\W\d]\w*", ast.unparse(part)))
    return found
