"""Which calls of a function are equal."""

from __future__ import annotations

import base64
import sys
import types
from datetime import datetime
from functools import partial
from operator import itemgetter

import numpy as np
import pytest

from offload.classes.scope import Scope
from offload.content.holds import Hold
from offload.content.manifest import pack
from offload.encryption.blobs import BlobCipher
from offload.encryption.keys import Keyring
from offload.errors import SerializationError
from offload.memo.keys import Function, NotRemembered, digest_of_value
from offload.stores.memory import MemoryStore
from tests.support.content import make_content

SCOPE = Scope()


@pytest.fixture
def content():
    return make_content(MemoryStore("keys"))


@pytest.fixture
def key(content):
    """Return the key of a call of *function*, or of `given`."""

    def key(*args, function=None, **kwargs):
        function = function or Function("task", "given", given)
        return function.key_of(args, kwargs, serializers=content.serializers, scope=SCOPE)

    return key


def key_text(key):
    return "aes256:" + base64.b64encode(key).decode()


def given(a, b=(1, 2), *more, c=None, **others):
    """Take every kind of argument."""


def test_how_an_argument_is_passed_does_not_count(key):
    """Arguments passed by position, by keyword, or as a default make equal calls."""
    keys = {key(1), key(a=1), key(1, (1, 2)), key(a=1, b=(1, 2)), key(1, c=None)}
    assert len(keys) == 1
    assert key(1, x=1, y=2) == key(1, y=2, x=1)


VALUES = (
    *(1, True, 1.0, "1", b"1", None, [1], (1,), [True], {"a": 1}, {"a": 1.0}, {"1": 1}, {1: 1}),
    *(0.0, -0.0, float("nan"), float("inf"), 2**70, "", [], {}, (), [[]], "None", {1}),
    *({"a": 1, "b": 2}, {"b": 2, "a": 1}, datetime(2026, 1, 1), "2026-01-01T00:00:00", "\ud800"),
    *(np.zeros(2), np.zeros(2, "f4"), np.zeros((2, 1)), np.zeros(3), [0.0, 0.0], 0j),
)


def test_different_values_are_different_arguments(key):
    """Values that differ in type or content, even if they compare equal, make different calls."""
    keys = [key(value) for value in VALUES]
    assert len(set(keys)) == len(VALUES)
    assert keys == [key(value) for value in VALUES]


SCALARS = (
    *(None, True, False, 0, -1, 2**63 - 1, 2**64 - 1, 2**64, -(2**63) - 1, 1.5, -0.0, 1e300),
    *(float("nan"), float("inf"), "", "text", "\u00e9" * 998, "\ud800", "a\x00b", b"", b"\xff" * 5),
    *(kind * size for kind in ("x", b"x") for size in (999, 1000, 1020, 1024, 50_000)),
)


@pytest.mark.parametrize("is_encrypted", (False, True), ids=("plain", "encrypted"))
@pytest.mark.parametrize("limit", (None, 100, 20_000))
def test_a_scalar_has_the_digest_that_it_is_stored_by(content, is_encrypted, limit):
    """A scalar's digest is the name of its blob, which encryption keys change: keys of calls don't
    give away arguments that can be guessed.
    """
    ring = cipher = None
    if is_encrypted:
        ring = Keyring([key_text(b"1" * 32)])
        cipher = BlobCipher(ring)
    for value in SCALARS:
        payload = content.serializers.encode_exactly(value)
        packed = pack(payload, limit=limit, key=None if ring is None else ring.current)
        found = digest_of_value(
            value, serializers=content.serializers, chunk_size=limit, cipher=cipher
        )
        assert found == packed.digest.encode(), value


@pytest.mark.parametrize("value", (7, "text", None, [1, 2], np.arange(3)), ids=repr)
def test_encryption_keys_make_other_calls(content, value):
    """Keys of calls depend on the encryption key, whatever the arguments are."""
    function = Function("task", "given", given)

    def key(*keys):
        cipher = BlobCipher(Keyring(keys)) if keys else None
        return function.key_of(
            (value,), {}, serializers=content.serializers, scope=SCOPE, cipher=cipher
        )

    one, two = (key_text(bytes([n]) * 32) for n in (1, 2))
    assert len({key(), key(one), key(two)}) == 3
    assert key(one) == key(one, two)


