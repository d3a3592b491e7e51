"""Records of versions."""

from __future__ import annotations

import contextlib
import json
from dataclasses import fields, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offload.classes.versions import LATEST, Record, Signature, tag_purpose
from offload.errors import CodeRefused

HASH = "0123456789abcdef" * 4
RECORD = Record(
    class_name="shop.Filter",
    hash=HASH,
    digest="b3:" + HASH,
    size=10,
    python="cpython-311",
    kind="class",
    created=1.5,
    modules=("shop",),
    needs=(("shop.Base", HASH[::-1]),),
    source="b3:" + HASH[::-1],
    source_size=5,
    signature=Signature("0" * 16, "ab"),
)
OTHERS = {
    "class_name": "shop.Other",
    "hash": HASH[::-1],
    "digest": "b3:" + HASH[::-1],
    "size": 11,
    "python": "cpython-312",
    "kind": "function",
    "created": 2,
    "purpose": LATEST,
    "modules": (),
    "needs": (),
    "source": "",
    "source_size": 6,
}


def plain(**changed):
    return {**json.loads(RECORD.to_bytes()), **changed}


def test_a_record_is_read_back():
    """A record is read as it was written, and its pointer is human-readable."""
    assert Record.from_bytes(RECORD.to_bytes(), "here") == RECORD
    assert plain()["class_name"] == "shop.Filter"
    assert plain()["hash"] == HASH
    unsigned = replace(RECORD, signature=None)
    assert Record.from_bytes(unsigned.to_bytes(), "here") == unsigned


def test_the_same_bytes_are_signed_after_reading():
    """The signed bytes don't change when a record is stored or signed."""
    read = Record.from_bytes(RECORD.to_bytes(), "here")
    assert read.signed_bytes == RECORD.signed_bytes == replace(RECORD, signature=None).signed_bytes


def test_a_signature_covers_every_field():
    """Every change of a record changes the signed bytes."""
    assert set(OTHERS) == {f.name for f in fields(Record)} - {"signature"}
    signed = {replace(RECORD, **{name: value}).signed_bytes for name, value in OTHERS.items()}
    assert len(signed | {RECORD.signed_bytes}) == len(OTHERS) + 1


def test_purposes_stay_apart():
    """Records for the latest, a version, and a tag have different signed bytes."""
    purposes = ("version", LATEST, tag_purpose("a"), tag_purpose("b"), tag_purpose("latest"))
    assert len({replace(RECORD, purpose=each).signed_bytes for each in purposes}) == 5


@pytest.mark.parametrize(
    "changed",
    (
        {"class_name": 5},
        {"class_name": None},
        {"hash": "abc"},
        {"hash": [HASH]},
        {"digest": "sha:" + HASH},
        {"digest": None},
        {"size": -1},
        {"size": True},
        {"size": 1.0},
        {"size": 1 << 40},
        {"source_size": "5"},
        {"source": 0},
        {"source": "b3:"},
        {"python": 311},
        {"kind": []},
        {"purpose": None},
        {"created": "now"},
        {"created": None},
        {"modules": [5]},
        {"modules": 5},
        {"needs": [["a"]]},
        {"needs": [["a", "b"]]},
        {"needs": [[5, HASH]]},
        {"needs": 7},
        {"needs": [["a", HASH]] * 1001},
        {"signature": {"key": "a"}},
        {"signature": {"key": "a", "value": 5}},
        {"signature": ["a", "b"]},
        {"signature": "ab"},
        {"more": 1},
    ),
)
def test_an_invalid_record(changed):
    """A field of another type or format is refused with its location."""
    with pytest.raises(CodeRefused, match=r"^here isn't a class record"):
        Record.from_bytes(json.dumps(plain(**changed)).encode(), "here")


ANY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@ANY
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_hostile_bytes(content):
    """Arbitrary bytes in a pointer are parsed as a record or refused."""
    with contextlib.suppress(CodeRefused):
        Record.from_bytes(content, "here")


@ANY
@given(st.dictionaries(st.sampled_from(sorted(plain())), JSON), st.integers(0, 3))
def test_hostile_fields(changed, dropped):
    """Records with arbitrary or missing fields are parsed or refused."""
    fields = list(plain(**changed).items())[dropped:]
    with contextlib.suppress(CodeRefused):
        Record.from_bytes(json.dumps(dict(fields)).encode(), "here").signed_bytes  # noqa: B018


def test_deep_nesting():
    """JSON nested deeply enough to exhaust the stack is refused."""
    with pytest.raises(CodeRefused):
        Record.from_bytes(b"[" * 100_000, "here")
    with pytest.raises(CodeRefused):
        Record.from_bytes(b'{"needs":' * 100_000, "here")
