"""Versions of another Python: classes and functions rebuilt from source."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import traceback

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offload.classes import loading as loading_module
from offload.classes.definitions import Definition
from offload.classes.hashing import python_tag
from offload.classes.loading import build
from offload.classes.registry import ClassRegistry
from offload.classes.shipping import Shipping
from offload.classes.source import Module, Source
from offload.classes.versions import Record
from offload.errors import CodeRefused, WrongPython
from offload.serializers.pickle import Pickle
from offload.serializers.tree import Tree
from offload.stores.memory import MemoryStore
from tests.classes.shapes import FROM_SOURCE, SHAPES, WITHOUT_SOURCE

RUN = "written_shop"


def registries(store, **more):
    """Return a registry that pushes and one that loads."""
    options = {"mode": "trusted", "ship_source": True, **more}
    return ClassRegistry(store, **options), ClassRegistry(store, **options)


@pytest.fixture
def two(memory):
    return registries(memory)


@pytest.mark.parametrize("name", FROM_SOURCE)
def test_rebuilt_code_behaves_the_same(two, written, elsewhere, name):
    """Classes and functions of every module shape behave the same when rebuilt from source."""
    shape = SHAPES[name]
    module = written(shape.source)
    pushing, loading = two
    code_hash = pushing.push(module.F)
    elsewhere()

    made = loading.pull("F")

    assert made is not module.F
    assert json.loads(json.dumps(eval(shape.expression, {"F": made}))) == shape.value
    assert (made.__module__, made.__qualname__, made.__name__) == (RUN, "F", module.F.__name__)
    assert loading.ship(made) == loading.ship(loading.pull(f"{RUN}.F")) == (f"{RUN}.F", code_hash)
    assert RUN not in sys.modules


@pytest.mark.parametrize("name", WITHOUT_SOURCE)
def test_code_that_source_does_not_show_is_refused(two, written, elsewhere, caplog, name):
    """The producer logs a warning with the reason, and another Python refuses the version."""
    pushing, loading = two
    pushing.push(written(SHAPES[name].source).F)
    assert any(
        each.levelname == "WARNING" and each.message.endswith(WITHOUT_SOURCE[name])
        for each in caplog.records
    )
    elsewhere()
    with pytest.raises(WrongPython, match="no source of it was pushed"):
        loading.pull("F")


@pytest.mark.parametrize("name", SHAPES)
def test_loaded_bytecode_behaves_the_same(two, written, elsewhere, name):
    """On the same Python, where the class itself is shipped, behavior is the same."""
    shape = SHAPES[name]
    pushing, loading = two
    code_hash = pushing.push(written(shape.source).F)
    elsewhere(python_tag())

    made = loading.pull("F")

    assert json.loads(json.dumps(eval(shape.expression, {"F": made}))) == shape.value
    assert loading.ship(made) == (f"{RUN}.F", code_hash)
    recovered = loading.recover_class("F", code_hash)
    assert json.loads(json.dumps(eval(shape.expression, {"F": recovered}))) == shape.value


def test_registered_functions_are_separate_versions(two, written, elsewhere):
    """Registered functions are separate versions, referred to by name and rebuilt from their own
    source.
    """
    pushing, loading = two
    library = written("TAX = 10\ndef total(n): return n + TAX", "written_library")
    module = written(
        "from written_library import total\nclass F:\n    def run(self): return total(1)"
    )
    pushing.register(library.total)
    code_hash = pushing.push(module.F)
    assert [name for name, _ in pushing.stored("F", code_hash).record.needs] == [
        "written_library.total"
    ]
    elsewhere()
    assert loading.pull("F")().run() == 11


# -- versions that depend on each other

CLASSES = "ABCDEF"


@st.composite
def references(draw):
    """Return for each class its base and the classes it uses, at definition or when called."""
    count = draw(st.integers(2, len(CLASSES)))
    any_of = st.sampled_from(CLASSES[:count])
    return [
        {
            "base": draw(st.none() | st.sampled_from(CLASSES[:i])) if i else None,
            "late": sorted(draw(st.sets(any_of, max_size=3))),
            "early": sorted(draw(st.sets(st.sampled_from(CLASSES[:i]), max_size=2))) if i else [],
            "annotations": sorted(draw(st.sets(any_of, max_size=2))),
        }
        for i in range(count)
    ]


def source_of_references(classes):
    lines = ["from __future__ import annotations", "import logging"]
    for name, uses in zip(CLASSES, classes, strict=False):
        lines += [
            f"class {name}({uses['base'] or ''}):",
            f"    logging.getLogger('made').info('{name}')",
            f"    early = [{', '.join(uses['early'])}]",
            *(f"    x{each}: {each}" for each in uses["annotations"]),
            "    @staticmethod",
            "    def seen():",
            f"        return [{', '.join(uses['late'])}]",
        ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("tag", ("cpython-399", python_tag()))
@given(references(), st.data())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_each_version_is_one_class_however_they_refer_to_each_other(
    written, elsewhere, caplog, tag, classes, data
):
    """However classes refer to each other, also in circles, all of them see the same class, and
    each is defined once from source.
    """
    caplog.set_level(logging.INFO, "made")
    pushing, loading = registries(MemoryStore())
    root = data.draw(st.sampled_from(CLASSES[: len(classes)]))
    module = written(source_of_references(classes))
    pushing.push(getattr(module, root))
    elsewhere(tag)
    caplog.clear()
    found = {}
    waiting = [loading.pull(f"{RUN}.{root}")]
    while waiting:
        cls = waiting.pop()
        assert found.setdefault(cls.__name__, cls) is cls
        its = classes[CLASSES.index(cls.__name__)]
        assert [each.__name__ for each in cls.early] == its["early"]
        assert [each.__name__ for each in cls.seen()] == its["late"]
        assert [each.__name__ for each in cls.__bases__] == [its["base"] or "object"]
        near = {*cls.early, *cls.seen(), *cls.__bases__} - {object}
        waiting += [each for each in near if each.__name__ not in found]
        assert all(found.get(each.__name__, each) is each for each in near)
        assert loading.ship(cls)[0] == f"{RUN}.{cls.__name__}"
    names = [record.message for record in caplog.records if record.name == "made"]
    assert sorted(names) == sorted(set(names))


# -- shipping


def test_instances_return_with_the_version_they_came_with(two, written, elsewhere):
    """A worker of another Python returns instances under the version it received, and pushes
    nothing.
    """
    module = written("""
        class Part:
            def __init__(self, x):
                self.x = x

        class F:
            def __init__(self):
                self.part = Part(2)
    """)
    pushing, loading = two
    pushing.register(module)
    sent = [
        kind(Shipping(pushing)).encode([module.F(), module.Part, module.F()])
        for kind in (Tree, Pickle)
    ]
    elsewhere()
    for kind, payload in zip((Tree, Pickle), sent, strict=True):
        there, part, other = kind(Shipping(loading)).decode(
            memoryview(payload.head), payload.buffers
        )
        assert type(there) is type(other)
        assert type(there.part) is part
        assert part.__module__ == RUN
        back = kind(Shipping(loading)).encode([there, part, other])
        assert bytes(back.head) == bytes(payload.head)
    assert loading._versions.counters.snapshot()["classes_pushed"] == 0
    assert loading.check_status(type(there)) == "synced"
    assert loading.get_class_hash(part) == pushing.get_class_hash(module.Part)


def test_a_subclass_of_a_rebuilt_class_can_be_shipped(two, written, elsewhere, defined):
    """Code may derive from a class rebuilt from source and ship the result."""
    module = written("""
        class F:
            def run(self):
                return "base"
    """)
    pushing, loading = two
    pushing.push(module.F)
    elsewhere()
    base = loading.pull("F")
    names = {"__name__": "__main__", "Base": base}
    exec("class Derived(Base):\n    def run(self):\n        return [super().run()]", names)

    code_hash = loading.push(names["Derived"])

    record = next(each for each in loading.versions("__main__.Derived"))
    assert record.hash == code_hash
    assert record.needs == ((f"{RUN}.F", pushing.get_class_hash(module.F)),)
    assert names["Derived"]().run() == ["base"]


def test_tracebacks_show_the_lines_of_source(two, written, elsewhere):
    """A worker's log shows the source lines where shipped code failed."""
    module = written("""
        class F:
            def run(self):
                raise ValueError("no")  # here it is
    """)
    two[0].push(module.F)
    elsewhere()
    try:
        two[1].pull("F")().run()
    except ValueError:
        shown = traceback.format_exc()
    assert 'raise ValueError("no")  # here it is' in shown
    assert f"{RUN}.F@" in shown


