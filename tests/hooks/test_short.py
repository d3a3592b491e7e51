"""Short references in messages: the same references, in half the characters."""

from __future__ import annotations

import json

import pytest
from celery import chain, chord
from celery.worker.request import Request
from hypothesis import given
from hypothesis import strategies as st
from kombu.serialization import dumps as serialize
from kombu.serialization import prepare_accept_content
from kombu.utils.json import dumps

from offload.digest import digest_of
from offload.errors import InvalidRef, UnsupportedVersion
from offload.hooks import message, requests
from offload.hooks.message import Note, refs_to_prefetch, restore_refs
from offload.hooks.options import TaskFacts
from offload.hooks.short import expand, key_of, shorten
from offload.ref import Keys, Late, Ref, in_message
from tests.support.wire import make_wire

SERIALIZERS = ("json", "pickle", "msgpack", "yaml")
KEYS = Keys([b"k" * 32])
(KEY,) = KEYS.fingerprints
BIG = list(range(1000))
WEEK = 7 * 86_400

texts = st.text(max_size=30) | st.sampled_from(
    ("raw", "json", "ndarray", "str", "a&b=c", "x" * 300)
)


def signed(keys=KEYS, **changes):
    fields = {
        "digest": digest_of([b"content"]),
        "data": None,
        "size": 41_200_000,
        "serializer": "tree",
        "type": "ndarray",
        "created": 1_700_000_000.0,
        "until": 1_700_000_000.0 + WEEK,
    }
    return keys.sign(**{**fields, **changes})


# -- the form


@given(
    digest=st.none() | st.binary().map(lambda b: digest_of([b])),
    data=st.none() | st.binary(max_size=20),
    size=st.integers(0, 2**64),
    serializer=texts,
    type=texts,
    created=st.integers(0, 2**40),
    until=st.integers(0, 2**40) | st.sampled_from((1_700_000_000, 1_700_086_400)),
)
def test_any_reference_is_restored_exactly(**fields):
    """Whatever its fields, a reference is restored character by character, or stays as it is."""
    wire = KEYS.sign(**fields).wire
    short = shorten(wire, KEY)
    assert short == wire or len(short) < len(wire)
    assert expand(short, KEY) == wire


def test_an_ordinary_reference_takes_100_characters_with_its_json():
    """Of 41 MB held for a week: 78 characters instead of 179; with the JSON around it, 97."""
    short = shorten(signed().wire, KEY)
    assert len(short) == 78
    assert len(dumps(in_message(short))) == 97
    whole = len(signed().wire)
    assert whole == 179


@pytest.mark.parametrize(
    "wire",
    (
        KEYS.sign_late(Late("bucket", "name", "latest"), 1.0).wire,
        signed(digest=None, data=b"small").wire,
        signed(Keys([b"o" * 32])).wire,
        signed(created=2.0**33, until=2.0**33).wire,
        signed(until=1.0).wire,
        signed().wire.replace("&n=4", "&n=04"),
        signed().wire.replace(f"&k={KEY}", ""),
        signed().wire.replace("&m=", "&new=1&m="),
        "",
        "anything",
    ),
)
def test_other_references_stay_as_they_are(wire):
    """References that the form doesn't cover aren't changed."""
    assert shorten(wire, KEY) == wire
    assert expand(wire, KEY) == wire


def test_the_key_of_a_message_is_that_of_its_first_short_reference():
    """References that can't be shortened have no say in the key of a message."""
    late = KEYS.sign_late(Late("bucket", "name", "latest"), 1.0).wire
    assert key_of([late, signed().wire, signed(Keys([b"o" * 32])).wire]) == KEY
    assert key_of([late]) == key_of([]) == ""


# -- bad input


def test_any_flipped_bit_is_noticed():
    """A short reference with any bit flipped, or cut off anywhere, opens as no reference."""
    for wire in (signed().wire, signed(type="mine.Type", serializer="mine", until=1.8e9).wire):
        short = shorten(wire, KEY)
        changed = [short[:end] for end in range(len(short))] + [short + "A", short + "="]
        for at in range(len(short)):
            for bit in range(8):
                other = chr(ord(short[at]) ^ 1 << bit)
                changed.append(short[:at] + other + short[at + 1 :])
        for text in changed:
            with pytest.raises(InvalidRef):
                KEYS.open(expand(text, KEY))


