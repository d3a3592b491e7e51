"""Registered types: what they carry, what they refuse, and what data can't do with them."""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict, defaultdict, deque
from contextlib import suppress
from types import ModuleType

import numpy as np
import orjson
import pytest
from celery.result import ResultSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from offload import (
    ConfigurationError,
    DeserializationError,
    SerializationError,
    UnknownType,
    UnknownTypeVersion,
    register_type,
)
from offload.inspect.preview import preview
from offload.memo.keys import digest_of_value
from offload.serializers import Registry
from offload.serializers.types import registry
from offload.serializers.types.register import load_types
from tests.serializers.conftest import stored, through
from tests.support.payload import Payload
from tests.support.wire import make_wire

SECRET = "hunter2"
ACCEPTED = (("json", {"json"}), ("pickle", {"json", "pickle"}), ("msgpack", {"msgpack"}))


class Blob:
    """A type that no serializer but pickle supports."""

    def __init__(self, data, label=""):
        self.data = data
        self.label = label

    def __eq__(self, other):
        return type(other) is type(self) and bytes(self.data) == bytes(other.data)

    __hash__ = None


class Special(Blob):
    pass


class Name(str):
    __slots__ = ()


class Point:
    def __init__(self, x):
        self.x = x


def encode(blob):
    return {"data": memoryview(blob.data), "label": blob.label}


def decode(data, version):
    return Blob(data["data"], data["label"])


def join(blob, rest):
    return Blob(bytes(blob.data) + bytes(rest["more"][0].data))


def make_blob(size):
    return Blob(b"x" * size)


def labels(blob, rest):
    return [blob.label, rest[0].label]


def blobs(**options):
    return register_type(Blob, **{"encode": encode, "decode": decode, "name": "my.blob", **options})


def read(head, buffers=(), accept=("json",)):
    return Registry(accept).decode("tree", orjson.dumps(head), buffers)


# -- what is carried


@pytest.mark.parametrize(("native", "accept"), ACCEPTED, ids=[native for native, _ in ACCEPTED])
@pytest.mark.parametrize(
    "wrap",
    (
        lambda blob: blob,
        lambda blob: [1, blob],
        lambda blob: {"a": ({"b": blob},)},
        lambda blob: deque([blob]),
        lambda blob: OrderedDict(a=[blob]),
        lambda blob: defaultdict(list, a=[blob]),
    ),
    ids=("bare", "list", "nested", "deque", "ordered", "defaultdict"),
)
def test_a_registered_type_travels_as_data(types, native, accept, wrap):
    """A value of a registered type arrives equal, as data, under every serializer."""
    blobs()
    value = wrap(Blob(bytes(5000), "x"))
    payload = Registry(accept).encode(value, native)
    assert payload.serializer == "tree"
    assert through(value, native, accept) == value


@pytest.mark.parametrize(("native", "accept"), ACCEPTED, ids=[native for native, _ in ACCEPTED])
def test_celerys_own_serializer_is_not_asked_to_carry_one(types, native, accept):
    """A small value isn't left to Celery's serializer, which would carry it as its base type."""
    assert Registry(accept).leaves_to_celery({"a": Name("x")}, native)
    register_type(Name, encode=str.__str__, decode=lambda data, version: Name(data))
    assert not Registry(accept).leaves_to_celery({"a": [Name("x")]}, native)
    assert type(through({"a": [Name("x")]}, native, accept)["a"][0]) is Name


def test_large_buffers_are_not_copied(types):
    """Encoding shares the value's memory, and decoding gives the decoder the buffers' memory."""
    blobs()
    blob = Blob(bytearray(1_000_000))
    payload = Registry({"json"}).encode([blob], "json")
    [view] = payload.buffers
    view[7] = 42
    assert blob.data[7] == 42
    private = memoryview(bytearray(view))
    [arrived] = Registry({"json"}).decode(payload.serializer, payload.head, [private])
    private[9] = 43
    assert arrived.data[9] == 43