def test_recovered_classes_are_others(two, written, elsewhere):
    """recover_class rebuilds a version from source, too; there is no hash to compare."""
    module = written(SHAPES["cycle"].source)
    code_hash = two[0].push(module.F)
    elsewhere()
    pulled = two[1].pull("F")
    recovered = two[1].recover_class("F", code_hash)
    assert recovered is not pulled
    assert recovered().run() is True
    assert two[1].check_status(pulled) == "synced"


def test_classes_with_one_pydantic_model_in_two_places(two, written, elsewhere):
    """pydantic models that refer to each other by name are complete once both exist."""
    module = written(SHAPES["pydantic with texts as annotations"].source)
    two[0].push(module.Part)
    elsewhere()
    part = two[1].pull("Part")
    assert part.model_validate({"n": "3", "whole": {"parts": [{"n": 4}]}}).whole.parts[0].n == 4
    whole = part(whole={}).whole
    assert type(whole) is two[1].pull("F", two[0].get_class_hash(module.F))


# -- side effects


def test_modules_are_known_only_while_definitions_run(two, written, elsewhere, monkeypatch):
    """Decorators find the module under its name while definitions run; afterwards sys.modules is as
    before.
    """
    module = written("""
        import sys

        def found(cls):
            cls.found = vars(sys.modules[cls.__module__]).get("CONSTANT")
            return cls

        CONSTANT = [5]

        @found
        class F:
            def run(self):
                return CONSTANT
    """)
    two[0].push(module.F)
    elsewhere()
    older = type(sys)(RUN)
    monkeypatch.setitem(sys.modules, RUN, older)
    made = two[1].pull("F")
    assert made.found == made().run() == [5]
    assert made.found is made().run()
    assert sys.modules[RUN] is older


