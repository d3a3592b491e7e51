from __future__ import annotations

import tracemalloc
from collections import OrderedDict, deque
from types import SimpleNamespace

import numpy as np
import pytest
from celery import Celery, chain, group
from celery.canvas import Signature
from hypothesis import given
from hypothesis import strategies as st

from offload import InvalidRef, LostValue, Ref
from offload.hooks import paths
from offload.hooks.message import restore_refs
from offload.hooks.paths import (
    container_without_paths,
    contains,
    is_signature,
    label,
    replace_each,
)
from offload.serializers.plain import MANY, is_data

app = Celery("paths", broker="memory://", set_as_current=False)


@app.task(name="paths.task", shared=False)
def task(*args):
    return args


def replace_at(root, path, node):
    return replace_each(root, [path], lambda _old, _path: node)


def test_a_node_is_replaced_and_the_root_stays():
    """Containers on the way are copied, the root stays as it was, and everything else is shared."""
    other = {"x": 1}
    root = {"args": [[1, {"a": (1, 2, other)}], other], "kwargs": {}}
    before = repr(root)
    new = replace_at(root, ["args", 0, 1, "a", 1], "new")
    assert new == {"args": [[1, {"a": (1, "new", {"x": 1})}], {"x": 1}], "kwargs": {}}
    assert repr(root) == before
    assert new["args"][1] is other
    assert new["args"][0][1]["a"][2] is other


def test_several_at_once():
    """Each place gets what is made for it from the node that was there."""
    root = {"args": (1, 2, [3]), "kwargs": {"k": 4}}
    made = replace_each(
        root,
        [["args", 0], ["args", 2, 0], ["kwargs", "k"]],
        lambda node, path: (node, list(path)),
    )
    assert made == {
        "args": ((1, ["args", 0]), 2, [(3, ["args", 2, 0])]),
        "kwargs": {"k": (4, ["kwargs", "k"])},
    }


def test_an_object_at_two_places_is_changed_at_one():
    """Of a list that occurs twice, only the place that was meant changes."""
    shared = [1, 2]
    root = {"args": [shared, shared]}
    assert replace_at(root, ["args", 1, 0], "new") == {"args": [[1, 2], ["new", 2]]}
    assert shared == [1, 2]


def test_the_same_object_at_two_places_is_changed_at_both():
    """A list that occurs twice changes in both places if both are meant."""
    shared = [1, 2]
    made = replace_each(
        {"args": [shared, shared]}, [["args", 0, 0], ["args", 1, 1]], lambda _, path: path[1]
    )
    assert made == {"args": [[0, 2], [1, 1]]}


def test_signatures_stay_signatures():
    """A signature on the way is copied as a signature; the caller's is not changed."""
    steps = chain(task.s([1]), group(task.s(2), task.s(3)))
    root = {"chain": [steps]}
    new = replace_at(root, ["chain", 0, "kwargs", "tasks", 0, "args", 0], "new")
    copy = new["chain"][0]
    assert type(copy) is type(steps)
    assert copy.tasks[0].args[0] == "new"
    assert steps.tasks[0].args[0] == [1]
    assert copy.app is steps.app


def test_whole_numbers_as_keys_are_found_as_text():
    """Integer keys of a dict are found as text, because JSON converts them."""
    assert replace_at({"args": [{"7": 1}]}, ["args", 0, 7], "new") == {"args": [{"7": "new"}]}


@pytest.mark.parametrize(
    "path", (["args", 5], ["args", "x"], ["none"], ["args", 0, 0], ["kwargs", "a", "b"])
)
def test_a_path_that_leads_nowhere_is_refused(path):
    """InvalidRef names the path where a reference was expected."""
    with pytest.raises(InvalidRef, match="no reference stands at"):
        replace_at({"args": [1], "kwargs": {"a": "text"}}, path, "new")


class Overriding(dict):
    def values(self):
        raise AssertionError("this may do anything")


def test_contains():
    """Refs are found in containers, also of derived classes, at any depth, but not in other objects
    or by calling what a derived class overrides.
    """
    ref = Ref.local(1)
    assert contains(ref, (Ref,))
    assert contains([1, {"a": (2, [ref])}], (Ref,))
    assert not contains([1, {"a": (2, ["ref"])}], (Ref,))
    for each in ({ref}, deque([ref]), OrderedDict(a=ref), [OrderedDict(a={"b": (ref,)})]):
        assert contains(each, (Ref,))
    assert not contains(SimpleNamespace(a=ref), (Ref,))
    assert contains(Overriding(a=ref), (Ref,))
    deep = [ref]
    for _ in range(5000):
        deep = [deep]
    assert contains(deep, (Ref,))
    cycle = []
    cycle.append(cycle)
    assert not contains(cycle, (Ref,))