def test_a_materializer_class_registers_its_type(types):
    """A class with the members type, encode, decode, name, and version registers its type."""

    @register_type
    class Materializer:
        type = Blob
        name = "my.blob"
        version = 3

        def encode(self, blob):
            return encode(blob)

        @staticmethod
        def decode(data, version):
            return Blob(data["data"], f"version {version}")

    arrived = through(Blob(b"x" * 10))
    assert (bytes(arrived.data), arrived.label) == (b"x" * 10, "version 3")


def test_instances_of_subclasses_are_carried_only_if_wanted(types):
    """Without subclasses=True, only instances of exactly the registered type are encoded."""
    blobs()
    with pytest.raises(SerializationError, match="Special"):
        through(Special(b"x"))
    types.clear()
    blobs(
        subclasses=True,
        encode=lambda blob: [type(blob) is Special, bytes(blob.data)],
        decode=lambda data, version: (Special if data[0] else Blob)(data[1]),
    )
    assert through([Special(b"x"), Blob(b"y")]) == [Special(b"x"), Blob(b"y")]


def test_a_newer_reader_reads_older_versions(types):
    """The decoder receives the version that was written."""
    blobs(encode=lambda blob: bytes(blob.data), version=1)
    payload = Registry({"json"}).encode(Blob(b"x" * 1000), "json")
    types.clear()
    blobs(version=2, decode=lambda data, version: Blob(data if version == 1 else data["data"]))
    arrived = Registry({"json"}).decode(payload.serializer, payload.head, stored(payload))
    assert arrived == Blob(b"x" * 1000)
    assert through(Blob(b"y")) == Blob(b"y")


def test_a_registered_type_may_contain_another(types):
    """encode may return values of other registered types, and arrays."""
    blobs()
    register_type(
        Point,
        encode=lambda point: [np.arange(3), Blob(b"x"), point.x],
        decode=lambda data, version: Point(data),
    )
    array, blob, x = through(Point((1, 2))).x
    assert array.tolist() == [0, 1, 2]
    assert (blob, x) == (Blob(b"x"), (1, 2))