def test_two_threads_get_one_class(two, written, elsewhere):
    """Threads that load the same version at once get the same class."""
    module = written(SHAPES["nested"].source)
    two[0].push(module.F)
    elsewhere()
    together = threading.Barrier(4)
    made = []

    def pull():
        together.wait()
        made.append(two[1].pull(f"{RUN}.F"))

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(made) == 4
    assert len(set(made)) == 1


# -- errors


def record(name=f"{RUN}.F"):
    return Record(name, "0" * 64, "", 0, "cpython-399", "class", 0.0)


class NoLoader:
    registry = app = None

    def __init__(self):
        self.made, self.waiting = {}, {}

    def load(self, name, code_hash):
        raise AssertionError(name)

    def declare(self, name, code_hash, obj):
        self.made[name, code_hash] = obj


def source(text, **module):
    definition = Definition(RUN, "F", text, "shop.py", 1, future=False, aliases=[])
    return Source(
        (RUN, "F"), modules=[Module(RUN, **module)], constants=NOTHING, definitions=[definition]
    ).to_bytes()


NOTHING = "gAR9lC4="  # an empty dict


@pytest.mark.parametrize(
    ("text", "module", "said"),
    (
        ("class F:\n    x = = 1\n", {}, "syntax"),
        ("class F(Base):\n    pass\n", {}, "NameError: name 'Base' is not defined"),
        ("class F: pass", {"imports": {"x": ["no_such_package"]}}, "No module named 'no_such_pack"),
        ("class F: pass", {"imports": {"x": ["json", "gone"]}}, "has no attribute 'gone'"),
    ),
)
def test_source_that_does_not_run_is_reported(text, module, said):
    """For newer syntax or a missing package, the error names both Pythons, the version, and the
    cause.
    """
    before = dict(sys.modules)
    with pytest.raises(WrongPython, match=said) as raised:
        build(source(text, **module), record(), NoLoader())
    assert f"{RUN}.F@000000000000" in str(raised.value)
    assert "cpython-399" in str(raised.value)
    assert python_tag() in str(raised.value)
    assert sys.modules == before


def test_source_without_the_definition_is_refused():
    """Source is refused unless it defines the class or function."""
    with pytest.raises(CodeRefused, match="does not define it"):
        build(source("F = 1"), record(), NoLoader())
    with pytest.raises(CodeRefused, match="does not define it"):
        build(source("G = 1"), record(), NoLoader())
    with pytest.raises(CodeRefused, match=r"can't be read: .* push the class again"):
        build(b"{}", record(), NoLoader())


def test_a_failure_leaves_nothing_behind(two, written, elsewhere, monkeypatch):
    """A version that couldn't be rebuilt can be loaded again later."""
    module = written(SHAPES["cycle"].source)
    two[0].push(module.F)
    elsewhere()
    real = loading_module._Builder._run

    def run(building, definition):
        if definition.name == "F":
            raise MemoryError
        real(building, definition)

    with monkeypatch.context() as patch:
        patch.setattr(loading_module._Builder, "_run", run)
        with pytest.raises(WrongPython, match="MemoryError"):
            two[1].pull("F")
    assert two[1].pull("F")().run() is True