@given(
    st.text(st.characters() | st.characters(categories=["Cs"]))
    | st.text("AZaz09-_=é", min_size=60, max_size=800)
    | st.from_regex(r"[\w-]{72,90}", fullmatch=True)
)
def test_arbitrary_text_becomes_no_reference(text):
    """Arbitrary text, of any length and characters, restores to nothing that opens."""
    with pytest.raises(InvalidRef):
        KEYS.open(expand(text, KEY))


@given(st.binary(min_size=54, max_size=560), st.integers(0, 255))
def test_arbitrary_bytes_become_no_reference(packed, codes):
    """Arbitrary bytes in the form restore to a text that isn't signed, or to nothing."""
    from base64 import urlsafe_b64encode

    text = urlsafe_b64encode(bytes([codes]) + packed).rstrip(b"=").decode()
    with pytest.raises(InvalidRef):
        KEYS.open(expand(text, KEY))


@pytest.mark.parametrize("key", (5, None, "", "5BD5A150", "5bd5a15", "5bd5a150\n", ["5bd5a150"]))
def test_a_note_with_a_malformed_key_is_refused(key):
    """A note's key is a fingerprint; anything else is refused."""
    with pytest.raises(InvalidRef, match="malformed"):
        Note.read({"v": 3, "refs": [["args", 0]], "k": key or 5})


# -- messages


def parts_of(serializer="json", **given):
    """Return a Wire whose messages have short references, and tasks that record their calls."""
    conf = {"task_serializer": serializer, "accept_content": SERIALIZERS}
    wire = make_wire(short_refs=True, conf=conf, **given)
    wire.seen = []

    @wire.app.task(name="total", shared=False)
    def total(*args, **kwargs):
        wire.seen.append((args, kwargs))
        return [sum(map(sum_of, args)), *BIG]

    @wire.app.task(name="lazy", shared=False)
    def lazy(ref: Ref):
        return sum_of(ref.get())

    @wire.app.task(name="fail", shared=False)
    def fail(_value):
        raise ValueError

    wire.total, wire.lazy, wire.fail = total, lazy, fail
    return wire


def sum_of(value):
    return sum(map(sum_of, value)) if isinstance(value, (list, tuple)) else value


def note_of(wire):
    return wire.sent[-1][1][2]["offload"]


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_values_arrive(serializer):
    """Arguments, in containers too, and values of late Refs arrive; the note has version 3."""
    wire = parts_of(serializer)
    result = wire.total.delay(BIG, [{"deep": 1}["deep"], BIG], more=BIG)
    (first, second), kwargs, embed = wire.sent[-1][1]
    found = [first, kwargs["more"]]
    assert [list(map(len, each.values())) for each in found] == [[78]] * 2 or len(second) == 1
    assert embed["offload"]["v"] == 3
    assert embed["offload"]["k"] == wire.hook._runtime.content.signing.keys.fingerprints[0]
    assert wire.get(result)[0] == 2 * sum(BIG) + 1
    assert wire.seen == [((BIG, [1, BIG]), {"more": BIG})]
    assert wire.get(wire.lazy.delay(BIG)) == sum(BIG)


@pytest.mark.parametrize("serializer", ("json", "pickle", "msgpack"))
def test_canvases_run(serializer):
    """Chains, chords, callbacks, and error callbacks receive their values."""
    wire = parts_of(serializer)
    step = wire.total.s
    assert wire.get(chain(step(BIG), step(BIG), step(BIG)).delay())[0] == 5 * sum(BIG)
    assert wire.get(chord([step(BIG), step(BIG)], step()).delay())[0] == 4 * sum(BIG)
    wire.seen.clear()
    wire.total.apply_async((BIG,), link=wire.total.si(BIG, 1))
    wire.fail.apply_async((BIG,), link_error=wire.total.si(BIG, 2))
    wire.work()
    assert sorted(args for args, _ in wire.seen) == [(BIG,), (BIG, 1), (BIG, 2)]


