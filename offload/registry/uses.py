"""What a definition uses: globals, attributes of modules, classes that stand within it."""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

__all__ = (
    "attributes_of",
    "attributes_used",
    "globals_in",
    "inner_classes",
    "names_in_annotations",
)

_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL"})
_RUN_AT_ONCE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<generic parameters of")
_OPTIMIZED = inspect.CO_OPTIMIZED  # the code of a function, and not of a class' body


def globals_in(code: CodeType) -> tuple[set[str], set[str]]:
    """Return the globals that a definition uses at once, and those that it uses when called."""
    early = {each.argval for each in dis.get_instructions(code) if each.opname in _GLOBALS}
    late: set[str] = set()
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            first, then = globals_in(inner)
            at_once = not inner.co_flags & _OPTIMIZED or inner.co_name.startswith(_RUN_AT_ONCE)
            early |= first if at_once else set()
            late |= then if at_once else first | then
    return early, late - early


def names_in_annotations(tree: ast.AST) -> set[str]:
    """Return the names in annotations, which may be evaluated at once, later, or never."""
    found: set[str] = set()
    for node in ast.walk(tree):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for each in ast.walk(part) if part is not None else ():
                if isinstance(each, ast.Name):
                    found.add(each.id)
                elif isinstance(each, ast.Constant) and isinstance(each.value, str):
                    found |= _names_in_text(each.value)
    return found


def _names_in_text(annotation: str) -> set[str]:
    try:
        return {node.id for node in _nodes(ast.parse(annotation, mode="eval"), ast.Name)}
    except (SyntaxError, ValueError):
        return set()


def attributes_used(tree: ast.AST) -> set[str]:
    """Return the names of all attributes that a definition uses, of whatever."""
    return {node.attr for node in _nodes(tree, ast.Attribute)}


def _nodes(tree: ast.AST, kind: Any) -> Iterator[Any]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def attributes_of(name: str, tree: ast.AST) -> Iterator[str]:
    """Yield what stands after *name*, as ``.path`` and ``.path.join``."""
    for node in _nodes(tree, ast.Attribute):
        path, at = "", node
        while isinstance(at, ast.Attribute):
            path, at = f".{at.attr}{path}", at.value
        if isinstance(at, ast.Name) and at.id == name:
            yield path


def inner_classes(tree: ast.AST, begin: str = "") -> Iterator[str]:
    """Yield the qualified names of classes within classes."""
    for node in getattr(tree, "body", ()):
        if isinstance(node, ast.ClassDef):
            if begin:
                yield begin + node.name
            yield from inner_classes(node, f"{begin}{node.name}.")
        elif begin and isinstance(node, (ast.If, ast.With, ast.Try)):
            yield from inner_classes(node, begin)
