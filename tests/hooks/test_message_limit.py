"""Messages that would exceed the broker's limit: their largest values are stored, or they are
refused.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from celery import Celery, chain, chord, group
from celery.signals import before_task_publish
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kombu import Connection
from kombu.exceptions import EncodeError, OperationalError
from kombu.serialization import dumps as serialize
from kombu.serialization import register, unregister
from kombu.utils.json import dumps
from moto import mock_aws

from offload import Offload, StoreUnavailable, ValueTooLarge
from offload.hooks.limit import MessageLimit, surely_fits
from tests.support.amqp_broker import amqp_broker
from tests.support.apps import current
from tests.support.wire import make_wire

LIMIT = 200_000
SERIALIZERS = ("json", "pickle", "msgpack", "yaml")
ROW = 20_000


def limited(serializer="json", *, limit=LIMIT, conf=None, **given):
    """Return a Wire with a limit on messages, and tasks."""
    wire = make_wire(
        threshold=65_536,
        message_limit=limit,
        conf={"task_serializer": serializer, "accept_content": SERIALIZERS, **(conf or {})},
        **given,
    )

    @wire.app.task(name="sizes", shared=False)
    def sizes(*args, **kwargs):
        return [*map(size_of, args), *map(size_of, kwargs.values())]

    @wire.app.task(name="keep", shared=False, offload={"inline": ["config"]})
    def keep(config, *args):
        return [size_of(config), *map(size_of, args)]

    wire.sizes, wire.keep = sizes, keep
    return wire


def size_of(value):
    return len(value) if hasattr(value, "__len__") else value


def messages(wire):
    """Return the messages in the queue, as the transport has them, and leave them there."""
    found = []
    with wire.app.connection_for_read() as connection:
        channel, queue = connection.default_channel, wire.app.conf.task_default_queue
        while channel._size(queue):
            found.append(channel._get(queue))
        for message in found:
            channel._put(queue, message)
    return found


def sent_size(wire):
    """Return the bytes of the largest message in the queue, in kombu's form."""
    return max(len(dumps(message)) for message in messages(wire))


def stored(wire):
    """Return the sizes of the values in the last message that are stored."""
    return wire.sent[-1][0].get("offload", {}).get("refs", 0)


def values(count, size=ROW):
    return [chr(ord("a") + i % 26) * size for i in range(count)]


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_the_largest_values_are_stored(serializer):
    """Of many values below the threshold, the largest go to the store until the rest fits."""
    wire = limited(serializer)
    given = {
        name: name * size for name, size in zip("abcdef", range(20_000, 50_000, 5000), strict=True)
    }
    result = wire.sizes.delay(1, **given)
    assert sent_size(wire) <= LIMIT
    _, kwargs, _ = wire.sent[-1][1]
    kept = [name for name in given if isinstance(kwargs[name], str)]
    assert kept
    assert kept == sorted(given)[: len(kept)]
    assert len(kept) < len(given)
    assert wire.get(result) == [1, *map(len, given.values())]


@pytest.mark.parametrize("serializer", ("json", "pickle", "msgpack"))
@pytest.mark.parametrize("shape", ("chain", "chord", "links", "nested"))
def test_embedded_signatures_are_reduced(serializer, shape):
    """The arguments of a chain's steps, a chord's body, and callbacks are stored, too; each
    message of the canvas fits, and the results are the same.
    """
    wire = limited(serializer)
    largest = []
    execute = wire.execute

    def measured(message):
        if messages(wire):
            largest.append(sent_size(wire))
        return execute(message)

    wire.execute = measured
    step = wire.sizes.si
    if shape == "chain":
        sent = chain([step(value) for value in values(15)])
        expected = [ROW]
    elif shape == "chord":
        sent = chord([step(1), step(2)], wire.sizes.s(*values(12)))
        expected = [2, *[ROW] * 12]
    elif shape == "links":
        sent = step(values(1)[0]).on_error(step(*values(8)))
        sent.link(step(*values(8)))
        expected = [ROW]
    else:
        steps = group([chain(step(a), step(b)) for a, b in zip(values(6), values(6), strict=True)])
        sent = chain(step(1), steps, wire.sizes.s(*values(6)))
        expected = [6, *[ROW] * 6]
    result = sent.apply_async()
    largest.append(sent_size(wire))
    assert wire.get(result) == expected
    assert max(largest) <= LIMIT


