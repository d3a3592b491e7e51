"""References: their form, and that only genuine ones are accepted."""

from __future__ import annotations

import collections
import copy
import dataclasses
import pickle
import re
import types
import typing
from hashlib import blake2b
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from offload.digest import digest_of
from offload.errors import InvalidRef, UnsupportedVersion
from offload.ref import Keys, Late, Ref, fingerprint, looks_like_ref, wire_text
from offload.text import human_size

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
DIGEST = digest_of([b"content"])
KEYS = Keys([KEY])


def signed(keys=KEYS, **changes):
    fields = {
        "digest": DIGEST,
        "data": None,
        "size": 41_200_000,
        "serializer": "pickle",
        "type": "DataFrame",
        "created": 1_700_000_000.9,
        "until": 1_700_086_400.9,
    }
    return keys.sign(**{**fields, **changes})


def test_has_a_readable_repr():
    """A reference's repr has its type, size, and digest prefix."""
    assert repr(Ref.unbound(signed().wire)) == "<Ref, not verified>"
    assert re.fullmatch(r"<Ref DataFrame 41\.2 MB b3:[0-9a-f]{8}…>", repr(signed()))
    assert repr(signed(digest=None, data=b"x", size=7, type="set")) == "<Ref set 7 B inline>"
    assert repr(signed(type="")).startswith("<Ref object ")


