"""The bytes of records, and the states of names, whoever changes them in which order."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload import IntegrityError
from offload.catalog.names import name_pointer, record_pointer
from offload.catalog.records import (
    NameState,
    Record,
    read_record,
    read_state,
    seal,
    write_record,
    write_state,
)
from offload.ref import Keys

KEYS = Keys([b"k" * 32])
RECORD = Record(
    bucket="team-a",
    name="größe/model",
    version="2.1.0",
    type="dict",
    size=7,
    created=1700000000.5,
    author="host:1",
    metadata={"stage": "prod", "é": [1, None]},
    digest="b3:" + "1f" * 32,
    ref="offload:1?d=…",
    nonce="0123456789ab",
)
POINTER = "catalog/team-a/gr=C3=B6=C3=9Fe+model/2.1"
WRITTEN = (
    '503e2904d01e3a65d97dc238fb8fad0b {"format":1,"ref":"offload:1?d=…","version":"2.1.0",'
    '"type":"dict","size":7,"digest":"b3:1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f",'
    '"created":1700000000.5,"author":"host:1","metadata":{"stage":"prod","é":[1,null]},"nonce":"0123456789ab"}'
)
STATE = NameState(frozenset({"2.1", "1"}), {"2.1": 1700000000.5}, {"production": "1"})
STATE_WRITTEN = (
    'b3dc5c0ff7186b16cf9f5a3f0428379b {"format":1,"versions":["1","2.1"],'
    '"recent":{"2.1":1700000000.5},"tags":{"production":"1"}}'
)


def test_the_bytes_of_a_record():
    """A record has these bytes under this name; what earlier versions wrote is read."""
    assert record_pointer("team-a", RECORD.name, RECORD.key) == POINTER
    assert write_record(RECORD, POINTER, KEYS).decode() == WRITTEN
    assert read_record(POINTER, WRITTEN.encode(), KEYS) == RECORD
    assert RECORD.holder == "catalog:team-a/gr=C3=B6=C3=9Fe+model@2.1+0123456789ab"


def test_the_bytes_of_a_state():
    """A name's state has these bytes under this name."""
    pointer = name_pointer("team-a", RECORD.name)
    assert pointer == "catalog-names/team-a/gr=C3=B6=C3=9Fe+model"
    assert write_state(STATE, pointer, KEYS).decode() == STATE_WRITTEN
    assert read_state(pointer, STATE_WRITTEN.encode(), KEYS) == STATE


def test_the_bytes_of_a_state_with_taken_numbers():
    """Numbers that savers took lately are in a state; earlier versions ignore them."""
    state = NameState().took(7, 1700000000.5)
    text = (
        '{"format":1,"versions":["7"],"recent":{"7":1700000000.5},"tags":{},"taken":["7"],"last":7}'
    )
    pointer = name_pointer("team-a", "a")
    assert write_state(state, pointer, KEYS).decode().partition(" ")[2] == text
    assert read_state(pointer, write_state(state, pointer, KEYS), KEYS) == state


def test_an_unverified_record():
    """People may read a record without its key; nothing else does."""
    other = Keys([b"o" * 32])
    with pytest.raises(IntegrityError):
        read_record(POINTER, WRITTEN.encode(), other)
    assert read_record(POINTER, WRITTEN.encode(), None) == RECORD


@pytest.mark.parametrize("mac", ("é", "", "0" * 32))
def test_no_signature_is_valid_but_the_right_one(mac):
    """Whatever text is in the signature's place, a record and a state are refused as altered."""
    name = name_pointer("team-a", RECORD.name)
    for read, pointer, written in (
        (read_record, POINTER, WRITTEN),
        (read_state, name, STATE_WRITTEN),
    ):
        with pytest.raises(IntegrityError, match="isn't signed for this store"):
            read(pointer, (mac + written[32:]).encode(), KEYS)


@pytest.mark.parametrize(
    ("field", "wrong"),
    (
        ("created", 10**400),
        ("created", 1e300),
        ("size", 10**400),
        ("size", -1),
        ("digest", "../../x"),
        ("digest", "b3:x"),
        ("digest", 5),
        ("author", None),
    ),
)
def test_a_field_that_no_record_has_is_refused(field, wrong):
    """A number that is too large, or a digest that isn't one, makes a record an altered one, also
    if it is read unverified, as by a sweep.
    """
    data = {**json.loads(WRITTEN.partition(" ")[2]), field: wrong}
    for keys, value in ((None, f"{'0' * 32} {json.dumps(data)}".encode()),
                        (KEYS, seal(POINTER, data, KEYS))):  # fmt: skip
        with pytest.raises(IntegrityError, match="isn't signed for this store"):
            read_record(POINTER, value, keys)