def test_arguments_are_not_confused(key):
    """What is passed to one parameter doesn't count as passed to another."""
    calls = (
        key(1, 2),
        key(2, 1),
        key(1, 2, 3),
        key(1, 2, c=3),
        key(1, 2, 3, 4),
        key(1, 2, (3, 4)),
        key(1, 2, d=3),
        key(1, 2, e=3),
        key(1, [2]),
        key([1], 2),
    )
    assert len(set(calls)) == len(calls)


@pytest.mark.parametrize(
    "value",
    ([1, 2.5, {"a": None}], "text", b"bytes", np.arange(100), {"rows": list(range(1000))}, "x" * 9),
)
def test_a_reference_counts_as_its_value(key, content, value):
    """A value has one key in the message, by reference, and inside its reference."""
    ref = content.writer.put(value, celery_serializer="json", hold=Hold(60))
    inside = content.writer.inline_ref(content.writer.serialize(value, "json"))
    assert inside.digest is None
    assert key(ref) == key(inside) == key(value)


def test_references_within_containers_count(key, content):
    """Containers that hold references are equal if the containers and the contents are."""
    one, again, two = (
        content.writer.put(value, celery_serializer="json", hold=Hold(60))
        for value in ([1] * 9, [1] * 9, [2] * 9)
    )
    assert key([one, {"x": two}]) == key([again, {"x": two}])
    made = (
        key([one, {"x": two}]),
        key([two, {"x": one}]),
        key([one, two]),
        key((one, two)),
        key([[one, two]]),
        key([one, {"y": two}]),
        key([one], [two]),
        key({"x": one}, two),
    )
    assert len(set(made)) == len(made)


def test_large_values_have_the_digest_they_are_stored_by(content):
    """A value that is cut into chunks has the digest of its reference."""
    value = np.arange(500_000)
    ref = content.writer.put(value, celery_serializer="json", hold=Hold(60))
    digest = partial(digest_of_value, serializers=content.serializers)
    assert digest(value) == digest(ref)


def test_ignored_parameters_do_not_count(key):
    """Parameters that are ignored don't count, whatever is passed to them."""
    function = Function("task", "given", given, ignored=frozenset({"c", "trace"}))
    assert key(1, function=function) == key(1, c=object(), trace=object(), function=function)
    assert key(1, function=function) != key(2, function=function)


def test_a_key_function_replaces_the_arguments(key):
    """Only what the key function returns counts; for None, the call isn't remembered."""
    seen = []

    def by_a(arguments):
        seen.append(arguments)
        return arguments["a"]

    function = Function("task", "given", given, key=by_a)
    assert key(1, 2, function=function) == key(1, b=3, x=object(), function=function)
    assert key(1, function=function) != key(2, function=function)
    assert seen[0] == {"a": 1, "b": 2, "more": (), "c": None, "others": {}}
    with pytest.raises(NotRemembered):
        key(None, function=function)


def test_the_code_of_a_key_function_counts(key):
    """A call isn't taken for one that another key function gave the same key; a key function
    whose code can't be hashed works nevertheless.
    """

    def by_a(arguments):
        return arguments["a"]

    def by_b(arguments):
        return arguments["b"]

    one, two = (Function("task", "given", given, key=each) for each in (by_a, by_b))
    assert key(1, 2, function=one) != key(2, 1, function=two)
    c_code = Function("task", "given", given, key=itemgetter("a"))
    assert key(1, 2, function=c_code) == key(1, 3, function=c_code)


def test_name_kind_version_and_context_count(key):
    """The same arguments of another function, version, or serializer make another call."""
    made = (
        Function("task", "given", given),
        Function("function", "given", given),
        Function("task", "given2", given),
        Function("task", "given", given, version="1"),
        Function("task", "given", given, version="2"),
        Function("task", "given", given, context="pickle"),
    )
    assert len({key(1, function=each) for each in made}) == len(made)


def test_keys_are_pinned(key):
    """The key of a call stays: another one would lose all remembered results."""

    def report(rows, limit=10, *more, day=None, **others):
        pass

    function = Function("task", "shop.report", report, "1", context="json")
    found = key([1, 2], day="mon", x=(1, None), function=function)
    assert found == "820ae49e025c806e20821d1e3727375501d9ab99"


def load(source):
    """Return the function ``task`` of a module with this *source*."""
    module = types.ModuleType("shop")
    exec(source, vars(module))
    return module.task


SOURCE = """
LIMIT = 10
def helper(x):
    return x + 1
def task(x):
    return min(helper(x), LIMIT)
"""