@pytest.mark.parametrize(
    ("size", "text"),
    ((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (41_200_000, "41.2 MB"), (3e15, "3000.0 TB")),
)
def test_sizes_are_shown_in_powers_of_1000(size, text):
    """Sizes are formatted in units of 1000, with one decimal from kB up."""
    assert human_size(size) == text


def test_a_type_of_control_characters_is_shown_escaped():
    """Logs and terminals show what anyone wrote as a reference's type without its control
    characters.
    """
    ref = signed(type="\x1b[31m\nERROR")
    for shown in (repr(ref), Ref.unbound(ref.wire).shown):
        assert shown.isprintable()
        assert "ERROR" in shown


@pytest.mark.parametrize("number", ("-5", "1e3", "9" * 400, "", " 5", "1_0"))
@pytest.mark.parametrize("field", ("n", "c", "u"))
def test_a_signed_number_that_is_no_size_or_time_is_refused(field, number):
    """A reference is opened only with a size and times as they are written, whoever signed it."""
    text, _, _ = signed().wire.partition("&m=")
    changed = re.sub(rf"([?&]{field}=)[0-9]+", lambda found: found[1] + quote_plus(number), text)
    mac = blake2b(changed.encode(), key=KEY, digest_size=16, person=b"offload-ref").hexdigest()
    assert changed != text
    with pytest.raises(InvalidRef, match="cannot be read"):
        KEYS.open(f"{changed}&m={mac}")


texts = st.text(max_size=40)
anything = st.characters() | st.characters(categories=["Cs"])  # with lone surrogates


@given(
    digest=st.none() | st.binary().map(lambda b: digest_of([b])),
    data=st.none() | st.binary(max_size=200),
    size=st.integers(0, 2**60),
    serializer=texts,
    type=texts,
    created=st.integers(0, 2**40),
    until=st.integers(0, 2**40),
)
def test_every_field_survives_the_wire(**fields):
    """A reference is opened with the fields it was signed with, whatever their characters."""
    ref = KEYS.sign(**fields)
    opened = KEYS.open(ref.wire)
    assert opened == ref
    for name, value in fields.items():
        assert getattr(opened, name) == value, name


def test_a_long_type_name_does_not_make_a_long_reference():
    """A reference stays at a few hundred bytes, even with a long class name."""
    assert len(signed().wire) < 260
    assert len(signed(type="Ü" * 10_000).wire) < 700


@given(st.data())
def test_any_changed_character_is_refused(data):
    """A reference with one character replaced, removed, or added is refused."""
    wire = signed().wire
    at = data.draw(st.integers(0, len(wire) - 1), "at")
    with_ = data.draw(anything, "with")
    changed = data.draw(
        st.sampled_from(
            (
                wire[:at] + with_ + wire[at + 1 :],
                wire[:at] + wire[at + 1 :],
                wire[:at] + with_ + wire[at:],
            )
        )
    )
    if changed != wire:
        with pytest.raises(InvalidRef):
            KEYS.open(changed)


@given(
    st.text(anything)
    | st.text(anything).map(lambda t: f"offload:1?{t}&m={'0' * 32}")
    | st.from_regex(r"offload:[0-9]{1,4}\?.*&m=[0-9a-f]{32}", fullmatch=True)
)
def test_arbitrary_text_is_refused(text):
    """Arbitrary text, also with lone surrogates, is refused with offload's error."""
    with pytest.raises(InvalidRef):
        KEYS.open(text)


@pytest.mark.parametrize("field", ("d", "n", "s", "t", "c", "u", "k"))
def test_every_field_is_signed(field):
    """A change of any single field is noticed."""
    wire = signed().wire
    changed = re.sub(
        rf"(?<=[?&]{field}=)([^&])", lambda m: "1" if m[1] != "1" else "2", wire, count=1
    )
    assert changed != wire
    with pytest.raises(InvalidRef, match="no valid signature: it was"):
        KEYS.open(changed)


@pytest.mark.parametrize(
    ("secret", "setting"),
    ((False, "set the same offload_store"), (True, "set the same offload_secret")),
)
def test_another_key_opens_nothing_and_is_named(secret, setting):
    """The error has both keys' fingerprints and the setting to check."""
    theirs, ours = (fingerprint(key)[:8] for key in (KEY, OTHER_KEY))
    with pytest.raises(InvalidRef, match="made for another store or secret") as caught:
        Keys([OTHER_KEY], secret=secret).open(signed().wire)
    assert f"theirs {theirs}, ours {ours}" in str(caught.value)
    assert setting in str(caught.value)
    with pytest.raises(InvalidRef, match=f"ours {ours}, {fingerprint(b'x' * 32)[:8]}"):
        Keys([OTHER_KEY, b"x" * 32]).open(signed().wire)


def test_a_fingerprint_reveals_nothing():
    """A fingerprint contains no part of the key or of its signatures."""
    from offload.ref import _mac

    name = fingerprint(KEY)
    assert fingerprint(OTHER_KEY) != name
    assert name not in KEY.hex()
    assert name not in {_mac(KEY, text)[:16] for text in ("", "offload-key-name")}


def test_references_of_the_previous_release_are_read():
    """References of the previous release have no fingerprint; the error for a refused one doesn't
    guess its key.
    """
    wire = (
        "offload:1?d=b3:aedc0f5d14b2ee2b08ee2ea5d96ea51fbc0e4b5c7f24b67e70aeb2f0a1a5a3c1"
        "&n=7&s=raw&t=bytes&c=1&u=2"
    )
    wire += (
        f"&m={blake2b(wire.encode(), key=KEY, digest_size=16, person=b'offload-ref').hexdigest()}"
    )
    assert KEYS.open(wire).size == 7
    with pytest.raises(InvalidRef, match=r"theirs not named, ours [0-9a-f]{8}\), or changed"):
        Keys([OTHER_KEY]).open(wire)


def test_readers_ignore_fields_they_do_not_know():
    """Unknown fields are ignored, so that a field can be added before readers are upgraded."""
    from offload.ref import _mac

    text = signed().wire.rpartition("&m=")[0] + "&new=1"
    assert KEYS.open(f"{text}&m={_mac(KEY, text)}").size == 41_200_000


def test_after_rotation_the_old_secret_still_opens():
    """The first key signs, every listed key is accepted, and a removed one isn't."""
    old, new = signed(), signed(Keys([OTHER_KEY, KEY]))
    assert Keys([OTHER_KEY, KEY]).open(old.wire) == old
    assert Keys([OTHER_KEY]).open(new.wire) == new
    with pytest.raises(InvalidRef):
        Keys([OTHER_KEY]).open(old.wire)


def test_no_key_no_reference():
    """Without keys every reference is refused."""
    with pytest.raises(InvalidRef):
        Keys([]).open(signed().wire)


def test_a_newer_version():
    """A reference of a newer offload, signed or not, says what to upgrade."""
    wire = signed().wire.replace("offload:1?", "offload:3?")
    with pytest.raises(UnsupportedVersion, match=r"version 3 .* upgrade offload here"):
        KEYS.open(wire)


def test_the_wire_text_of_a_late_reference():
    """The text of a late reference stays as it is, and opens to what it was made from."""
    late = Late("team-a", "churn/model:é", "production")
    ref = KEYS.sign_late(late, 1_700_000_000.9)
    assert ref.wire.rpartition("&m=")[0] == (
        "offload:2?b=team-a&l=churn%2Fmodel:%C3%A9&v=production&c=1700000000&k="
        + KEYS.fingerprints[0]
    )
    opened = KEYS.open(ref.wire)
    assert (opened, opened.late, opened.digest) == (ref, late, None)
    assert repr(opened) == "<Ref late churn/model:é@production>"
    for other in ("b=team-b", "l=x", "v=1"):
        with pytest.raises(InvalidRef):
            KEYS.open(re.sub(rf"\b{other[0]}=[^&]*", other, ref.wire))


def test_a_nonsensical_signed_reference_is_refused():
    """A signed reference with nonsensical content is an InvalidRef."""
    from offload.ref import _mac

    for text in ("offload:1?", "offload:1?s=a", "offload:1?n=x&s=a&t=b&c=1&u=1",
                 "offload:1?d=b3:zz&n=1&s=a&t=b&c=1&u=1",
                 "offload:1?i=!!&n=1&s=a&t=b&c=1&u=1",
                 "offload:2?n=1&s=a&t=b&c=1&u=1", "offload:2?b=a&l=b&v=c&c=x"):  # fmt: skip
        with pytest.raises(InvalidRef):
            KEYS.open(f"{text}&m={_mac(KEY, text)}")


def test_cannot_be_changed():
    """A reference is immutable: no field can be set or deleted."""
    ref = signed()
    for name in ("digest", "wire", "resolve", "anything"):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
            setattr(ref, name, "x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        del ref.wire


def test_equal_and_hashable_by_wire_text():
    """References with the same wire text are equal, bound or not; others differ."""
    ref = signed()
    bound = dataclasses.replace(ref, resolve=lambda _: 1)
    assert bound == ref
    assert hash(bound) == hash(ref)
    assert {ref: 1}[KEYS.open(ref.wire)] == 1
    assert {ref: 1}[pickle.loads(pickle.dumps(ref))] == 1
    assert signed(size=1) != ref
    assert ref != ref.wire


def test_local_references_are_equal_only_to_themselves():
    """Two references to local values are never equal."""
    one, two = Ref.local([1]), Ref.local([1])
    assert one == one
    assert one != two


def test_pickles_as_its_wire_text_only():
    """An unpickled reference resolves nothing by itself and contains no store."""
    ref = dataclasses.replace(signed(), resolve=lambda _: "value")
    pickled = pickle.dumps(ref)
    assert len(pickled) < 400
    again = pickle.loads(pickled)
    assert again.wire == ref.wire
    assert again.resolve is None
    assert again.digest is None  # nothing that was not verified
    with pytest.raises(InvalidRef, match="bound to no app"):
        again.get()


@pytest.mark.parametrize("copied", (copy.copy, copy.deepcopy))
def test_copies_are_the_reference_itself(copied):
    """Celery deep-copies signatures: a reference in one stays the same, also a local one."""
    bound = dataclasses.replace(signed(), resolve=lambda _: "value")
    assert copied(bound).get() == "value"
    assert copied(Ref.local("here")).get() == "here"


def test_a_local_reference_pickles_with_its_value():
    """A local reference is pickled with its value."""
    assert pickle.loads(pickle.dumps(Ref.local([1, 2]))).get() == [1, 2]


def test_is_plain_data_in_json():
    """In JSON a reference is the documented dict, which is read back as a dict, not as a Ref."""
    ref = signed()
    text = kombu_json.dumps({"a": ref})
    assert kombu_json.loads(text) == {"a": {"__type__": "offload", "__value__": ref.wire}}


@pytest.mark.parametrize(
    "value",
    (
        {"__type__": "offload", "__value__": 5},
        {"__type__": "offload", "__value__": None},
        {"__type__": "offload", "__value__": "x", "more": 1},
        {"__type__": "datetime", "__value__": "x"},
        {"__type__": ["offload"], "__value__": "x"},
        "offload:1?",
        [],
        None,
    ),
)
def test_other_data_has_no_wire_text(value):
    """Data without the form of a reference has no wire text."""
    assert wire_text(value) is None


def test_data_shaped_like_a_reference_is_recognized():
    """Data shaped like a reference is recognized without keys."""
    assert looks_like_ref({"__type__": "offload", "__value__": 5})
    assert wire_text({"__type__": "offload", "__value__": "x"}) == "x"
    assert not looks_like_ref({"__type__": "offload"})


def test_can_be_used_as_an_annotation():
    """``Ref[X]`` is an annotation that typing can take apart."""
    annotation = Ref[dict[str, int]]
    assert typing.get_origin(annotation) is Ref
    assert typing.get_args(annotation) == (dict[str, int],)


def test_a_local_reference_gives_its_value():
    """A `Ref.local` always has its value, the same object."""
    value = object()
    ref = Ref.local(value)
    assert ref.is_local
    assert ref.get() is value
    assert "object" in repr(ref)


def test_keys_are_not_shown():
    """Neither the repr of keys nor that of a reference shows a secret."""
    assert "kkkk" not in repr(KEYS)
    assert "kkkk" not in repr(signed())


@pytest.mark.parametrize(
    "make",
    (
        collections.OrderedDict,
        types.MappingProxyType,
        collections.UserDict,
        lambda data: type("Own", (), {"__json__": lambda _self: data})(),
    ),
)
def test_objects_that_json_writes_like_one_are_recognized(make):
    """Mappings of any class, and objects that kombu's JSON turns into one, are recognized, too."""
    assert looks_like_ref(make({"__type__": "offload", "__value__": "x"}))
    assert not looks_like_ref(make({"__type__": "offload", "value": "x", "more": 1}))


def test_a_failing_reducer_is_no_reference():
    """An object whose ``__json__`` fails isn't taken for a reference."""
    assert not looks_like_ref(type("Own", (), {"__json__": lambda: 1})())
