"""The source that is pushed with a version."""

from __future__ import annotations

import ast
import asyncio
import json
import linecache
import logging
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from types import ModuleType

import pytest

from offload.classes.definitions import definition_of
from offload.classes.registry import ClassRegistry
from offload.classes.scope import Scope
from offload.classes.source import Source, diff, source_of
from offload.classes.versions import name_of


def source(obj, modules=()):
    """Return the source of *obj*, or None if there is none."""
    scope = Scope(modules).including(obj.__module__)
    content = source_of(obj, scope, lambda other: (name_of(other), "0" * 64))
    return Source.from_bytes(content) if content else None


def texts(obj, modules=()):
    found = source(obj, modules)
    return None if found is None else [each.text for each in found.definitions]


@pytest.fixture
def notebook(monkeypatch):
    """Return a function that runs a notebook's cell and returns its names."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    names = []

    def run(cell, flags=0):
        cell = textwrap.dedent(cell).lstrip()
        name = f"/tmp/ipykernel_4711/{len(names)}.py"
        names.append(name)
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        made = eval(compile(cell, name, "exec", flags, dont_inherit=True), vars(main))
        if made is not None:
            asyncio.run(made)
        return main

    yield run
    for name in names:
        linecache.cache.pop(name, None)


@pytest.mark.parametrize("file", ("<dynamic-code>", "<string>", None))
@pytest.mark.parametrize("number", (1, 2))
def test_a_loaded_class_has_the_source_of_its_own_version(tmp_path, monkeypatch, file, number):
    """Loaded code has its own source or none, under any file name."""
    text = "class F:\n    def run(self):\n        return {}, F\n"
    path = tmp_path / "shop.py"
    path.write_text(text.format(1))
    shop = ModuleType("shop")
    shop.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "shop", shop)
    exec(compile(text.format(number), file or str(path), "exec"), vars(shop))
    expected = [text.format(1)] if number == 1 else None
    assert texts(shop.F) == expected


# -- notebooks


@pytest.mark.parametrize(
    "body", ("def run(self):\n        return {}", "x = {}", "x: int = {}", "x = len('abc') + {}")
)
def test_the_cell_that_defined_a_class_is_used(notebook, body):
    """A cell that is changed and run again defines another class with its own source."""
    cell = "class F:\n    " + body
    first = notebook(cell.format(1)).F
    assert texts(first) == [cell.format(1) + "\n"]
    second = notebook(cell.format(2)).F
    assert texts(second) == [cell.format(2) + "\n"]
    # The first has the right source or none: without methods, a class does not know its cell.
    assert texts(first) in ([cell.format(1) + "\n"], None)
    third = notebook(cell.format(1)).F
    assert texts(third) == [cell.format(1) + "\n"]


def test_a_cell_that_failed_before_its_class_is_not_used(notebook):
    """A cell that raised before its class was defined isn't used."""
    main = notebook("""
        class F:
            x = 1
    """)
    with pytest.raises(ZeroDivisionError):
        notebook("""
            0 / 0
            class F:
                x = 2
        """)
    assert texts(main.F) == ["class F:\n    x = 1\n"]


def test_cells_are_put_in_an_order_in_which_they_run(notebook):
    """Definitions come after those they need immediately, also if their cell ran again later."""
    notebook("""
        def inner(cls):
            return cls


        def marked(cls):
            return inner(cls)
    """)
    main = notebook("""
        @marked
        class F:
            def run(self):
                return after()
    """)
    notebook("""
        def inner(cls):
            cls.mark = 1
            return cls
    """)
    notebook("""
        def after():
            return 3
    """)
    found = source(main.F)
    order = [each.name for each in found.definitions]
    assert order.index("inner") < order.index("F")
    assert order.index("marked") < order.index("F")
    assert set(order) == {"inner", "marked", "F", "after"}


def test_types_of_other_cells(notebook):
    """Imports and type variables may be in separate cells; named tuples have no source."""
    notebook("from types import FunctionType as Function\nfrom typing import Generic, TypeVar")
    notebook("from collections import namedtuple\nT = TypeVar('T')\nP = namedtuple('P', 'x y')")
    main = notebook("""
        class F(Generic[T]):
            kinds = [Function, P]
    """)
    found = source(main.F)
    assert [each.text for each in found.definitions] == [
        "class F(Generic[T]):\n    kinds = [Function, P]\n"
    ]
    assert found.modules[0].shown["T"] == "~T"
    module, name = found.modules[0].imports["Function"]
    assert (module, getattr(types, name)) == ("types", types.FunctionType)
    assert texts(main.P) is None


def test_cells_that_await(notebook):
    """Definitions in a cell with top-level await are found."""
    cell = "def F():\n    return 1\n"
    main = notebook(
        "import asyncio\n" + cell + "await asyncio.sleep(0)\n", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    )
    assert texts(main.F) == [cell]