def test_equal_values_have_equal_memo_keys(types):
    """Memo keys count a registered type by the content that it encodes to."""
    blobs()
    digests = [
        digest_of_value([Blob(data)], serializers=Registry({"json"}))
        for data in (b"x" * 5000, bytearray(b"x" * 5000), b"y" * 5000)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_kombus_registrations_keep_working(types, monkeypatch):
    """A type that only kombu's register_type knows arrives as plain Celery delivers it."""
    for name in ("_encoders", "_decoders"):
        monkeypatch.setattr(kombu_json, name, dict(getattr(kombu_json, name)))
    kombu_json.register_type(Point, "point", lambda point: point.x, Point)
    blobs()
    assert Registry({"json"}).encode(Point(5), "json").serializer == "native:json"
    assert through([Point(5)])[0].x == 5


# -- in tasks


def test_tasks_receive_and_return_registered_types(types):
    """Arguments, nested ones, and results of a registered type arrive without pickle, whether
    they are stored or stay in the message.
    """
    blobs()
    for size in (10, 300_000):
        wire = make_wire()
        wire.app.task(name="join", shared=False)(join)
        wire.app.finalize()
        result = wire.app.tasks["join"].delay(Blob(b"x" * size), {"more": [Blob(b"y" * size)]})
        wire.work()
        assert result.get(timeout=10) == Blob(b"x" * size + b"y" * size)
    ref = wire.hook.put([Blob(b"z" * 100_000)])
    assert wire.hook.get(ref) == [Blob(b"z" * 100_000)]


def test_eager_tasks_receive_registered_types(types):
    """An eager call delivers a value of a registered type that JSON doesn't support."""
    blobs()
    wire = make_wire(conf={"task_always_eager": True})
    wire.app.task(name="labels", shared=False)(labels)
    wire.app.finalize()
    result = wire.app.tasks["labels"].delay(Blob(b"x", "a"), [Blob(b"x", "b")])
    assert result.get() == ["a", "b"]


def test_the_catalog_keeps_registered_types(types):
    """An object of a registered type is saved in and loaded from the catalog."""
    blobs()
    wire = make_wire()
    wire.hook.catalog.save("blob", Blob(b"x" * 100_000))
    assert wire.hook.catalog.load("blob") == Blob(b"x" * 100_000)


def test_the_settings_name_types_that_are_loaded_when_needed(types, monkeypatch):
    """offload_types names modules and classes, which are imported when a value first needs one."""
    module = ModuleType("proj_types")
    module.Blobs = type(
        "Blobs",
        (),
        {"type": Blob, "name": "my.blob", "encode": staticmethod(encode), "decode": decode},
    )
    module.Blobs.decode = staticmethod(decode)
    wire = make_wire(conf={"offload_types": ["proj_types:Blobs"]})
    wire.hook.put([1, 2])
    wire.hook.put(np.arange(3))  # needs no registered type
    monkeypatch.setitem(sys.modules, "proj_types", module)
    assert wire.hook.get(wire.hook.put([Blob(b"x" * 1000)])) == [Blob(b"x" * 1000)]


def test_a_type_of_the_settings_that_is_missing_is_named(types):
    """A name in offload_types that can't be imported is a ConfigurationError that names it."""
    load_types(["no_such_module:Type"])
    with pytest.raises(ConfigurationError, match=r"offload_types: 'no_such_module:Type'"):
        through(Blob(b""))


# -- errors


def test_a_reader_without_the_type_names_it(types):
    """A type that the reader lacks raises UnknownType with its name; pickle isn't tried."""
    blobs()
    payload = Registry({"json", "pickle"}).encode(Blob(b"x" * 1000), "pickle")
    types.clear()
    with pytest.raises(UnknownType, match=r"'my\.blob', which isn't registered") as caught:
        Registry({"json", "pickle"}).decode(payload.serializer, payload.head, stored(payload))
    assert "offload.register_type" in str(caught.value)


def test_a_task_without_the_type_fails_with_its_name(types):
    """In a worker that lacks the type, the task fails with an error that names task, argument,
    and type.
    """
    blobs()
    wire = make_wire()
    wire.app.task(name="labels", shared=False)(labels)
    wire.app.finalize()
    result = wire.app.tasks["labels"].delay(Blob(b"x" * 100_000), [])
    types.clear()
    wire.work()
    types.restore()
    with pytest.raises(UnknownType, match=r"task 'labels', .*'my\.blob'"):
        result.get(timeout=10)


def test_a_result_without_the_type_names_it(types):
    """A reader of a result that lacks its type gets an error that names task or id, and type; in a
    group, too.
    """
    blobs()
    wire = make_wire()
    wire.app.task(name="make", shared=False)(make_blob)
    wire.app.finalize()
    results = [wire.app.tasks["make"].delay(100_000) for _ in range(2)]
    wire.work()
    types.clear()
    for read in (results[0].get, ResultSet(results, app=wire.app).join):
        with pytest.raises(UnknownType, match=rf"task '{results[0].id}', result: .*'my\.blob'"):
            read(timeout=10)


def test_an_older_reader_refuses_a_newer_version(types):
    """A version above the registered one raises UnknownTypeVersion before it is decoded."""
    blobs(decode=pytest.fail)
    with pytest.raises(UnknownTypeVersion, match=r"'my\.blob' in version 2, .* version 1"):
        read({"registered": ["my.blob", 2, None]})


def fails(data, version):
    raise ValueError(SECRET)


@pytest.mark.parametrize(
    ("decoder", "reason"),
    (
        (fails, "ValueError in test_types.py, line"),
        (lambda data, version: data, "it returned a dict"),
        (lambda data, version: Special(b""), "it returned a Special"),
        (lambda data: data, "TypeError"),
    ),
    ids=("raises", "data", "subclass", "arguments"),
)
def test_a_decoder_that_fails_is_named_without_the_value(types, decoder, reason):
    """A decoder that raises or returns another type fails the task with an error that names task,
    argument, and type, and shows no value.
    """
    blobs(decode=decoder)
    wire = make_wire()
    wire.app.task(name="labels", shared=False)(labels)
    wire.app.finalize()
    result = wire.app.tasks["labels"].delay(Blob(SECRET.encode() * 10_000, SECRET), [])
    wire.work()
    with pytest.raises(DeserializationError) as caught:
        result.get(timeout=10)
    text = f"{caught.value} {result.traceback}"
    assert "task 'labels', " in text
    assert "'my.blob'" in text
    assert reason in text
    assert SECRET not in text


def test_a_panic_of_a_library_becomes_an_offload_error(types):
    """A panic of Rust code, which is no Exception and would end the worker's process, becomes
    offload's error, whether a registered function or a library raises it.
    """
    panic = pytest.importorskip("polars").exceptions.PanicException

    def panics(*_given):
        raise panic(SECRET)

    blobs(decode=panics)
    payload = Registry({"json"}).encode([Blob(b"")], "json")
    with pytest.raises(DeserializationError, match="panicked") as caught:
        Registry({"json"}).decode("tree", payload.head, stored(payload))
    assert SECRET not in str(caught.value)
    types.clear()
    blobs(encode=panics)
    with pytest.raises(SerializationError, match="panicked"):
        Registry({"json"}).encode([Blob(b"")], "json")


@pytest.mark.parametrize("accept", ({"json"}, {"json", "pickle"}), ids=("json", "pickle"))
@pytest.mark.parametrize(
    ("encoder", "reason"),
    (
        (lambda blob: {"lock": threading.Lock()}, r"of type lock at \[1\]\['lock'\]"),
        (lambda blob: blob.missing, r"encode\(\) of the type 'my.blob' raised AttributeError"),
        (lambda blob: blob, "nested more than"),
    ),
    ids=("lock", "raises", "itself"),
)
@pytest.mark.parametrize("native", ("json", "pickle"))
def test_an_encoder_that_fails_is_named_and_not_pickled(types, accept, encoder, reason, native):
    """What an encoder can't turn into data raises an error, even where pickle is accepted."""
    blobs(encode=encoder)
    with pytest.raises(SerializationError, match=reason):
        Registry(accept | {native}).encode([1, Blob(b"")], native)


def test_other_values_next_to_one_are_pickled_where_accepted(types):
    """A value that holds both a registered type and one that only pickle supports is pickled."""
    blobs()
    value = [Blob(b"x"), Special(b"y")]
    assert through(value, "pickle", {"pickle"}) == value
    with pytest.raises(SerializationError, match=r"of type Special at \[1\]"):
        through(value, "json", {"json"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"name": ""}, "a name has"),
        ({"name": "a\nb"}, "a name has"),
        ({"name": "x" * 201}, "a name has"),
        ({"name": 5}, "a name has"),
        ({"name": "torch.Blob"}, "reserved for offload"),
        ({"version": 0}, "a version is"),
        ({"version": True}, "a version is"),
        ({"version": "1"}, "a version is"),
        ({"version": 2**31}, "a version is"),
        ({"encode": None}, "must both be functions"),
        ({"decode": "decode"}, "must both be functions"),
        ({"encode": None, "decode": None}, "isn't a dataclass, pydantic model, or enum"),
        ({"subclasses": 1}, "subclasses must be True or False"),
    ),
    ids=repr,
)
def test_a_registration_with_a_wrong_argument_is_refused(types, arguments, message):
    """A bad name, version, or function is refused when the type is registered."""
    with pytest.raises(ConfigurationError, match=message):
        blobs(**arguments)
    assert registry.find(Blob) is None


