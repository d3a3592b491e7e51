"""Names of objects, versions, tags, and buckets, and of their pointers.

Pointers take fewer characters than names do. In a pointer's name, ``/`` is written ``+``, and any
other character that pointers can't have as ``=`` and two hexadecimal digits for each byte of its
UTF-8. So each name is one segment, no two names share one, and a prefix of a name becomes a prefix
of its pointer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from packaging.utils import canonicalize_version
from packaging.version import InvalidVersion, Version

RECORDS, NAMES = "catalog/", "catalog-names/"
BUCKETS, INDEXES = "catalog-buckets/", "catalog-indexes/"
"""Prefixes of the names of pointers: records, states of names (`NameState`), buckets, and their
indexes."""

DEFAULT, LATEST = "default", "latest"
MAX_NAME = 120
"""Maximum characters of a name's encoded form."""
MAX_VERSION = 30
"""Maximum characters of a version's encoded form."""

_PLAIN = re.compile(r"[A-Za-z0-9._:-]*", re.ASCII)
_ENCODED = re.compile(r"(?:[A-Za-z0-9._:+-]|=[0-9A-F]{2})+", re.ASCII)
_BYTE = re.compile(rb"=([0-9A-F]{2})")
_PARTS = re.compile(r"[/:]")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,29}", re.ASCII)
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,29}", re.ASCII)
_ALLOWED = (
    f"a name is parts of printable characters without @, separated by / or :, with no empty part, "
    f"no '..', and no space at either end; {MAX_NAME} characters at most (those other than A-Z "
    "a-z 0-9 . _ - : / count as 3 per byte of UTF-8)"
)


def check_name(name: str) -> str:
    """Return *name*, normalized (Unicode's NFC); raises ValueError if no object may have it."""
    if not isinstance(name, str):
        raise ValueError(f"not a name: a {type(name).__name__}; {_ALLOWED}")
    found = normalize(name)
    parts = _PARTS.split(found)
    if (
        not found.isprintable()
        or "@" in found
        or ".." in found
        or not {"", "."}.isdisjoint(parts)
        or any(part != part.strip() for part in parts)
        or len(encode(found)) > MAX_NAME
    ):
        version = ": a version is an argument of its own" if "@" in found else ""
        raise ValueError(f"not a name: {name[:150]!r}{version}; {_ALLOWED}")
    return found


def normalize(text: str) -> str:
    """Return *text* in Unicode's form NFC, in which names are."""
    return unicodedata.normalize("NFC", text)


def check_bucket(name: str) -> str:
    """Return a bucket's *name*; raises ValueError if no bucket may have it."""
    if not isinstance(name, str) or not _BUCKET.fullmatch(name) or ".." in name:
        raise ValueError(
            f"not a bucket: {str(name)[:150]!r}; a bucket's name is 1 to 30 characters of A-Z a-z "
            "0-9 . _ -, starts with a letter or digit, and has no '..'"
        )
    return name


def check_tag(tag: str) -> str:
    """Return *tag*; raises ValueError if no version may have it."""
    if not isinstance(tag, str) or not _TAG.fullmatch(tag) or tag == LATEST or is_version(tag):
        raise ValueError(
            f"not a tag: {str(tag)[:150]!r}; a tag is 1 to 30 characters of A-Z a-z 0-9 . _ -, "
            f"starts with a letter, and is neither {LATEST!r} nor a version such as 'v2'"
        )
    return tag


def is_version(text: str) -> bool:
    """Return whether *text* has the form of a version."""
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def version_key(version: str | int) -> tuple[str, str]:
    """Return the key of *version* in pointers, and its display form.

    Equal versions such as ``2`` and ``2.0`` have one key. Raises ValueError unless it is a version.
    """
    text = str(version) if type(version) is int else version
    found = _version_key(text) if isinstance(text, str) and len(text) <= 2 * MAX_VERSION else None
    if found is None:
        given = repr(text[:150]) if isinstance(text, str) else f"a {type(text).__name__}"
        raise ValueError(
            f"not a version: {given}; a version is a string such as '3', '2.1', or "
            f"'1.0rc2' (PEP 440) of at most {MAX_VERSION} characters, or a whole number"
        )
    return found


def check_asked(version: Any) -> str | int:
    """Return *version*; raises ValueError unless it may be a version, a tag, or ``latest``."""
    if isinstance(version, str):
        with suppress(ValueError):
            return version if version == LATEST else check_tag(version)
    version_key(version)
    checked: str | int = version
    return checked


@lru_cache(maxsize=10_000)
def _version_key(text: str) -> tuple[str, str] | None:
    try:
        parsed = Version(text)
    except InvalidVersion:
        return None
    key, shown = canonicalize_version(parsed), str(parsed)
    is_short = len(encode(key)) <= MAX_VERSION and len(shown) <= MAX_VERSION
    return (key, shown) if is_short and text == text.strip() else None


@lru_cache(maxsize=10_000)
def parsed(version: str) -> Version:
    """Return a version, which orders it among others."""
    return Version(version)


def ordered(keys: Iterable[str]) -> list[str]:
    """Return versions' *keys*, the lowest first."""
    return sorted(keys, key=parsed)


def number_of(keys: Iterable[str]) -> int:
    """Return the greatest first number of versions with these *keys*; 0 if there are none."""
    return max((parsed(key).release[0] for key in keys), default=0)


def split_label(label: str) -> tuple[str, str | None]:
    """Split ``name[@version]`` into name and version; None if not given. Raises ValueError."""
    if not isinstance(label, str):
        raise ValueError(f"not a name: a {type(label).__name__}; write 'name' or 'name@version'")
    name, at, version = label.partition("@")
    if at and not version:
        raise ValueError(f"no version after @ in {label[:150]!r}")
    return check_name(name), version if at else None


# -- pointers


class Place(NamedTuple):
    """Where a record is: its bucket, its object's name, and its version's key."""

    bucket: str
    name: str
    key: str


def encode(name: str) -> str:
    """Return the segment of a pointer that stands for *name*."""
    if _PLAIN.fullmatch(name):
        return name
    return "".join(c if _PLAIN.fullmatch(c) else "+" if c == "/" else _escaped(c) for c in name)


def _escaped(character: str) -> str:
    return "".join(f"={byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def decode(segment: str) -> str | None:
    """Return the name that *segment* stands for; None for a segment that `encode` never returns."""
    if _PLAIN.fullmatch(segment):
        return segment
    if not _ENCODED.fullmatch(segment):
        return None
    plain = segment.replace("+", "/").encode("ascii")
    try:
        name = _BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), plain).decode()
    except ValueError:
        return None
    return name if encode(name) == segment else None


def record_pointer(bucket: str, name: str, key: str) -> str:
    """Return the pointer of a version's record."""
    return f"{RECORDS}{bucket}/{encode(name)}/{encode(key)}"


def name_pointer(bucket: str, name: str) -> str:
    """Return the pointer of a name's state."""
    return f"{NAMES}{bucket}/{encode(name)}"


def bucket_pointer(bucket: str) -> str:
    """Return the pointer of a bucket."""
    return BUCKETS + bucket


def object_of(pointer: str) -> Place | None:
    """Return the place of the record that *pointer* is for; None for other pointers."""
    parts = pointer.split("/")
    if len(parts) != 4 or parts[0] + "/" != RECORDS:
        return None
    name, key = decode(parts[2]), decode(parts[3])
    if name is None or key is None or not _BUCKET.fullmatch(parts[1]):
        return None
    try:
        if check_name(name) != name or version_key(key)[0] != key:
            return None
    except ValueError:
        return None
    return Place(parts[1], name, key)