def test_annotations_are_strings_after_a_future_import(notebook):
    """Notebooks apply ``from __future__ import annotations`` to all later cells."""
    import __future__

    flag = __future__.annotations.compiler_flag
    main = notebook("class F:\n    x: int\nclass G:\n    x: 'int'\n", flag)
    assert [source(cls).definitions[0].future for cls in (main.F, main.G)] == [True, True]
    main = notebook("class F:\n    x: int\nclass G:\n    x: 'int'\n")
    assert [source(cls).definitions[0].future for cls in (main.F, main.G)] == [False, False]


# -- available source


def test_an_edited_file_is_not_used(written):
    """Source is that of the pushed code, or there is none."""
    module = written("class F:\n    def run(self):\n        return 1\n")
    Path(module.__file__).write_text("class F:\n    def run(self):\n        return 2  # longer\n")
    assert texts(module.F) is None


@pytest.mark.parametrize(
    "made",
    (
        "def make():\n    class F:\n        pass\n    return F\nF = make()",
        "F = lambda x: x",
        "def make():\n    def F():\n        pass\n    return F\nF = make()",
        "exec('class F:\\n    def run(self): return 1')",
        "exec('class F: pass')",
        "exec('def F(): pass')",
        "F = type('F', (), {})",
    ),
)
def test_nested_definitions_have_no_source(written, made):
    """Code defined in a function, as a lambda, or by exec has no source, only bytecode."""
    module = written(made)
    assert texts(module.F) is None


def test_ambiguous_source_is_not_guessed(written, caplog):
    """Tables that were filled later, and functions composed of others, have no source, with a
    reason.
    """
    caplog.set_level(logging.INFO, "offload")
    module = written("""
        import functools

        TABLE = {"a": lambda x: x}

        @functools.singledispatch
        def shown(x):
            return "?"

        @shown.register
        def _(x: int):
            return "int"

        def with_table():
            return TABLE["a"](1)

        def with_several():
            return shown(1)
    """)
    assert texts(module.with_table) is None
    assert "<lambda> is within a constant" in caplog.text
    assert texts(module.with_several) is None
    assert "shown combines several functions" in caplog.text


def test_a_replaced_class_keeps_its_source(written):
    """Of two classes with one name in a file, each has its own source."""
    module = written("""
        class F:
            def run(self):
                return 1

        first = F

        class F:
            def run(self):
                return 2
    """)
    assert "return 1" in texts(module.first)[0]
    assert "return 2" in texts(module.F)[0]


def test_the_decorator_that_registers_is_left_out(written):
    """The decorator that registers is omitted, because registering happens at the push, not at the
    load.
    """
    module = written("""
        import functools
        from offload import ClassRegistry

        registry = ClassRegistry("memory://registers")
        register = registry.register

        def other(obj):
            return obj

        @registry.register
        class A:
            pass

        @other
        @registry.register(
            push="manual",
        )
        @other
        def b():
            pass

        @register
        @other
        class C:
            def run(self):
                return b
    """)
    assert texts(module.A) == ["class A:\n    pass\n"]
    assert texts(module.b)[-1] == "@other\n\n\n\n@other\ndef b():\n    pass\n"  # same lines
    assert any(each.startswith("@other\nclass C:\n") for each in texts(module.C))
    for obj in (module.A, module.b, module.C):
        found = source(obj)
        assert {"registry", "register"}.isdisjoint(
            [*found.modules[0].shown, *(each.name for each in found.definitions)]
        )


def test_only_used_names_are_included(written):
    """Names are found by their use in bytecode, not by spelling."""
    module = written("""
        import threading

        lock = threading.Lock()
        unused = 1
        used = 2

        def helper():
            return used

        def other():
            return unused

        def F(lock):
            unused = [lock for lock in "ab"]
            def inner():
                return helper(), unused.lock
            return inner
    """)
    found = source(module.F)
    assert sorted(each.name for each in found.definitions) == ["F", "helper"]
    assert found.modules[0].shown == {"used": "2"}
    assert found.modules[0].imports == {}


def test_shipped_modules_are_included(written):
    """Functions with the same name in several modules are distinguished by module."""
    written("LIMIT = 1\ndef run():\n    return ['a', LIMIT]\n", "written_pack.a")
    written(
        "from written_pack import a\nfrom .a import run as other\n"
        "def run():\n    return ['b', a.run(), other()]\n",
        "written_pack.b",
    )
    module = written("""
        import written_pack.a
        import written_pack.b as b

        def run():
            return ["F", written_pack.a.run(), b.run()]

        class F:
            def run(self):
                return run()
    """)
    found = source(module.F, ("written_pack",))
    assert sorted((each.module, each.name) for each in found.definitions) == [
        ("written_pack.a", "run"),
        ("written_pack.b", "run"),
        ("written_shop", "F"),
        ("written_shop", "run"),
    ]


# -- diffs


VERSION = """
    import os
    from math import sqrt

    LIMIT = {limit}
    NAMES = {{"b", "a", "c"}}

    class Other:
        pass

    def later(x):
        return sqrt(x) + LIMIT  # a comment

    def earlier(x):
        return later(x), NAMES, os.sep, Other

    class F:
        '''What it is.'''

        def run(self, x):
            return earlier(x){more}
"""


