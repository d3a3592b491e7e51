"""The type registry: its cost, its error messages, and what it doesn't import."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import tracemalloc
import weakref
from datetime import datetime
from enum import Enum, IntEnum
from uuid import UUID

import numpy as np
import orjson
import pytest
from kombu.exceptions import ContentDisallowed, DecodeError, EncodeError

from offload.errors import DeserializationError, SerializationError, SerializerNotAccepted
from offload.serializers import Registry, kombu
from offload.serializers.choose import certainly_small
from offload.serializers.plain import MANY, Json, is_plain
from offload.text import short_repr


class Loud:
    def __repr__(self):
        raise RuntimeError("no")


class Endless:
    def __repr__(self):
        return "x" * 10**6


class Surrogate:
    def __repr__(self):
        return "\ud800"


@pytest.mark.parametrize("accept", ({"json"}, {"json", "pickle"}), ids=("json", "pickle"))
@pytest.mark.parametrize(
    "value",
    (threading.Lock(), (i for i in ()), [1, {"deep": threading.Lock()}], open(os.devnull)),  # noqa: SIM115, PTH123
    ids=("lock", "generator", "within", "file"),
)
def test_a_value_that_nothing_can_carry_is_named(value, accept):
    """A value that no serializer supports raises an error naming its type, not advising pickle."""
    with pytest.raises(SerializationError) as caught:
        Registry(accept).encode(value, "json")
    assert isinstance(caught.value, EncodeError)
    message = str(caught.value)
    assert type(value).__name__ in message
    assert "'pickle'" not in message


def test_an_error_contains_the_path():
    """The error for a nested value contains its type and the path to it."""
    with pytest.raises(SerializationError, match=r"of type lock at \['rows'\]\[2\]"):
        Registry({"json"}).encode({"rows": [1, 2, threading.Lock()]}, "json")


@pytest.mark.parametrize(
    "value",
    (Loud(), Endless(), "x" * 10**7, [[["x" * 10**6] * 1000] * 1000] * 1000, 10**5000, Surrogate()),
    ids=("raises", "endless", "long", "wide", "number", "surrogate"),
)
def test_a_repr_is_short_whatever_the_value_does(value):
    """A repr is encodable, at most 200 characters, and cheap, whatever the value does."""
    tracemalloc.start()
    text = short_repr(value)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < len(text) <= 200
    assert text.encode()
    assert peak < 4_000_000


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack", "yaml"))
@pytest.mark.parametrize("size", (100, 10**6))
def test_bytes_and_ascii_text_are_not_copied(native, size):
    """Buffers of bytes and of ASCII text share the value's memory, read-only."""
    registry = Registry({native})
    content = bytes(size)
    [view] = registry.encode(content, native).buffers
    assert view.obj is content
    text = "x" * size
    tracemalloc.start()
    payload = registry.encode(text, native)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000
    assert bytes(payload.buffers[0]) == text.encode()
    assert payload.buffers[0].readonly


def test_the_view_of_a_text_keeps_the_text_alive():
    """The view of a text stays valid after the last other reference to it is gone."""
    text = "".join(map(str, range(50_000)))
    expected = text.encode()
    [view] = Registry({"json"}).encode(text, "json").buffers
    assert ctypes.addressof(view.obj) > 0
    del text
    gc.collect()
    junk = ["y" * len(expected) for _ in range(10)]
    assert bytes(view) == expected
    del junk


def test_the_view_of_a_text_is_the_same_where_ctypes_cannot_be_asked(monkeypatch):
    """Outside CPython, the view of a text has the same bytes."""
    from offload.serializers import base

    monkeypatch.setattr(base, "_CPYTHON", False)
    assert bytes(base.utf8("x" * 10**5)) == b"x" * 10**5