def test_a_reference_takes_100_characters_with_its_path():
    """A note of short references lists arguments by number or name, and their parts below that."""
    wire = parts_of()
    wire.total.delay(BIG)
    before = len(dumps(wire.sent[-1][1]))
    wire.total.delay(BIG, BIG)
    assert len(dumps(wire.sent[-1][1])) - before <= 102  # commas included
    ref = wire.hook.put(BIG)
    wire.total.delay(BIG, [1, ref], more=BIG, deep={"0": [ref]})
    assert note_of(wire)["refs"] == [0, [1, 1], "more", ["deep", "0", 0]]
    wire.work()
    assert wire.seen[-1] == ((BIG, [1, BIG]), {"more": BIG, "deep": {"0": [BIG]}})


@pytest.mark.parametrize(
    "refs", ([True], [1.5], [None], [[]], [{}], [["args"]], "0", {"0": 1}, [[0, [1]]], 5)
)
def test_malformed_paths_are_refused(refs):
    """A note with a path that offload doesn't write is refused, or leads to no reference."""
    wire = parts_of()
    result = wire.total.delay(BIG)
    sent = wire.take()
    body = json.loads(sent.body)
    body[2]["offload"]["refs"] = refs
    sent.body = json.dumps(body)
    wire.execute(sent)
    with pytest.raises(InvalidRef):
        result.get(timeout=10)
    assert wire.seen == []


def test_pickled_signatures_have_short_references():
    """In a pickled message, references in its callbacks, and in signatures among its arguments, are
    short, too; the holds that it lists are those of the whole ones, and all are restored.
    """
    sizes = []
    for short in (False, True):
        wire = parts_of("pickle")

        @wire.app.task(name="forward", shared=False, bind=True)
        def forward(self, step, _value):
            self.app.send_task(step["task"], step["args"])

        object.__setattr__(wire.hook._runtime.settings, "short_refs", short)
        forward.apply_async(
            (wire.total.si(BIG, 5), BIG),
            link=wire.total.si(BIG, 1),
            link_error=wire.total.si(BIG, 2),
        )
        body = wire.sent[-1][1]
        sizes.append(len(serialize(body, "pickle")[2]))
    assert sizes[1] < sizes[0] - 80
    note = body[2]["offload"]
    assert max(map(len, note["also"])) < 80
    texts = {each["args"][0]["__offload__"] for each in body[2]["callbacks"]}
    assert texts == set(note["also"])
    _, _, held = restore_refs({"args": body[0], "kwargs": {}, **body[2]}, note)
    assert {wire.hook._runtime.content.open(text).get()[:3] == BIG[:3] for text in held} == {True}
    wire.work()
    assert sorted(args for args, _ in wire.seen) == [(BIG, 1), (BIG, 5)]


def test_error_callbacks_in_pickled_messages_run():
    """A task that fails, or that the main process ends, calls its error callbacks, whose short
    references were pickled.
    """
    wire = parts_of("pickle")
    wire.run(wire.total, 1)  # a worker would have built its tracer
    wire.seen.clear()
    wire.fail.apply_async((BIG,), link_error=wire.total.si(BIG, 2))
    wire.work()
    wire.fail.apply_async((BIG,), link_error=wire.total.si(BIG, 3))
    sent = wire.take()
    requests.install()
    sent.headers, sent.accept = {**sent.headers, "task": "fail"}, prepare_accept_content(["pickle"])
    Request(sent, app=wire.app, task=wire.fail).on_timeout(soft=False, timeout=1)
    wire.work()
    assert [args for args, _ in wire.seen] == [(BIG, 2), (BIG, 3)]


def test_messages_without_references_stay_as_they_are():
    """A message without references, and the default, have no note or the earlier version."""
    wire = parts_of()
    wire.total.delay(1)
    assert "offload" not in wire.sent[-1][1][2]
    wire.total.apply_async((1,), offload={"retention": 60.0})
    assert note_of(wire)["v"] == 2
    other = make_wire()
    other.app.send_task("total", (BIG,))
    assert note_of(other)["v"] == 2
    assert "k" not in note_of(other)


def test_a_reader_needs_no_setting():
    """A worker without the setting reads short references."""
    wire = parts_of()
    result = wire.total.delay(BIG)
    object.__setattr__(wire.hook._runtime.settings, "short_refs", False)
    assert wire.get(result)[0] == sum(BIG)