@pytest.mark.parametrize("where", ("arguments", "steps"))
def test_many_small_values_are_reduced(where):
    """Values that are small enough to skip each inspection are stored, too, if there are many."""
    wire = limited()
    if where == "arguments":
        result = wire.sizes.delay(*values(80, 3000))
        expected = [3000] * 80
    else:
        result = chain([wire.sizes.si(value) for value in values(60, 3000)]).apply_async()
        expected = [3000]
    assert stored(wire)
    assert sent_size(wire) <= LIMIT
    assert wire.get(result) == expected


def test_a_chain_of_forty_steps_goes_through_sqs():
    """20 values of 60 kB, and a chain of 40 such steps, which SQS refuses in one message, are
    sent by kombu's real transport, and arrive.
    """
    with mock_aws():
        wire = limited(broker="sqs://key:secret@", limit="auto")
        result = wire.sizes.delay(*values(20, 60_000))
        wire.execute(wire.take())
        assert result.get(timeout=10) == [60_000] * 20
        chain([wire.sizes.si(value) for value in values(40, 60_000)]).apply_async()
        wire.app._offload.message_limit = None
        with pytest.raises(Exception, match=r"must be shorter than 1048576 bytes"):
            wire.sizes.delay(*values(20, 60_000))


def test_values_kept_inline_stay():
    """A parameter that its task keeps inline is never stored; the others make room for it."""
    wire = limited()
    result = wire.keep.delay("c" * 90_000, *values(4))
    assert wire.sent[-1][1][0][0] == "c" * 90_000
    assert sent_size(wire) <= LIMIT
    assert wire.get(result) == [90_000, *[ROW] * 4]


def test_compression_counts():
    """A message that fits once compressed is sent as it is; one that doesn't is reduced."""
    wire = limited(conf={"task_compression": "zlib"})
    wire.sizes.delay(*values(20))
    assert not stored(wire)
    result = wire.sizes.delay(*[uuid.uuid4().hex * 1500 for _ in range(4)], *noise(20))
    assert 0 < stored(wire) < 24
    assert sent_size(wire) <= LIMIT
    assert wire.get(result)