def test_container_without_paths(monkeypatch):
    """It finds the set or other container with a Ref that no path leads to, and looks once at what
    several of them share.
    """
    ref = Ref.local(1)
    holding = {ref}
    assert container_without_paths([1, {"a": (holding,)}], (Ref,)) is holding
    assert container_without_paths([ref, {"a": ref}, {1}], (Ref,)) is None
    assert container_without_paths(ref, (Ref,)) is None
    looked = []
    monkeypatch.setattr(paths, "contains", lambda *args: looked.append(args) or contains(*args))
    shared = [1]
    assert container_without_paths([deque([shared]) for _ in range(1000)], (Ref,)) is None
    assert len(looked) == 1


def test_contains_visits_each_container_once():
    """Shared containers are visited once: doubling a list 100 times stays fast."""
    shared = [1]
    for _ in range(100):
        shared = [shared, shared, {"a": shared}]
    assert not contains(shared, (Ref,))


KINDS = (Ref, LostValue, Signature)


def contains_naively(value, seen):
    if isinstance(value, KINDS):
        return True
    if not isinstance(value, (list, tuple, dict, set)) or id(value) in seen:
        return False
    seen.add(id(value))
    items = value.values() if isinstance(value, dict) else value
    return any(contains_naively(item, seen) for item in items)


@st.composite
def containers(draw):
    """Containers, many or few, that share others, and perhaps one of the kinds sought."""
    lost = LostValue.of(Ref.local(1), ValueError())
    made = [draw(st.sampled_from([1, "text", None, b"", {1}, {Ref.local(1)}]))]
    made.append(draw(st.sampled_from([1, Ref.local(1), lost, task.s(1), [], {}, object()])))
    for _ in range(draw(st.integers(1, 6))):
        width = draw(st.sampled_from([1, 2, 3, MANY - 1, MANY + 1, 2 * MANY]))
        old = list(made)
        for at in range(width):
            chosen = draw(st.lists(st.sampled_from(old), max_size=3)) if at < 3 else [old[-1]]
            kind = draw(st.sampled_from([list, tuple, dict])) if at < 3 else list
            made.append(dict(enumerate(chosen)) if kind is dict else kind(chosen))
        made.append(made[-width:])
    if draw(st.booleans()) and type(made[-1]) is list:
        made[-1].append(made[-1])  # a cycle
    return made[-1]


@given(containers())
def test_contains_finds_the_same_in_many_containers(value):
    """However many containers there are, shared or cyclic, the answer is that of a search through
    all of them.
    """
    expected = contains_naively(value, set())
    assert contains(value, KINDS) == expected
    assert contains(value, KINDS, is_data) == expected


def test_contains_in_many_containers_takes_time_for_each_once():
    """Levels of many containers that each hold all of the next level take no exponential time."""
    level = [[1] for _ in range(MANY + 1)]
    for _ in range(20):
        level = [level[:] for _ in range(MANY + 1)]
    assert not contains(level, KINDS)
    level[0].append(Ref.local(1))
    assert contains(level, KINDS)


@pytest.mark.parametrize("data", (None, is_data), ids=("pickle", "json"))
def test_contains_copies_no_array(data):
    """Searching many containers takes no memory for the arrays and bytes in them."""
    rows = [{"array": np.zeros(2**17), "bytes": bytes(2**20)} for _ in range(MANY + 10)]
    tracemalloc.start()
    try:
        assert not contains(rows, KINDS, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_is_signature():
    """A dict is a signature only where plain dicts are allowed, and only with all keys."""
    signature = task.s(1)
    assert is_signature(signature)
    assert is_signature(dict(signature), plain=True)
    assert not is_signature(dict(signature))
    assert not is_signature({"task": "x", "args": [], "kwargs": {}}, plain=True)


@pytest.mark.parametrize(
    "odd", ({"task": 3}, {"args": 7}, {"args": {"a": 1}}, {"kwargs": ["a"]}, {"options": 4})
)
def test_dicts_with_other_content_are_no_signature(odd):
    """A dict with a signature's keys but other content is data, also next to signatures."""
    assert is_signature({**task.s(1), "args": None, "kwargs": None, "options": None}, plain=True)
    assert not is_signature({**task.s(1), **odd}, plain=True)


@pytest.mark.parametrize(
    ("path", "parameters", "text"),
    (
        (["args", 0], ("frame",), "frame"),
        (["args", 1], ("frame",), "args[1]"),
        (["args", 0, "a", 2], ("frame",), "frame['a'][2]"),
        (["kwargs", "config", "table"], (), "config['table']"),
        (["chain", 0, "args", 1], ("frame",), "chain[0]['args'][1]"),
        ([], (), "message"),
    ),
)
def test_label(path, parameters, text):
    """A path is formatted in readable form."""
    assert label(path, parameters) == text


def test_a_malformed_message_of_lists_that_share_each_other():
    """Restoring the references of a malformed message visits each list a bounded number of times,
    also if it contains itself.
    """
    nested = [{"__offload__": "offload:1?n=1&m=" + "0" * 32}]
    for _ in range(40):
        nested = [nested, nested]
    cycle = [nested]
    cycle.append(cycle)
    parts, name, held = restore_refs({"args": cycle, "kwargs": {}}, {"v": 2, "refs": 5})
    found = parts["args"]
    while isinstance(found, list):
        found = found[0]
    assert isinstance(found, Ref)
    assert (name, held) == ("", [])