def test_a_small_value_is_recognized_without_being_serialized(monkeypatch):
    """Small plain values are recognized without encoding; large and other ones aren't small."""
    monkeypatch.setattr(Registry, "encode", None)
    for value in (2, None, True, 1.5, "text", b"bytes", [1, 2], {"a": (1, None)}):
        assert certainly_small(value, 4096, "json")
    for value in ("é", {"é": "\ud800"}, [[[[[[{"a": 1}]]]]]]):
        assert certainly_small(value, 4096, "json")
    assert not certainly_small("é", 4096, "msgpack")
    for value in (2**64, "x" * 4096, "é" * 400, [0] * 10**6, {1: 2}, {3}, object(), np.zeros(1)):
        assert not certainly_small(value, 4096, "json")
    for value in (1, None, "", [], b""):
        assert not certainly_small(value, 0, "json")


def test_a_circular_container_is_not_small():
    """A circular list isn't small, and checking it ends."""
    circle = []
    circle.append(circle)
    assert not certainly_small(circle, 10**6, "json")


@pytest.mark.parametrize(
    ("value", "native", "supported"),
    (
        ({1: 2}, "json", True),
        ({1, 2}, "json", False),
        ({1, 2}, "yaml", True),
        (np.zeros(1), "json", False),
        (np.zeros(1), "pickle", True),
        (2**70, "msgpack", False),
    ),
)
def test_values_are_left_to_the_messages_serializer(value, native, supported):
    """Values that the message's serializer supports are left to it, accepted or not."""
    assert Registry({"json"}).leaves_to_celery(value, native) is supported


def test_accepted_contents_may_be_named_by_their_types():
    """Content types in `accept` mean the serializers of these types."""
    registry = Registry({"application/json", "application/x-python-serialize"})
    assert registry.accept == {"json", "pickle"}


@pytest.mark.parametrize("attempt", (kombu.encode, kombu.supports))
@pytest.mark.parametrize("serializer", ("json", "msgpack", "yaml"))
def test_a_refused_value_is_free_without_a_garbage_collection(attempt, serializer):
    """A value that Celery's serializer can't write isn't kept alive by the error that it raised."""
    value = Loud()
    gone = weakref.ref(value)
    gc.disable()
    try:
        assert not attempt([value], serializer)
        del value
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("attempt", (kombu.encode, kombu.supports))
@pytest.mark.parametrize("value", (Loud(), "\ud800"))
def test_an_error_that_the_caller_handles_keeps_its_traceback(attempt, value):
    """An error that the app handles while it sends a refused value keeps its traceback."""
    try:
        raise ValueError
    except ValueError as error:
        attempt([value], "yaml")
        kept = error.__traceback__
    assert kept is not None


def test_errors_are_kombu_errors_as_well():
    """Errors of the registry are also the kombu errors that Celery handles."""
    registry = Registry({"json"})
    with pytest.raises(ContentDisallowed):
        registry.decode("pickle", b"", [])
    with pytest.raises(DecodeError):
        registry.decode("json", b"", [memoryview(b"{")])
    with pytest.raises(SerializationError, match="nonsense"):
        registry.encode([1], "nonsense")
    assert issubclass(SerializerNotAccepted, DeserializationError)


def test_a_lambda_travels_with_pickle_and_not_without(help_):
    """A lambda arrives callable where pickle is accepted and is refused elsewhere."""
    assert help_.through(lambda x: x + 1, "json", {"json", "pickle"})(1) == 2
    assert help_.through([lambda x: x + 1], "pickle", {"pickle"})[0](1) == 2
    with pytest.raises(SerializationError, match="type function"):
        help_.through(lambda x: x)


