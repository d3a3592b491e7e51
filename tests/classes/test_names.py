"""Names of classes in a store."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offload.classes.versions import PointerNames, check_hash, name_of, tags_in, versions_in
from offload.errors import NotShippable
from offload.stores.checks import check_name

HASH = "0123456789abcdef" * 4
DIGEST = "b3:" + HASH
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ANY = st.text(st.characters(), max_size=150)  # with surrogates, which names may have
CLOSE = st.text("aA.-_/<é\ud800", max_size=120)


@SLOW
@given(ANY | CLOSE)
def test_every_name_makes_valid_pointers(name):
    """A store accepts the pointers of any class name, also the longest."""
    names = PointerNames(name)
    for pointer in (
        names.latest,
        names.version(HASH),
        names.tag("t" * 40),
        names.more(HASH, DIGEST, 256)[-1],
    ):
        assert check_name(pointer) == pointer
        assert pointer.startswith(names.folder)


@SLOW
@given(st.lists(ANY | CLOSE, min_size=2, max_size=5, unique=True))
def test_two_names_never_share_a_pointer(names):
    """Different names have different folders, and none is inside another."""
    folders = [PointerNames(name).folder for name in names]
    assert len(set(folders)) == len(names)
    for a in folders:
        assert not any(b != a and b.startswith(a) for b in folders)


@pytest.mark.parametrize(
    ("name", "folder"),
    (
        ("shop.models.Filter", "plugins/shop.models.Filter/"),
        ("m.f.<locals>.C", "plugins/m.f.-3clocals-3e.C/"),
        ("m.é", "plugins/m.-c3-a9/"),
        ("a-b", "plugins/a-2db/"),
        ("../x", "plugins/..-2fx/"),
        ("..", "plugins/-2e-2e/"),
        (".", "plugins/-2e/"),
        ("", "plugins/-/"),
    ),
)
def test_folders(name, folder):
    """Plain names are used unchanged, and no name leads out of the folder."""
    assert PointerNames(name).folder == folder


def test_long_names_are_cut_and_stay_apart():
    """The start of a long name stays readable, and the end is a hash of the rest."""
    a, b = (PointerNames("shop." + "x" * 200 + end).folder for end in "ab")
    assert a != b
    assert a.startswith("plugins/shop.xxx")
    assert len(a) == len(b) == len("plugins//") + 100


def test_pointers_of_a_class():
    """Versions, their other parts, and tags have different names."""
    names = PointerNames("m.F")
    more = names.more(HASH, DIGEST, 3)
    assert more == [f"plugins/m.F/{HASH}.{HASH[:16]}.{i}.pkl" for i in (1, 2)]
    pointers = [names.version(HASH), *more, names.latest, names.tag("v1.0")]
    assert versions_in(pointers) == [HASH]
    assert tags_in(pointers) == ["v1.0"]


@pytest.mark.parametrize("tag", ("", "latest", "a/b", ".a", "-a", "a\n", "é", "a" * 41, None, 5))
def test_an_invalid_tag(tag):
    """A tag that equals another pointer's name, or is empty, is refused."""
    with pytest.raises(ValueError, match="not a tag"):
        PointerNames("m.F").tag(tag)


@pytest.mark.parametrize("code_hash", ("", HASH[:-1], HASH + "0", HASH.upper(), HASH + "\n", None))
def test_an_invalid_hash(code_hash):
    """A hash is 64 hexadecimal digits and nothing else."""
    with pytest.raises(ValueError, match="not the hash"):
        check_hash(code_hash)


def test_full_names():
    """A name has the module and the qualified name, so that two `Filter` classes differ."""

    class Filter:
        pass

    assert name_of(Filter) == f"{__name__}.test_full_names.<locals>.Filter"
    assert name_of(name_of) == "offload.classes.versions.name_of"
    assert name_of(lambda: 1).endswith(".<lambda>")
    with pytest.raises(NotShippable, match="expected a class or function, not a int"):
        name_of(5)