def test_the_error_for_missing_source(memory, written, elsewhere):
    """Without source, or where it may not be used, the error says what to do in each case."""
    module = written(SHAPES["method"].source)
    pushing, loading = registries(memory)
    without = ClassRegistry(memory, mode="trusted").push(module.F)
    own = python_tag()
    elsewhere()

    with pytest.raises(WrongPython, match="no source of it was pushed") as raised:
        loading.load(f"{RUN}.F", without)
    assert own in str(raised.value)
    assert "cpython-399" in str(raised.value)
    assert "offload_ship_source is set" in str(raised.value)
    with pytest.raises(WrongPython):
        loading.check(f"{RUN}.F", without)
    assert loading.verify(f"{RUN}.F", without).python == own

    elsewhere(own)
    pushing.push(module.F)  # now with its source
    elsewhere()
    assert loading.load(f"{RUN}.F", without)().run(2) == 6
    with pytest.raises(WrongPython, match="set offload_ship_source") as raised:
        ClassRegistry(memory, mode="trusted").pull("F")
    assert "not set here" in str(raised.value)


def test_dependencies_are_checked_before_anything_runs(two, written, elsewhere, caplog):
    """If a base class has no source, the class fails before its own source runs."""
    caplog.set_level(logging.INFO, "made")
    module = written("""
        import logging

        def make():
            class Base:
                pass
            return Base

        Base = make()

        class F(Base):
            logging.getLogger("made").info("F")
    """)
    two[0].push(module.F)
    elsewhere()
    caplog.clear()
    with pytest.raises(WrongPython, match=r"Base@.* no source of it was pushed"):
        two[1].pull("F")
    assert "F" not in [each.message for each in caplog.records if each.name == "made"]


def test_a_version_needs_only_what_its_source_names(two, written, elsewhere):
    """A version needs only what its source names, not what only bytecode refers to."""
    module = written("""
        def make():
            class Unwritten:
                pass
            return Unwritten

        class F:
            x = 2

        F.made = make()
    """)
    code_hash = two[0].push(module.F)
    [(needed, _)] = two[0].versions("F")[-1].needs
    assert needed.endswith("Unwritten")
    elsewhere()
    assert two[1].check("F", code_hash).hash == code_hash
    assert two[1].pull("F")().x == 2


def test_code_without_a_file_has_no_source(tmp_path):
    """``python -c`` pushes the class; another Python reports that it has no source."""
    url = f"file://{tmp_path}/store"
    code = (
        "exec('class F:\\n    def run(self):\\n        return 1\\n')\n"
        "from offload import ClassRegistry\n"
        f"print(ClassRegistry({url!r}, mode='trusted', ship_source=True).push(F))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    registry = ClassRegistry(url, mode="trusted", ship_source=True)
    [found] = registry.versions("F")
    assert found.hash == done.stdout.strip()
    assert found.source == ""
    assert json.loads(found.to_bytes())["source_size"] == 0
    assert registry.pull("F")().run() == 1


# -- tracebacks


@pytest.mark.parametrize("tag", ("cpython-399", python_tag()))
def test_tracebacks_show_source_lines_however_a_version_was_loaded(two, written, elsewhere, tag):
    """Tracebacks show source lines of bytecode versions and their helpers, too."""
    module = written("""
        def helper(x):
            # a comment
            return check(x)  # in a helper

        class F:
            class Inner:
                def run(self):
                    raise KeyError("inner")  # within a class

            def run(self):

                return helper(self)  # in the class

        def check(x):
            raise ValueError("no")  # here it is
    """)
    two[0].push(module.F)
    elsewhere(tag)
    made = two[1].pull("F")
    with pytest.raises(ValueError, match="no") as raised:
        made().run()
    frames = traceback.extract_tb(raised.value.__traceback__)[1:]
    version = f"{RUN}.F@{two[0].get_class_hash(module.F)[:12]}"
    assert {frame.filename for frame in frames} == {f"<{version} written_shop.py>"}
    assert [frame.line for frame in frames] == [
        "return helper(self)  # in the class",
        "return check(x)  # in a helper",
        'raise ValueError("no")  # here it is',
    ]
    with pytest.raises(KeyError) as inner:
        made.Inner().run()
    [*_, last] = traceback.extract_tb(inner.value.__traceback__)
    assert last.line == 'raise KeyError("inner")  # within a class'


def test_tracebacks_name_the_file_where_no_source_was_pushed(memory, written, elsewhere):
    """Class, short hash, and file are known from the bytecode."""
    module = written("class F:\n    def run(self):\n        raise ValueError('bare')\n")
    code_hash = ClassRegistry(memory, mode="trusted").push(module.F)
    elsewhere(python_tag())
    with pytest.raises(ValueError, match="bare") as raised:
        ClassRegistry(memory, mode="trusted").pull("F")().run()
    [*_, last] = traceback.extract_tb(raised.value.__traceback__)
    assert last.filename == f"<{RUN}.F@{code_hash[:12]} written_shop.py>"
    assert (last.lineno, last.line) == (3, "")