def python(code, **env):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_and_using_the_registry_imports_no_optional_package():
    """Plain values are encoded and decoded without importing NumPy, pandas, polars, or PyArrow."""
    python(
        "import sys\n"
        "from offload.serializers import Registry\n"
        "r = Registry({'json', 'pickle'})\n"
        "for v in ([1, {'a': 'b'}], {1, 2}, 'x' * 10**5, b'x', [(1,), {2}]):\n"
        "    for native in ('json', 'pickle'):\n"
        "        p = r.encode(v, native)\n"
        "        r.decode(p.serializer, p.head, [memoryview(bytearray(b)) for b in p.buffers])\n"
        "loaded = {'numpy', 'pandas', 'polars', 'pyarrow'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )


@pytest.mark.parametrize("native", ("json", "pickle", "msgpack"))
def test_the_garbage_collector_may_clear_buffers_in_any_order(native):
    """Python collects payloads in reference cycles, such as an error's traceback, without crashing.

    Python before 3.11.8 and 3.12.2 crashes if it clears a memoryview that a PickleBuffer exports.
    """
    python(
        "import gc, numpy as np, pandas as pd\n"
        "from offload import SerializationError\n"
        "from offload.serializers import Registry\n"
        "fixed = np.arange(9000.0)\n"
        "fixed.flags.writeable = False\n"
        "makers = (\n"
        "    lambda: np.zeros(9000), lambda: fixed, lambda: np.zeros((90, 100), order='F'),\n"
        "    lambda: np.zeros((90, 200))[:, ::2], lambda: np.zeros(9000, 'M8[s]'),\n"
        "    lambda: bytearray(9000), lambda: memoryview(bytearray(9000)),\n"
        "    lambda: memoryview(np.zeros((90, 100))), lambda: memoryview(np.zeros(900, '>f8')),\n"
        "    lambda: memoryview(np.zeros((90, 100), order='F')), lambda: 'x' * 90_000,\n"
        "    lambda: pd.DataFrame({'a': range(9000), 'b': ['x'] * 9000}),\n"
        ")\n"
        f"registry = Registry({{'json', {native!r}}})\n"
        "for make in makers:\n"
        "    for value in (make(), [make(), make()]):\n"
        "        try:\n"
        f"            payload = registry.encode(value, {native!r})\n"
        "        except SerializationError:\n"
        "            continue  # not with this serializer\n"
        "        cycle = [*payload.buffers]\n"
        "        cycle.append(cycle)\n"
        "        del payload, value, cycle\n"
        "        gc.collect()\n"
    )


def test_equal_values_are_equal_bytes_in_every_process():
    """Equal values have equal payloads in processes with different hash seeds."""
    code = (
        "import hashlib, numpy as np, pandas as pd, pyarrow as pa\n"
        "from offload.serializers import Registry\n"
        "values = [{'b': 1, 'a': [1.5]}, {'x', 'y', 'z', 1}, [frozenset({'p', 'q'}), {'r'}],\n"
        "    np.arange(9.0), pd.DataFrame({'a': [1, 2], 's': ['x', None]}, index=['p', 'q']),\n"
        "    pa.table({'a': [1, 2], 's': ['x', 'y']}), {'n': np.arange(400), 't': (1, {2})}]\n"
        "for v in values:\n"
        "    p = Registry({'json'}).encode(v, 'json')\n"
        "    print(hashlib.sha256(b'|'.join([p.head, *p.buffers])).hexdigest())\n"
    )
    assert len({python(code, PYTHONHASHSEED=seed) for seed in ("1", "2", "3")}) == 1


def test_a_class_of_main_is_the_readers_own_else_the_one_sent():
    """A class of `__main__` is read as the reader's class of that name, else as the one sent."""
    write = (
        "from offload.serializers import Registry\n"
        "class Own:\n    size = 5\n"
        "p = Registry({'pickle'}).encode([Own(), Own], 'pickle')\n"
        "assert not p.buffers\nprint(p.head.hex())\n"
    )
    head = python(write)
    read = (
        "from offload.serializers import Registry\n"
        f"one, kind = Registry({{'pickle'}}).decode('pickle', bytes.fromhex('{head}'), [])\n"
        "assert type(one) is kind\nprint(one.size, kind is globals().get('Own'))\n"
    )
    assert python(read) == "5 False"
    assert python("class Own:\n    size = 7\n" + read) == "7 True"


@pytest.mark.parametrize(
    ("value", "package", "extra"),
    (
        (np.zeros(2), "numpy", "numpy"),
        (__import__("pandas").Series([1]), "pandas", "pandas"),
        (__import__("polars").Series([1]), "polars", "polars"),
        (__import__("pyarrow").array([1]), "pyarrow", "arrow"),
    ),
    ids=("numpy", "pandas", "polars", "pyarrow"),
)
def test_a_missing_package_is_an_error_that_names_the_extra(value, package, extra):
    """Reading a value without its package raises an error naming the extra to install."""
    payload = Registry({"json"}).encode(value, "json")
    code = (
        "import sys\n"
        f"sys.modules['{package}'] = None\n"
        "from offload.errors import DeserializationError\n"
        "from offload.serializers import Registry\n"
        f"buffers = [memoryview(bytearray(b)) for b in {[bytes(b) for b in payload.buffers]!r}]\n"
        "try:\n"
        f"    Registry({{'json'}}).decode('tree', {payload.head!r}, buffers)\n"
        "except DeserializationError as error:\n"
        "    print(error)\n"
    )
    message = python(code)
    assert package in message
    assert f'pip install "offload[{extra}]"' in message


def test_payloads_have_type_and_size():
    """A payload has its value's type, and the size of its head and buffers together."""
    registry = Registry({"json"})
    payload = registry.encode(np.zeros(1000), "json")
    assert payload.type == "ndarray"
    assert payload.size == 8000 + len(payload.head)
    assert registry.encode("x" * 10, "json").type == "str"


class Text(str):
    """Kombu's JSON would deliver it as a str."""

    __slots__ = ()


class Color(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("item", "plain"),
    (
        *((item, True) for item in (1, 2.5, "text", True, None, "null", (1,), {"a": None})),
        *((item, True) for item in ({"__type__": 1}, {"__type__": 1, "__value__": 2, "x": 3})),
        (float("nan"), False),
        (float("-inf"), False),
        ({"__type__": "x", "__value__": 1}, False),
        ({1: 2}, False),
        ({Text("a"): 1}, False),
        (Text("a"), False),
        (Color.RED, False),
        (IntEnum("Size", "BIG").BIG, False),
        (UUID(int=1), False),
        (datetime(2026, 1, 1), False),
        (b"bytes", False),
        ({1}, False),
        (np.float64(1.5), False),
        (orjson.Fragment(b"1"), False),
    ),
    ids=lambda each: repr(each).partition(" object")[0],
)
@pytest.mark.parametrize(
    "within", (lambda item: [item], lambda item: {"key": (item,)}), ids=("list", "dict")
)
def test_plain_is_the_same_among_many_containers(item, plain, within):
    """Whether Celery's JSON delivers a value as it is doesn't depend on how many containers are
    around it.
    """
    item = within(item)
    many = [[n, {"n": n / 3}] for n in range(2 * MANY)]
    assert is_plain(item) is plain
    assert is_plain([*many, item]) is plain
    assert is_plain({"many": many, "item": item}) is plain
    assert (Json().encode([*many, item]) is not None) is plain


@pytest.mark.parametrize("value", ([{"a": 1}] * 100, "text" * 2000, [datetime(2026, 1, 1)]))
def test_what_a_payload_tells_is_not_tried(value, monkeypatch):
    """If the payload of a value shows that Celery's JSON supports it, it isn't written again."""
    registry = Registry({"json"})
    payload = registry.encode(value, "json")
    monkeypatch.setattr(kombu, "supports", None)
    assert registry.leaves_to_celery(value, "json", payload)


@pytest.mark.parametrize("item", ((1,), {"a": [(1,)]}))
def test_tuples_among_many_containers_arrive_as_sent(item):
    """A value that must arrive unchanged keeps its tuples, however many containers are around."""
    registry = Registry({"json"})
    value = [*([n] for n in range(2 * MANY)), [item]]
    payload = registry.encode_exactly(value)
    assert registry.decode(payload.serializer, payload.head, payload.buffers) == value


def test_a_check_of_many_containers_takes_memory_once():
    """Whether JSON delivers a value as it is is found out with one copy of its data at a time."""
    value = [[f"{n:0>1000}"] for n in range(2000)]
    tracemalloc.start()
    try:
        assert is_plain(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.6 * len(orjson.dumps(value))
