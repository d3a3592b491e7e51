"""Names, versions, and tags: what is allowed, and the pointers that stand for them."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from packaging.version import Version

from offload.catalog.names import (
    check_bucket,
    check_name,
    check_tag,
    decode,
    encode,
    name_pointer,
    number_of,
    object_of,
    ordered,
    record_pointer,
    split_label,
    version_key,
)
from offload.catalog.records import holder_of
from offload.stores.checks import check_holder
from offload.stores.checks import check_name as check_pointer

NOT_NAMES = (
    "",
    "/",
    ":",
    "a/",
    ":a",
    "a//b",
    "a::b",
    "a:/b",
    "..",
    "../a",
    "a/..",
    "a/../b",
    "a..b",
    ".",
    "a/./b",
    " a",
    "a ",
    "a/ b",
    "a\n",
    "a\x00b",
    "a\x7f",
    "a@b",
    "@",
    "\ud800",
    "a\u200bb",
    "\u202ea",
    "a" * 121,
    "ä" * 21,
    None,
    1,
    b"a",
)
NAMES = (
    "a",
    "churn:model",
    "images/old/cat.png",
    "Größe",
    "模型:v",
    "a b",
    "a%2Fb",
    "a=2Fb",
    "a+b",
    "~!#$&'()*,;<>?[]^`{|}\"\\",
    "a" * 120,
    "latest",
    "con",
)


@pytest.mark.parametrize("name", NOT_NAMES)
def test_what_is_no_name(name):
    """Parts that are empty or ``..``, control characters, and long names are refused."""
    with pytest.raises(ValueError, match="a name is parts of"):
        check_name(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_a_name(name):
    """Printable names are kept as they are; pointers with the longest version may have them."""
    assert check_name(name) == name
    pointer = record_pointer("b" * 30, name, "9" * 30)
    assert object_of(check_pointer(pointer)) == ("b" * 30, name, "9" * 30)
    check_pointer(f"lock/{pointer}")
    check_holder(holder_of("b" * 30, name, "9" * 30, "0" * 12))


def test_two_forms_of_a_letter_are_one_name():
    """Names that Unicode calls equivalent are one name."""
    assert check_name("Gro\u0308ße") == check_name("Größe")


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_pointer_stands_for_one_name(one, two):
    """Whatever the names are, each has a pointer of its own, which starts as the name does."""
    assume("\ud800" not in one)
    try:
        one, two = check_name(one), check_name(two)
    except ValueError:
        return
    check_pointer(name_pointer("default", one))
    assert decode(encode(one)) == one
    assert (encode(one) == encode(two)) == (one == two)
    assert (encode(one).startswith(encode(two))) == one.startswith(two)


@given(st.text(alphabet="aA9=+-./:@ %2Fé", max_size=12))
def test_foreign_pointers_stand_for_nothing(segment):
    """A segment that no name is written as is no name."""
    name = decode(segment)
    assert name is None or encode(name) == segment
    place = object_of(f"catalog/default/{segment}/1")
    assert place is None or record_pointer(*place) == f"catalog/default/{segment}/1"


@pytest.mark.parametrize(
    "version",
    (
        *("", "latest", "a", "1.x", "-1", "1/2", "1 2", " 1", "1\n", "1@2", "9" * 31, "1" * 5000),
        *(-1, 1.5, True, None, b"1", ["1"]),
    ),
)
def test_what_is_no_version(version):
    """What PEP 440 doesn't allow, or is too long, is refused."""
    with pytest.raises(ValueError, match="a version is a string such as"):
        version_key(version)


VERSIONS = st.one_of(
    st.lists(st.integers(0, 30), min_size=1, max_size=4).map(lambda n: ".".join(map(str, n))),
    st.from_regex(
        r"(1!)?[0-9]{1,3}(\.[0-9]){0,3}(a[0-9])?(\.post[0-9])?(\+[a-z]{1,3})?", fullmatch=True
    ),
)


@given(st.lists(VERSIONS, min_size=1, max_size=12))
def test_versions_are_ordered_as_pep_440_says(versions):
    """Equal versions have one key, keys are ordered as the versions are, and the next is new."""
    keys = {version: version_key(version)[0] for version in versions}
    for version, key in keys.items():
        assert Version(key) == Version(version) == Version(version_key(version)[1])
        assert version_key(key)[0] == key
        check_pointer(record_pointer("default", "a", key))
        assert object_of(record_pointer("default", "a", key)) == ("default", "a", key)
    assert len(set(keys.values())) == len(set(map(Version, versions)))
    expected = [keys[version] for version in sorted(versions, key=Version)]
    assert ordered(keys[version] for version in versions) == expected
    following = str(number_of([*keys.values()]) + 1)
    assert following not in keys.values()
    assert all(Version(key).release[0] < int(following) for key in keys.values())


@pytest.mark.parametrize(
    "tag", ("", "latest", "v2", "1", "a b", "a/b", "a@b", "-a", "a" * 31, None)
)
def test_what_is_no_tag(tag):
    """A tag is a short word that can't be taken for a version."""
    with pytest.raises(ValueError, match="a tag is"):
        check_tag(tag)


@pytest.mark.parametrize("bucket", ("", "a/b", "..", "a..b", ".a", "é", "a" * 31, "a b", None))
def test_what_is_no_bucket(bucket):
    """A bucket's name is short and plain."""
    with pytest.raises(ValueError, match="a bucket's name is"):
        check_bucket(bucket)


def test_labels():
    """A label is a name, or a name and a version."""
    assert split_label("a:b@2.1") == ("a:b", "2.1")
    assert split_label("a:b") == ("a:b", None)
    for label in ("", "a@", "@1", None, 1):
        with pytest.raises(ValueError, match=r"name|version"):
            split_label(label)