def noise(count):
    return ["".join(uuid.uuid4().hex for _ in range(ROW // 32)) for _ in range(count)]


REFUSED = {
    "headers": lambda wire: wire.sizes.apply_async((1,), headers={"trace": "x" * LIMIT}),
    "argsrepr": lambda wire: wire.sizes.apply_async((1,), argsrepr="x" * LIMIT),
    "kwargsrepr": lambda wire: wire.sizes.apply_async((1,), kwargsrepr="x" * LIMIT),
    "stamps": lambda wire: wire.sizes.si(1).stamp(who="x" * LIMIT).apply_async(),
    "shadow": lambda wire: wire.sizes.apply_async((1,), shadow="x" * LIMIT),
    "properties": lambda wire: wire.sizes.apply_async((1,), message_attributes={"a": "x" * LIMIT}),
    "inline": lambda wire: wire.keep.delay("x" * LIMIT, *values(3)),
    "disabled": lambda wire: wire.sizes.apply_async(values(9), offload=False),
    "numbers": lambda wire: wire.sizes.delay(*range(60_000)),
    "embedded stamps": lambda wire: wire.sizes.apply_async(
        (1,), link=wire.sizes.si(2).set(headers={"a": "x" * LIMIT})
    ),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("serializer", ("json", "pickle"))
def test_what_cannot_be_reduced_is_refused(serializer, what):
    """A message that is too large for other reasons is refused with its size and the limit; nothing
    is sent or stored.
    """
    wire = limited(serializer)
    with pytest.raises(
        ValueTooLarge, match=r"task '(sizes|keep)'.*200,000.*nothing was stored"
    ) as e:
        REFUSED[what](wire)
    assert e.value.task in ("sizes", "keep")
    assert e.value.argument == ("config" if what == "inline" else None)
    assert "xxx" not in str(e.value)
    assert wire.calls == []
    assert messages(wire) == []
    assert wire.hook.counters.snapshot()["errors_serialising"] == 1


def test_too_many_references_are_refused():
    """Ten thousand references are refused with their number and size."""
    wire = limited(limit=1_000_000)
    ref = wire.hook.put("x" * 70_000)
    with pytest.raises(ValueTooLarge, match=r"10,000 references 1,9\d\d,\d\d\d.*one list or dict"):
        wire.sizes.delay([ref] * 10_000)
    assert messages(wire) == []


def test_values_that_are_larger_than_a_reference_make_room():
    """Hundreds of values of some hundred bytes, which exceed the limit together, are stored."""
    wire = limited()
    given = [f"{n:04}" * 200 for n in range(300)]
    result = wire.sizes.delay(*given)
    assert sent_size(wire) <= LIMIT
    assert wire.get(result) == [800] * 300


def test_a_limit_too_small_for_references_is_refused():
    """With the smallest limit, a value that fits as one reference is sent, and ten are refused."""
    wire = limited(limit=4096)
    assert wire.run(wire.sizes, "x" * 50_000) == [50_000]
    with pytest.raises(
        ValueTooLarge, match=r"more than the limit of 4,096.*10 references 1,\d\d\d"
    ):
        wire.sizes.delay(*values(10))


def test_a_refused_message_holds_nothing():
    """A value that was stored before, and is held again for a message, is released if that message
    is refused.
    """
    wire = limited(watch=False)
    value = "x" * 70_000
    first = wire.sizes.delay(value)
    blobs = wire.hook.store.blobs

    def holders():
        return {name for info in blobs.scan() for name in blobs.holders(info.digest)}

    before = holders()
    assert before
    with pytest.raises(ValueTooLarge):
        wire.sizes.apply_async((value,), headers={"trace": "x" * LIMIT})
    assert holders() == before
    assert wire.hook.counters.snapshot()["values_remembered"] == 1
    assert wire.get(first) == [70_000]


@pytest.mark.parametrize("mode", ("observe", "off"))
def test_other_modes_leave_messages_alone(mode):
    """In modes observe and off, messages are neither reduced nor refused."""
    wire = limited(mode=mode)
    wire.sizes.apply_async(values(20), headers={"trace": "x" * LIMIT})
    assert wire.sent[-1][1][0] == values(20)
    assert not stored(wire)


def test_a_message_sent_again_is_not_refused():
    """A message that a worker sends again because of an outage was accepted before, and is sent."""
    from offload.hooks.usercode import Resent, resending

    wire = limited()
    token = resending.set(Resent(1, 0))
    try:
        wire.sizes.apply_async((1,), headers={"trace": "x" * LIMIT})
    finally:
        resending.reset(token)
    assert len(messages(wire)) == 1


def test_signal_receivers_see_values():
    """A receiver of the publishing signal sees all values, and the message fits all the same."""
    wire = limited()
    seen = []

    def look(body, **_):
        seen.append(body[0])

    before_task_publish.connect(look)
    try:
        result = wire.sizes.delay(*values(12))
        with pytest.raises(ValueTooLarge):
            wire.sizes.apply_async((1,), headers={"trace": "x" * LIMIT})
    finally:
        before_task_publish.disconnect(look)
    assert list(seen[0]) == values(12)
    assert sent_size(wire) <= LIMIT
    assert wire.get(result) == [ROW] * 12


def test_a_group_stores_a_value_once():
    """Values that all messages of a group share are stored once, though below the threshold."""
    wire = limited()
    shared = values(12)
    group([wire.sizes.s(*shared, n) for n in range(5)]).apply_async()
    counts = wire.hook.counters.snapshot()
    assert counts["values_offloaded"] > counts["blobs_uploaded"] > 0
    assert counts["values_remembered"] == counts["values_offloaded"] * 4 / 5
    assert sent_size(wire) <= LIMIT


def test_a_task_passes_references_on():
    """A task that publishes values it received by reference sends their references again."""
    wire = limited()

    @wire.app.task(name="pass_on", shared=False)
    def pass_on(*args):
        return wire.sizes.delay(*args).id

    result = pass_on.delay(*values(12))
    offloaded = wire.hook.counters.snapshot()["values_offloaded"]
    wire.work()
    assert wire.app.AsyncResult(result.get(timeout=10)).get(timeout=10) == [ROW] * 12
    assert wire.hook.counters.snapshot()["values_offloaded"] == offloaded


def test_a_chain_that_outgrows_the_limit_fails():
    """A task whose result can't be sent to the next step, which keeps it inline, fails with the
    reason.
    """
    wire = limited()

    @wire.app.task(name="grow", shared=False, offload={"results": False})
    def grow():
        return "x" * LIMIT

    result = chain(grow.s(), wire.keep.s()).apply_async()
    wire.work()
    with pytest.raises(ValueTooLarge, match=r"task 'keep'.*inline \(config\) 200,002.*remove"):
        result.parent.get(timeout=10)


@pytest.mark.parametrize("serializer", ("json", "pickle"))
def test_small_arrays_still_arrive(serializer):
    """A small array, which JSON carries only inside a reference, arrives if other values make
    room for it.
    """
    import numpy as np

    wire = limited(serializer)

    @wire.app.task(name="total", shared=False)
    def total(array, *_):
        return type(array).__name__, float(array.sum())

    result = total.delay(np.ones(200), *values(10))
    assert not any(isinstance(value, list) for value in wire.sent[-1][1][0])
    refs = wire.hook.counters.snapshot()
    assert 0 < refs["values_offloaded"] < 10
    assert wire.get(result) == ["ndarray", 200.0]


def test_large_values_are_serialized_once(counted):
    """A value above the threshold isn't serialized again when smaller ones must be stored, too."""
    wire = limited("counted", conf={"accept_content": ["counted"]})
    large = ["large" * 20_000]
    wire.sizes.delay(large, *[[value] for value in values(12)])
    assert sent_size(wire) <= LIMIT
    assert stored(wire) > 1
    assert sum(each is large for each in counted) == 1


def test_an_outage_leaves_no_mark():
    """A message that is measured with references, and then sent without any because the store is
    unavailable, names its own task, also where receivers saw it.
    """
    wire = limited(on_outage="inline", retry={"max_retries": 0}, secret="for messages that fit")
    object.__setattr__(wire.hook.store.blobs, "hold", away)
    before_task_publish.connect(look := lambda **_: None)
    try:
        result = wire.sizes.delay("x" * 70_000, "y" * 50_000)
    finally:
        before_task_publish.disconnect(look)
    (message,) = messages(wire)
    assert message["headers"]["task"] == "sizes"
    assert wire.get(result) == [70_000, 50_000]


def away(*_args, **_options):
    raise StoreUnavailable("away")


def test_an_outage_cannot_make_a_message_too_large():
    """With on_outage="inline", values stay in the message only if it fits; else the error names
    the store.
    """
    wire = limited(on_outage="inline", retry={"max_retries": 0}, secret="for messages that fit")
    object.__setattr__(wire.hook.store.blobs, "hold", away)
    wire.sizes.delay("x" * 70_000)
    assert wire.sent[-1][1][0] == ("x" * 70_000,)
    with pytest.raises(OperationalError, match=r"store is unavailable.*limit of 200,000") as error:
        wire.sizes.delay(*values(3, 70_000))
    assert error.value.store == wire.hook.store.url
    assert len(messages(wire)) == 1


# -- costs


@pytest.fixture
def counted():
    """Register a serializer that counts its calls; return the list of them."""
    calls = []

    def encode(data):
        calls.append(data)
        return dumps(data)

    register("counted", encode, __import__("json").loads, "application/x-counted")
    yield calls
    unregister("counted")


@pytest.mark.parametrize(
    "args",
    (
        (1, "x", [2.5] * 20),
        ("x" * 30_000,),
        ("a" * 70_000, "b" * 70_000),
        ("x" * 2000,) * 5,
        (uuid.UUID(int=5), datetime(2026, 1, 1), Decimal(1)),
    ),
    ids=("small", "medium", "stored", "several", "scalars"),
)
def test_an_ordinary_message_is_serialized_as_often_as_without_a_limit(counted, args):
    """A limit costs no serialization while what is known to be small is far below it; canvases
    included.
    """
    counts = []
    for limit in (0, 2_000_000):
        wire = limited("counted", limit=limit, conf={"accept_content": ["counted"]})
        for sent in (wire.sizes.si(*args), chain(wire.sizes.si(*args), wire.sizes.si(1))):
            counted.clear()
            sent.apply_async()
            counts.append(len(counted))
    assert counts[:2] == counts[2:]
    assert max(counts) <= 2 * len(args) + 1


def test_small_arguments_skip_the_inspection(monkeypatch):
    """Small arguments are skipped with a limit, too; those that might not fit together aren't."""
    from offload.hooks import publish

    published = []

    def publish_all(_runtime, build, call):
        published.append(call)
        return build(**{key: value for key, value in call.items() if key != "offload"})

    monkeypatch.setattr(publish, "_publish", publish_all)
    wire = limited(limit=983_040)
    wire.sizes.delay(1, "x" * 5000, a=[1, 2])
    chain(wire.sizes.s(1), wire.sizes.s(2)).apply_async()
    assert len(published) == 1  # that with a chain, which is inspected without a limit, too
    published.clear()
    build = wire.app.amqp.as_task_v2
    positional = (None,) * 17
    options = {"queue": "q", "serializer": "json", "ignore_result": False, "priority": None}
    build("id", "sizes", (1, "x" * 5000), {"a": [1, 2]}, *positional, **options)
    build("id", "sizes", tuple(range(1000)), {}, *positional, **options)
    assert published == []
    build("id", "sizes", ("x" * 5000,) * 200, {}, *positional, **options)
    build("id", "sizes", (1,), {}, *positional, **options, headers={"a": 1})
    assert len(published) == 2


PARTS = (
    [1, 2.5, None, True, "text", b"bytes", "ü" * 9, 1 << 70],
    {"a": {"b": ("c", "d" * 100)}, "e": []},
    ["\n\x00\"'\\" * 20, "\U0001f600" * 9, -1e-300],
    {f"key {i}": i for i in range(40)},
    [datetime(2026, 11, 29, tzinfo=ZoneInfo("Europe/Berlin")), date(2026, 1, 1), Decimal("1.5")],
    [uuid.UUID(int=5), datetime(2026, 11, 29, 1, 2, 3, 4), time(1, 2), timedelta(1)],
)


@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("part", range(len(PARTS)))
def test_what_surely_fits_does(serializer, part):
    """What is said to fit certainly, without serializing it, is at most as large when written."""
    value = PARTS[part]
    try:
        size = len(serialize(value, serializer=serializer)[2])
    except EncodeError:
        return  # it can't write these
    fits = [room for room in range(0, 60_000, 50) if surely_fits(value, room)]
    assert fits
    assert min(fits) >= size


# -- the limit


def limit_of(broker, given="auto", **transport_options):
    app = Celery(broker=broker, set_as_current=False)
    app.conf.broker_transport_options = transport_options
    Offload(app, store="memory://", message_limit=given)
    return app._offload.message_limit


@pytest.mark.parametrize(
    ("broker", "given", "options", "size"),
    (
        ("redis://", "auto", {}, None),
        ("memory://", "auto", {}, None),
        ("filesystem://", "auto", {}, None),
        ("nonsense://", "auto", {}, None),
        ("redis://", 50_000, {}, 50_000),
        ("nonsense://", 50_000, {}, 50_000),
        ("sqs://", 0, {}, None),
        ("sqs://", "auto", {}, 983_040),
        ("sqs://", "auto", {"sqs-creation-attributes": {"MaximumMessageSize": "262144"}}, 245_760),
        ("sqs://", 50_000, {}, 50_000),
        ("amqp://", "auto", {}, 15_728_640),
        ("amqps://;amqps://", "auto", {}, 15_728_640),
    ),
)
def test_limits_of_transports(broker, given, options, size):
    """The limit is that of SQS or RabbitMQ, less a margin, or as configured; else there is none."""
    limit = limit_of(broker, given, **options)
    assert (None if limit is None else limit.size) == size


@contextmanager
def connected(version, product="RabbitMQ", frame_max=131_072):
    """Yield a kombu connection to a broker that states these."""
    with amqp_broker({"product": product, "version": version}, frame_max) as url:
        connection = Connection(url, connect_timeout=10)
        connection.connect()
        yield connection
        connection.collect()


@pytest.mark.parametrize(
    ("broker", "size", "headers"),
    (
        ({"version": "3.13.7"}, 125_829_120, 122_880),
        ({"version": "4.1.0"}, 15_728_640, 122_880),
        ({"version": "2.3.0", "product": "LavinMQ"}, 15_728_640, 122_880),
        ({"version": "4.3.5", "frame_max": 1 << 20}, 15_728_640, 983_040),
        ({"version": "4.1.0", "frame_max": 0}, 15_728_640, 122_880),
    ),
)
def test_a_connected_broker_tells_its_limits(broker, size, headers):
    """RabbitMQ 3, known by its version, accepts 128 MiB; headers must fit into a frame."""
    limit = limit_of("amqp://")
    limit.learn(Connection("amqp://127.0.0.1:1//"))
    assert not limit.is_known
    with connected(**broker) as connection:
        limit.learn(connection)
    assert limit.is_known
    assert (limit.size, limit.headers) == (size, headers)


def test_a_configured_limit_is_not_replaced():
    """A broker's version doesn't change a configured limit."""
    limit = limit_of("amqp://", 1_000_000)
    with connected("3.13.7") as connection:
        limit.learn(connection)
    assert limit.is_known
    assert limit.size == 1_000_000


def test_publishing_learns_from_the_broker():
    """The first message that an app sends over AMQP tells what the broker states."""
    wire = limited()
    limit = wire.app._offload.message_limit = MessageLimit(16 << 20, auto=True, is_amqp=True)
    assert not limit.is_known
    wire.sizes.delay(1)
    assert limit.is_known


def test_headers_must_fit_into_a_frame():
    """AMQP can't split headers, so large ones are refused, however large a message may be."""
    wire = limited()
    wire.app._offload.message_limit = MessageLimit(16 << 20, auto=True, is_amqp=True)
    wire.sizes.apply_async((1,), headers={"trace": "x" * 100_000})
    with pytest.raises(ValueTooLarge, match=r"headers have 12\d,\d\d\d bytes.*the 122,880 .*frame"):
        wire.sizes.apply_async((1,), headers={"trace": "x" * 123_000})


# -- any mix

SIZES = st.integers(0, 30_000) | st.integers(0, 300) | st.just(1 << 17)
VALUES = st.builds(
    lambda size, kind: {"str": "s" * size, "list": [size] * (size // 8), "bytes": b"b" * size}[
        kind
    ],
    SIZES,
    st.sampled_from(("str", "list", "bytes")),
)


@given(
    args=st.lists(VALUES, max_size=12),
    kwargs=st.dictionaries(st.sampled_from("abc"), VALUES),
    steps=st.lists(st.lists(VALUES, max_size=3), max_size=6),
    header=SIZES,
    inline=st.sampled_from(((), ("a",), ("*",))),
    compression=st.sampled_from((None, "zlib")),
    serializer=st.sampled_from(("json", "pickle", "msgpack")),
)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_message_fits_or_is_refused(
    args, kwargs, steps, header, inline, compression, serializer
):
    """Whatever a message consists of, it is at most as large as the limit when it is sent, and
    arrives; or it is refused, and nothing is stored.
    """
    wire = WIRES.setdefault(serializer, limited(serializer, limit=60_000, on_outage="raise"))
    wire.calls.clear()
    sent = wire.sizes.s(*args, **kwargs).set(offload={"inline": inline} if inline else None)
    for step in steps:
        sent.link(wire.sizes.si(*step))
    try:
        result = sent.apply_async(headers={"x": "h" * header}, compression=compression)
    except ValueTooLarge:
        assert not {"put", "hold"} & {*wire.calls}
        assert messages(wire) == []
        return
    assert sent_size(wire) <= 60_000
    assert wire.get(result) == [*map(len, args), *map(len, kwargs.values())]


WIRES: dict[str, object] = {}


CANVAS = st.recursive(
    st.lists(st.integers(0, 25_000), max_size=3),
    lambda inner: st.tuples(
        st.sampled_from(("chain", "group", "chord", "link")),
        st.lists(inner, min_size=1, max_size=4),
    ),
    max_leaves=12,
)


def made(wire, shape):
    """Return the canvas that *shape* describes."""
    if isinstance(shape, list):
        return wire.sizes.si(*["x" * size for size in shape])
    kind, parts = shape[0], [made(wire, part) for part in shape[1]]
    if kind == "chain":
        return chain(*parts)
    if kind == "group":
        return group(parts)
    if kind == "chord":
        return chord(parts, wire.sizes.si("y" * 15_000, "z" * 15_000))
    step = wire.sizes.si("y" * 15_000)
    for part in parts:
        step.link(part)
    return step


@given(shape=CANVAS, serializer=st.sampled_from(("json", "pickle")))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],
)
def test_any_canvas_runs_in_messages_that_fit(shape, serializer):
    """Whatever a canvas consists of, no message that it sends, or that its tasks send, exceeds the
    limit, and all tasks run.
    """
    limit = 60_000
    wire = CANVAS_WIRES.setdefault(serializer, limited(serializer, limit=limit))
    with current(wire.app):
        made(wire, shape).apply_async()
        for _ in range(300):
            waiting = messages(wire)
            if not waiting:
                return
            assert max(len(dumps(message)) for message in waiting) <= limit
            failed, result, _ = wire.execute(wire.take())
            assert not failed, result
    raise AssertionError("it doesn't end")


CANVAS_WIRES: dict[str, object] = {}