def test_a_type_is_registered_once(types):
    """A type registered twice, or under a taken name, is an error, and the first one stays."""
    blobs()
    with pytest.raises(ConfigurationError, match=r"already registered, as 'my\.blob'"):
        blobs()
    with pytest.raises(ConfigurationError, match=r"already registered, as 'my\.blob'"):
        blobs(name="other")
    with pytest.raises(ConfigurationError, match=r"'my\.blob' is taken by .*Blob"):
        register_type(Point, encode=encode, decode=decode, name="my.blob")
    assert through(Blob(b"x")) == Blob(b"x")
    assert registry.find_name("other") is None


@pytest.mark.parametrize("kind", (int, str, bytes, dict, list, bool, type(None), object))
def test_types_that_are_carried_anyway_are_refused(types, kind):
    """Python's own types can't be registered, as most of them are never looked up."""
    with pytest.raises(ConfigurationError, match="already supports this type"):
        register_type(kind, encode=encode, decode=decode)


# -- hostile data, threads, and forks


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
names = st.sampled_from(
    ["my.blob", "Blob", "os.system", "builtins.eval", "torch.Tensor", "__main__", "", "xarray"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(junk, max_size=4) | st.tuples(names, junk, junk) | junk, st.binary(max_size=9))
def test_heads_with_anything_in_them_raise_typed_errors(types, body, buffer):
    """Whatever a node of a registered type contains, reading it raises only typed errors, and
    imports nothing.
    """
    if registry.find(Blob) is None:
        blobs()
    before = set(sys.modules)
    with suppress(DeserializationError):
        read({"registered": body}, [memoryview(bytearray(buffer))])
    assert set(sys.modules) == before


def test_names_in_data_import_nothing(types, monkeypatch):
    """A name in data is looked up among registrations only, whatever module it names."""
    monkeypatch.setattr(registry, "_active", {})
    monkeypatch.setattr(registry, "_by_name", {})  # an earlier test may have used a package's types
    for package in ("torch", "xarray", "scipy.sparse", "PIL.Image"):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, package)
    monkeypatch.setattr("importlib.import_module", pytest.fail)
    for name in ("os.system", "torch.Tensor", "xarray.Dataset", "tests.support.payload.Payload"):
        before = set(sys.modules)
        with pytest.raises(UnknownType):
            read({"registered": [name, 1, ["true"]]})
        assert set(sys.modules) == before