def test_a_record_without_a_digest_is_read():
    """A record that lacks the digest, which may be null, is read as one of which it isn't known."""
    data = json.loads(WRITTEN.partition(" ")[2])
    del data["digest"]
    for keys in (None, KEYS):
        assert read_record(POINTER, seal(POINTER, data, KEYS), keys).digest is None


@pytest.mark.parametrize(
    ("field", "wrong"),
    (
        ("versions", ["2.1", "no version"]),
        ("versions", [5]),
        ("recent", {"2.1": 10**400}),
        ("recent", {"x y": 1}),
        ("tags", {"production": "no version"}),
        ("last", -1),
        ("last", 10**300),
    ),
)
def test_a_field_that_no_state_has_is_refused(field, wrong):
    """A state that lists what can't be a version, or has a number that is too large, is refused,
    even with a valid signature.
    """
    pointer = name_pointer("team-a", RECORD.name)
    data = {**json.loads(STATE_WRITTEN.partition(" ")[2]), field: wrong}
    with pytest.raises(IntegrityError):
        read_state(pointer, seal(pointer, data, KEYS), KEYS)


def test_a_record_is_of_its_pointers_version():
    """A record of another version than its pointer's is refused, even if it is signed for it."""
    with pytest.raises(IntegrityError, match="größe/model@2"):
        read_record(POINTER, write_record(replace(RECORD, version="3"), POINTER, KEYS), KEYS)


def test_what_users_see():
    """A record as plain data has neither its reference nor its random number."""
    shown = RECORD.as_dict()
    assert shown["tags"] == []
    assert not {"ref", "nonce"} & shown.keys()
    assert "offload:1" not in repr(RECORD)


HOUR = 3600.0
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("announce", "write", "remove", "wait", "mend")),
        st.sampled_from(("1", "2", "3")),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_record_is_missing_in_a_state(steps):
    """However savers and those who remove take turns, a state lists all versions with records.

    Each saver announces a version, and writes its record within ten minutes, if it does at all.
    Whoever removes a version reads the state before, and changes it only if it is still the same.
    """
    now, state, records, savers = 0.0, NameState(), set(), {}
    for step, key, number in steps:
        if step == "announce":
            savers[number] = key, now
            state = state.announced(key, now)
        elif step == "write" and number in savers:
            announced, since = savers.pop(number)
            if now - since < HOUR / 6:
                records.add(announced)
        elif step == "remove":
            records.discard(key)
            state = state.without(frozenset({key}), now)
        elif step == "mend":
            state = state.found(records).without(state.keys - records, now)
        elif step == "wait":
            now += (1.0, 500.0, HOUR, 2 * HOUR)[number]
        assert records <= state.keys
    state = state.without(state.keys - records, now + 2 * HOUR)
    assert state.keys == records


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("take", "announce", "write", "remove", "wait", "mend")),
            st.sampled_from(("1", "2", "3")),
            st.integers(0, 3),
        ),
        max_size=60,
    )
)
def test_no_number_comes_again(steps):
    """However savers and those who remove take turns, a saver without a version writes one that
    nobody has written before, and no version goes missing.

    Each saver writes its record within ten minutes. If that takes longer, one that was given a
    version announces it again, and one that wasn't takes another number.
    """
    now, state, records, written, savers = 0.0, NameState(), set(), set(), {}
    for step, key, number in steps:
        if step == "take":
            state = state.took(state.next_number(0, now), now)
            savers[number] = str(state.last), now, True
        elif step == "announce" and (key in records or not state.is_taken(key, now)):
            savers[number] = key, now, False
            state = state.announced(key, now)
        elif step == "write" and number in savers:
            own, since, is_numbered = savers.pop(number)
            if now - since < HOUR / 6 and own not in records:
                assert not (is_numbered and own in written)
                records.add(own)
                written.add(own)
        elif step == "remove" and key in records:
            state = state.numbered(int(key))
            records.discard(key)
            state = state.removed(frozenset({key}), now)
        elif step == "mend":
            state = state.found(records).without(state.keys - records, now)
        elif step == "wait":
            now += (1.0, 500.0, HOUR, 2 * HOUR)[number]
        assert records <= state.keys
        assert state.taken <= state.keys