def test_an_earlier_release_never_runs_a_task_on_them(monkeypatch):
    """A worker that knows notes up to version 2 fails the task, and says what to upgrade."""
    wire = parts_of()
    result = wire.total.apply_async((BIG,), link_error=wire.total.si(7))
    monkeypatch.setattr(message, "NOTE_VERSION", 2)
    monkeypatch.setattr(message, "expand", lambda text, _key: text)
    wire.work()
    with pytest.raises(UnsupportedVersion, match="upgrade offload on workers before publishers"):
        result.get(timeout=10)
    assert wire.seen == [((7,), {})]


def test_a_flipped_bit_fails_the_task_and_calls_its_error_callbacks():
    """A changed short reference fails its task; callbacks with references of their own run."""
    wire = parts_of()
    result = wire.total.apply_async((BIG, 1), link_error=wire.total.si(BIG))
    sent = wire.take()
    body = json.loads(sent.body)
    text = body[0][0]["__offload__"]
    body[0][0]["__offload__"] = text[:9] + ("A" if text[9] != "A" else "B") + text[10:]
    sent.body = json.dumps(body)
    wire.execute(sent)
    wire.work()
    with pytest.raises(InvalidRef, match=r"args\[0\]"):
        result.get(timeout=10)
    assert wire.seen == [((BIG,), {})]


def test_the_main_process_restores_them():
    """`inspect`, `purge`, and revoked tasks restore references; prefetching finds them."""
    wire = parts_of()
    wire.total.delay(BIG, 1)
    args, kwargs, embed = json.loads(json.dumps(wire.sent[-1][1]))
    parts = {"args": args, "kwargs": kwargs, "chain": None}
    restored, _, held = restore_refs(parts, embed["offload"])
    assert repr(restored["args"][0]) == "<Ref, not verified>"
    assert restored["args"][0].shown.startswith("list ")
    opened = wire.hook._runtime.content.open(held[0])
    assert opened.get() == BIG
    assert refs_to_prefetch(args, kwargs, embed["offload"], TaskFacts()) == [opened.wire]
    assert held == [opened.wire]
    embed["offload"]["holds"] = 5  # malformed, but the message may be sent again
    restored, name, held = restore_refs(parts, embed["offload"])
    assert (restored["args"][0].wire, name, held) == (opened.wire, "", [])


# -- the limit on messages


@pytest.mark.parametrize("serializer", ("json", "msgpack", "yaml"))
def test_what_is_measured_is_never_less_than_what_is_sent(serializer, monkeypatch):
    """The message that is measured before anything is stored is at most slightly larger than the
    one that is sent.
    """
    from offload.hooks import fit

    wire = parts_of(serializer, threshold=65_536, message_limit=20_000)
    measured = []
    trial = fit._measure

    def measure(out, limit, call, finish):
        sizes = trial(out, limit, call, finish)
        measured.append(sizes.plain)
        return sizes

    monkeypatch.setattr(fit, "_measure", measure)
    values = ["v" * 2000 + str(i) for i in range(12)]
    wire.app.send_task("total", values, {"more": wire.hook.put(BIG)})
    (args, kwargs, _) = body = wire.sent[-1][1]
    stored = sum(isinstance(each, dict) for each in (*args, *kwargs.values()))
    assert 1 < stored < 13
    sent = len(serialize(body, serializer)[2])
    assert sent <= measured[-1] <= sent + 8 * stored


def test_ten_thousand_references_take_half_the_bytes():
    """A message of 10,000 references is half as large, and what is refused says its size."""
    sizes = {}
    for short in (False, True):
        wire = make_wire(short_refs=short, message_limit=0)
        ref = wire.hook.put(BIG)
        wire.app.send_task("total", ([ref] * 10_000,))
        sizes[short] = len(serialize(wire.sent[-1][1], "json")[2])
    assert sizes[True] < 1_200_000 < 2_100_000 < sizes[False]


def test_a_repeated_reference_costs_pickle_no_more_than_before():
    """Pickle writes the text of one reference once, however often it occurs."""
    sizes = []
    for short in (False, True):
        wire = make_wire(short_refs=short, message_limit=0, conf={"task_serializer": "pickle"})
        ref = wire.hook.put(BIG)
        wire.app.send_task("total", ([ref] * 1000,))
        sizes.append(len(serialize(wire.sent[-1][1], "pickle")[2]))
    assert sizes[1] <= sizes[0]
