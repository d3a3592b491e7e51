"""Comments, positions, and docstrings don't change normalized code; every instruction does."""

from __future__ import annotations

import ast
import asyncio.base_events
import contextlib
import copy
import dataclasses
import difflib
import enum
import inspect
import random
import textwrap
import types
from pathlib import Path

import pytest

from offload.classes.hashing.code import names_in, normalize

MODULES = (asyncio.base_events, contextlib, dataclasses, difflib, enum)


def code_of(source):
    """Return the code of a function with this *source*."""
    names = {}
    exec(compile(textwrap.dedent(source), "<source>", "exec", dont_inherit=True), names)
    return names["f"].__code__


def codes(module):
    """Return all code objects within a module's."""
    found = [each for each in module.co_consts if isinstance(each, types.CodeType)]
    return found + [inner for each in found for inner in codes(each)]


def moved(tree, by):
    """Return a tree as if *by* lines of comments were inserted before each line."""
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        if hasattr(node, "lineno"):
            node.lineno, node.end_lineno = node.lineno * by, node.end_lineno * by
    return tree


def documented(tree):
    """Return a tree whose functions and classes have other docstrings."""
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if ast.get_docstring(node) is not None:
                del node.body[0]
            doc = ast.Expr(ast.Constant(f"Of {node.name}."))
            # On the line of the first statement, which a docstring on its own line moves.
            line = node.body[0].lineno if node.body else node.lineno
            node.body.insert(0, ast.copy_location(doc, node))
            node.body[0].lineno = node.body[0].end_lineno = node.body[0].value.lineno = line
    return ast.fix_missing_locations(tree)


def contents(tree):
    module = compile(tree, "<source>", "exec", dont_inherit=True)
    outer = [each for each in module.co_consts if isinstance(each, types.CodeType)]
    return [normalize(each).content for each in outer]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_comments_and_docstrings_do_not_change_code(module):
    """Inserted lines and other docstrings don't change any code of a module."""
    source = Path(inspect.getsourcefile(module)).read_text(encoding="utf-8")
    tree = ast.parse(source)
    expected = contents(tree)
    assert len(expected) > 5
    assert contents(moved(tree, 3)) == expected
    assert contents(documented(moved(tree, 3))) == expected


OTHERS = {
    "Add": ast.Sub,
    "And": ast.Or,
    "Eq": ast.NotEq,
    "Gt": ast.GtE,
    "GtE": ast.Gt,
    "In": ast.NotIn,
    "Is": ast.IsNot,
    "IsNot": ast.Is,
    "Lt": ast.LtE,
    "LtE": ast.Lt,
    "Mult": ast.Add,
    "NotEq": ast.Eq,
    "NotIn": ast.In,
    "Or": ast.And,
    "Sub": ast.Add,
}


class Mutation(ast.NodeTransformer):
    """Changes the n-th place that can be changed."""

    def __init__(self, at):
        self.at = at

    def generic_visit(self, node):
        super().generic_visit(node)
        other = self._other(node)
        if other is None:
            return node
        self.at -= 1
        return other if self.at == -1 else node

    def _other(self, node):
        kind = type(node).__name__
        if kind in OTHERS:
            return OTHERS[kind]()
        if isinstance(node, ast.Constant) and type(node.value) in (int, str):
            return ast.copy_location(ast.Constant(node.value * 2 + type(node.value)(1)), node)
        if isinstance(node, ast.Attribute):
            return ast.copy_location(ast.Attribute(node.value, node.attr + "_x", node.ctx), node)
        if isinstance(node, ast.Break):
            return ast.copy_location(ast.Continue(), node)
        if isinstance(node, ast.Await):
            return node.value
        return None


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_instruction_changes_code(module):
    """A changed operator, constant, attribute, or jump changes its code."""
    tree = ast.parse(Path(inspect.getsourcefile(module)).read_text(encoding="utf-8"))
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)]
    alone = [f for f in functions if not any(isinstance(n, ast.Nonlocal) for n in ast.walk(f))]
    chance = random.Random(7)
    tried = 0
    for function in chance.sample(alone, min(40, len(alone))):
        function.decorator_list = []
        whole = ast.Module([function], [])
        before = _first(whole, function.name)
        for at in range(6):
            other = Mutation(at * 3).visit(copy.deepcopy(whole))
            try:
                after = _first(other, function.name)
            except (SyntaxError, ValueError):
                continue
            if _raw(before) == _raw(after):
                continue  # such as a docstring
            tried += 1
            assert normalize(before).content != normalize(after).content, ast.unparse(other)
    assert tried > 20


def _first(tree, name):
    module = compile(tree, "<source>", "exec", dont_inherit=True)
    return next(each for each in codes(module) if each.co_name == name)


def _raw(code):
    if not isinstance(code, types.CodeType):
        return repr(code), type(code)
    loaded = code.co_consts[1:] if code.co_flags & 1 else code.co_consts
    return code.co_code, code.co_names, tuple(map(_raw, loaded))


def test_a_docstring_among_many_constants():
    """A docstring shifts other constants, so that some need two instructions."""
    many = ", ".join(f"('c{n}', x{n})" for n in range(400))
    plain = code_of(f"def f():\n    return [{many}] if a else [{many}]")
    with_doc = code_of(f"def f():\n    'doc'\n    return [{many}] if a else [{many}]")
    assert normalize(plain).content == normalize(with_doc).content
    assert normalize(plain, docs=True).content != normalize(with_doc, docs=True).content


@pytest.mark.parametrize(
    ("source", "expected"),
    (
        ("def f(): return a", {"a"}),
        ("def f():\n    global a\n    a = 1", {"a"}),
        ("def f(): return [a for x in y]", {"a", "y"}),
        ("def f():\n    def g(): return a", {"a"}),
        ("def f():\n    class C:\n        x = a", {"a", "__name__"}),
        ("def f():\n    class C:\n        a = 1\n        x = a", {"__name__"}),
        ("def f():\n    class C:\n        a = a", {"a", "__name__"}),
        ("def f():\n    class C:\n        if b: a = 1\n        x = a", {"a", "b", "__name__"}),
        ("def f():\n    class C:\n        a = 1\n        del a\n        x = a", {"a", "__name__"}),
        ("def f(a): return a.b", set()),
    ),
)
def test_globals_are_found_everywhere(source, expected):
    """Globals are found in nested code and class bodies, too, except those that the class itself
    sets.
    """
    assert set(normalize(code_of(source)).globals) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    (
        ("def f(x): return x.__doc__", True),
        ("def f(x): return getattr(x, '__doc__')", True),
        ("def f(x): return help(x)", True),
        ("def f(x): return inspect.getdoc(x)", True),
        ("def f():\n    def g(): return __doc__", True),
        ("def f():\n    class C:\n        'doc'\n        x = __doc__", True),
        ("def f(x): x.__doc__ = 'set'", False),
        ("def f():\n    class C:\n        'doc'", False),
        ("def f():\n    'about __doc__'", False),
    ),
)
def test_readers_of_docstrings_are_found(source, expected):
    """Reading a docstring counts, having or setting one doesn't."""
    assert normalize(code_of(source)).reads_docs is expected


def test_names_are_found_in_texts_too():
    """A name in text counts as used, because getattr may read it."""
    assert {"a", "b", "c"} <= names_in(
        code_of("def f(x):\n    return lambda: (x.a, getattr(x, 'b'), c)")
    )