def test_diffs_are_minimal(written):
    """Definitions appear as in their file, constants and imports by name."""
    first = written(VERSION.format(limit=3, more="")).F
    one = source_of(first, Scope(["written_shop"]), lambda it: (name_of(it), "1" * 64))
    second = written("\n\n\n" + VERSION.format(limit=4, more=", 1")).F
    two = source_of(second, Scope(["written_shop"]), lambda it: (name_of(it), "1" * 64))
    assert diff(one, one, "a", "b") == ""
    assert diff(one, two, "a", "b").splitlines() == [
        "--- a",
        "+++ b",
        "@@ -1,7 +1,7 @@",
        " # written_shop",
        " from math import sqrt",
        " import os",
        "-LIMIT = 3",
        "+LIMIT = 4",
        " NAMES = {'a', 'b', 'c'}",
        " Other = <written_shop.Other@111111111111>",
        " ",
        "@@ -15,4 +15,4 @@",
        "     '''What it is.'''",
        " ",
        "     def run(self, x):",
        "-        return earlier(x)",
        "+        return earlier(x), 1",
    ]


def test_diffs_do_not_depend_on_the_process(tmp_path):
    """Set order and object addresses don't change the text."""
    (tmp_path / "written_seeds.py").write_text(
        textwrap.dedent(VERSION.format(limit="object()", more=""))
    )
    code = (
        "from offload.classes.source import Source, diff, source_of\n"
        "from offload.classes.scope import Scope\n"
        "import written_seeds as m\n"
        "found = source_of(m.F, Scope(['written_seeds']), lambda it: (it.__name__, '1' * 64))\n"
        "print(diff(Source(('', '')).to_bytes(), found, '', ''))"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{Path.cwd()}:{tmp_path}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(shown) == 1
    assert "LIMIT = <object object>" in shown.pop()


def test_long_constants_are_abbreviated(written):
    """A long table is abbreviated, but a change in it is shown."""
    shown = []
    for last in (1, 2):
        module = written(f"TABLE = [*range(5000), {last}]\ndef F():\n    return TABLE\n")
        shown.append(source(module.F).modules[0].shown["TABLE"])
    assert all(len(each) < 2100 for each in shown)
    assert shown[0] != shown[1]


def test_source_is_stored_only_with_ship_source(memory, written):
    """Source may be secret, so it is pushed only with ship_source."""
    module = written("class F:\n    secret = 1\n")
    with_it = ClassRegistry(memory, mode="trusted", ship_source=True)
    without = ClassRegistry(memory, mode="trusted")
    without.push(module.F)
    assert without.versions("F")[-1].source == ""
    with_it.push(module.F)
    [record] = with_it.versions("F")
    assert record.source_size > 0
    stored = with_it.stored("F", record.hash)
    assert "secret = 1" in json.loads(stored.source)["definitions"][0]["text"]


def test_definitions_know_where_they_are(written):
    """A definition's file and line are those of its first decorator."""
    module = written("""
        import functools

        if True:
            @functools.lru_cache(
                maxsize=None
            )
            def F():
                return 1
    """)
    found = definition_of(module.F)
    assert (found.file, found.line) == ("written_shop.py", 4)  # of the "if" that it starts with
    assert found.text.startswith("if True:\n    @functools.lru_cache(")


def test_a_push_without_source_logs_the_reason(memory, defined, caplog):
    """One warning names the class and the reason; workers of other Pythons need source."""
    registry = ClassRegistry(memory, mode="trusted", ship_source=True)
    made = [defined("class WithoutSource: pass", "WithoutSource") for _ in range(2)]
    for cls in made:
        registry.push(cls)
    [record] = [each for each in caplog.records if "without its source" in each.message]
    assert record.levelname == "WARNING"
    assert "__main__.WithoutSource" in record.message


@pytest.mark.parametrize("by_statement", (True, False))
def test_a_cell_may_be_compiled_as_a_whole_or_statement_by_statement(by_statement):
    """IPython compiles each statement separately, which yields different code where modules are
    used.
    """
    source = "import math as mm\nclass F:\n    def run(self, x): return mm.floor(x)\n"
    file = f"<ipython-input-7-{by_statement}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names = {"__name__": "__main__", "In": [source], "__file__": file}
    body = ast.parse(source).body
    for nodes in [[node] for node in body] if by_statement else [body]:
        exec(compile(ast.Module(nodes, []), file, "exec", dont_inherit=True), names)
    found = source_of(names["F"], Scope(), lambda it: (name_of(it), "1" * 64))
    assert Source.from_bytes(found).definitions[0].text == source.partition("\n")[2]


def test_a_class_redefined_with_source_is_pushed_at_once(memory, notebook):
    """A class without source isn't considered complete for a minute: the next cell can add it."""
    registry = ClassRegistry(memory, mode="trusted", ship_source=True)
    cell = "class F:\n    def run(self): return 1\n"
    main = notebook(f"exec({cell!r})")
    name, code_hash = registry.ship(main.F)
    assert registry.stored(name, code_hash).source == b""
    main = notebook(cell)
    assert registry.ship(main.F) == (name, code_hash)
    assert Source.from_bytes(registry.stored(name, code_hash).source).definitions[0].text == cell