@pytest.mark.parametrize(
    "change", (("x + 1", "x + 2"), ("LIMIT = 10", "LIMIT = 11"), ("min(", "max("))
)
def test_changed_code_makes_other_calls(key, change):
    """A change of the function, of a helper, or of a global counts, unless a version is set."""
    for version in (None, "2"):
        before, same, after = (
            Function("task", "task", load(source), version)
            for source in (SOURCE, "\n# a comment\n" + SOURCE, SOURCE.replace(*change))
        )
        assert key(1, function=before) == key(1, function=same)
        assert (key(1, function=before) == key(1, function=after)) is (version == "2")


CALLERS = """
from celery import Celery
from offload import memoize, open_store
app = Celery("shop", set_as_current=False)
store = open_store("memory://callers")
@app.task(bind=True)
def plain_task(self, x):
    return x + 1
@app.task(autoretry_for=(OSError,))
def retried_task(x):
    return x + 2
@app.task(offload={"version": "a"})
def fixed_task(x):
    return [x, store]
@memoize(store)
def remembered(x):
    return x + 3 if x < 5 else remembered(x - 1)
@memoize(store, version="b")
def fixed(x):
    return [x, store]
def task(x):
    return plain_task(x), retried_task(x), fixed_task(x), remembered(x), fixed(x)
def other(x):
    return x
"""


@pytest.mark.parametrize(
    ("change", "counts"),
    (
        (("x + 1", "x + 9"), True),
        (("x + 2", "x + 9"), True),
        (("x + 3", "x + 9"), True),
        (('"a"', '"z"'), True),
        (('"b"', '"z"'), True),
        (("[x, store]", "[store, x]"), False),
        (("return x\n", "return 9\n"), False),
    ),
)
def test_the_code_of_called_tasks_and_remembered_functions_counts(key, change, counts):
    """A call of another task of the module, or of a function that `memoize` remembers, also of
    itself, counts by its code, or by the version that replaces that.
    """
    before, after = (
        Function("task", "task", load(source)) for source in (CALLERS, CALLERS.replace(*change))
    )
    assert (key(1, function=before) != key(1, function=after)) is counts


def test_a_remembered_function_of_another_module_counts_by_name(key, monkeypatch):
    """A function that `memoize` remembers, and a task, count as imported functions do."""
    keys = set()
    for change in ("x + 1", "x + 9"):
        library = types.ModuleType("library")
        exec(CALLERS.replace("x + 1", change).replace("x + 3", change), vars(library))
        monkeypatch.setitem(sys.modules, "library", library)
        source = "from library import *\ndef task(x):\n    return remembered(x), plain_task(x)\n"
        keys.add(key(1, function=Function("task", "task", load(source))))
    assert len(keys) == 1


def test_what_cannot_be_hashed_is_refused(key):
    """An argument that can't be serialized, arguments that don't fit, and code without content
    raise; a default that can't be serialized is part of the code.
    """
    for value in (object(), lambda: None, [object()], (each for each in ())):
        with pytest.raises(SerializationError):
            key(value)
    with pytest.raises(TypeError):
        key()
    with pytest.raises(TypeError):
        key(1, function=Function("task", "abs", abs))

    nothing = object()

    def optional(a, b=nothing):
        pass

    function = Function("task", "optional", optional, "1")
    assert key(1, function=function) == key(1, function=function)
    with pytest.raises(SerializationError):
        key(1, nothing, function=function)


def test_code_that_cannot_be_hashed_keeps_no_calls():
    """The error about a function's code doesn't collect the frames of all calls, and so their
    arguments.
    """
    function = Function("task", "abs", abs)
    depths = []
    for _ in range(3):
        with pytest.raises(TypeError) as error:
            function.code(SCOPE)
        depths.append(len(error.traceback))
    assert len(set(depths)) == 1


def test_hashing_changes_no_value(key):
    """Computing a key leaves the arguments as they are."""
    array = np.arange(10)
    value = {"array": array, "rows": [[1], (2,)]}
    before = repr(value)
    key(value)
    assert repr(value) == before
    assert value["array"] is array


def test_lists_that_share_each_other(content):
    """Lists nested 40 times, each twice in the next, have a key if there is a reference in them,
    and are refused at once otherwise.
    """

    def digest(leaf):
        nested = [leaf]
        for _ in range(40):
            nested = [nested, nested]
        return digest_of_value(nested, serializers=content.serializers)

    refs = [
        content.writer.put(text * 5000, celery_serializer="json", hold=Hold(60)) for text in "aab"
    ]
    first, again, other = map(digest, refs)
    assert first == again != other
    with pytest.raises(SerializationError, match="too often"):
        digest("text")