def test_a_pickle_in_a_registered_type_is_bytes(types, tmp_path):
    """Data of a registered type is never unpickled."""
    import pickle

    blobs()
    target = tmp_path / "made"
    through(Blob(pickle.dumps(Payload(target))), "pickle", {"pickle"})
    assert not target.exists()


def test_a_preview_decodes_nothing(types):
    """The dashboard and `inspect` show a registered type's name without calling its decoder."""
    blobs(decode=pytest.fail)
    payload = Registry({"json"}).encode({"a": Blob(b"x", "label")}, "json")
    found = preview("tree", payload.head, [], lambda *_: b"", 200)
    assert "<my.blob" in found.text
    top = Registry({"json"}).encode(Blob(b"x"), "json")
    assert preview("tree", top.head, [], lambda *_: b"", 200).kind == "my.blob"


def test_threads_that_load_the_same_types_register_them_once(types, monkeypatch):
    """Threads that need a type of offload_types at the same time register it once."""
    module = ModuleType("proj_types")
    members = {"type": Blob, "encode": staticmethod(encode), "decode": staticmethod(decode)}
    module.Blobs = type("Blobs", (), members)
    monkeypatch.setitem(sys.modules, "proj_types", module)
    load_types(["proj_types:Blobs"])
    gate, errors = threading.Barrier(8), []

    def run():
        try:
            gate.wait()
            assert through([Blob(b"x")]) == [Blob(b"x")]
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert registry.resolve_pending() is False


def test_a_fork_inherits_registrations_and_no_lock(types):
    """A process that is forked while another thread registers a type can register and decode."""
    started, stop = threading.Event(), threading.Event()

    def register_forever():
        while not stop.is_set():
            kind = type("Kind", (), {})
            register_type(kind, encode=encode, decode=decode, name=f"k{id(kind)}")
            started.set()

    blobs()
    thread = threading.Thread(target=register_forever)
    thread.start()
    try:
        assert started.wait(30)
        child = os.fork()
        if not child:
            try:
                register_type(Point, encode=vars, decode=lambda data, version: Point(**data))
                good = through([Blob(b"x"), Point(1)])[1].x == 1
            finally:
                os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()
