"""Records of versions, and states of names: what pointers of the catalog contain.

Each value is ``<mac> <JSON>``. The MAC, under the keys of references, covers the pointer's name and
the JSON. So nothing that was altered, or copied from another pointer, is used.

With encryption keys, author and metadata are encrypted inside of the JSON. The rest isn't: sweeps
need no key to know what records name, and names are in pointers, too.

A *record* is a version's commit point: its pointer is set last, and in one step. A *name's state*
lists the keys of its versions, and its tags. It is written before the records that it lists, so
it may list versions that don't exist (yet), but misses none.
"""

from __future__ import annotations

import json
import math
import secrets
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from offload.catalog.names import (
    DEFAULT,
    MAX_VERSION,
    Place,
    decode,
    encode,
    object_of,
    parsed,
    version_key,
)
from offload.digest import Digest, parse_digest
from offload.encryption.keys import ID_BYTES, missing_key
from offload.errors import CatalogError, IntegrityError, UnsupportedVersion
from offload.ref import Keys, record_text
from offload.stores.checks import MAX_POINTER
from offload.text import human_size, human_time

FORMAT = 1
"""Format of records and states that this version of offload writes."""
_SEALED = 2  # format of encrypted records, and the greatest that is read
MAX_METADATA = 60_000
"""Maximum bytes of a version's metadata as JSON."""
MAX_ENCRYPTED = MAX_METADATA * 3 // 4 - 1000
"""The same with encryption keys, as base64 is longer."""

_PURPOSE = "catalog"  # of sealed parts
_COMPACT: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}
_KIND = b"offload-catalog"  # of signed records
ANNOUNCED = 600.0
"""Seconds after which a saver that hasn't set its record yet announces it again."""
_SETTLED = 3600.0  # seconds after which no saver may still write a record that it announced
_LAST = 48  # most bytes of `last` in a state
_DEPTH = 50
GREATEST = 1 << 63
"""More than any number in a record."""


@dataclass(frozen=True)
class Record:
    """A version of a named object, without its content.

    Attributes:
        bucket: the bucket it is in.
        name: its name.
        version: as it was given to `save`, or the number it got.
        type: name of the value's type.
        size: bytes of the serialized value.
        created: when it was saved, in seconds since 1970.
        author: who saved it.
        metadata: as given to `save`.
        digest: of its content; equal values serialized in the same way have equal digests.
        tags: of this version, as `Catalog.info` of an object or a version reads them; () in other
            records, as `Catalog.find` doesn't read tags.
        stale: whether this is a local copy, read because the store was unavailable.
        ref: wire text of the reference to its content.
        nonce: distinguishes this record from others of the same version.
    """

    bucket: str
    name: str
    version: str
    type: str
    size: int
    created: float
    author: str
    metadata: Any = None
    digest: Digest | None = None
    tags: tuple[str, ...] = ()
    stale: bool = False
    ref: str = field(default="", repr=False)
    nonce: str = field(default="", repr=False)

    @property
    def key(self) -> str:
        """The version's key in pointers."""
        return version_key(self.version)[0]

    @property
    def label(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def holder(self) -> str:
        """The holder of its content."""
        return holder_of(self.bucket, self.name, self.key, self.nonce)

    def as_dict(self) -> dict[str, Any]:
        """Return what users may see, as plain data."""
        hidden = ("ref", "nonce")
        return {
            name: list(value) if name == "tags" else value
            for name, value in vars(self).items()
            if name not in hidden
        }

    def _repr_html_(self) -> str:
        """Describe the version in a notebook; nothing is loaded."""
        from offload.text import facts

        return facts(
            self.label,
            {
                "bucket": self.bucket,
                "type": self.type,
                "size": human_size(self.size),
                "saved": human_time(self.created),
                "author": self.author,
                "tags": ", ".join(self.tags),
                "metadata": self.metadata,
                "digest": self.digest,
                "stale": "local copy, the store is unavailable" if self.stale else None,
            },
        )


class Records(list[Record]):
    """A list of versions, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        from offload.text import table

        tagged = any(each.tags for each in self)  # `Catalog.find` doesn't read them
        columns = ["name", "version", "type", "size", "saved", "author", *["tags"] * tagged]
        rows = (
            (
                each.name,
                each.version,
                each.type,
                human_size(each.size),
                human_time(each.created),
                each.author,
                *[", ".join(each.tags)] * tagged,
            )
            for each in self
        )
        return table(f"{len(self):,} versions", columns, rows, len(self))


class RecordsByName(dict[str, list[Record]]):
    """Versions by the names of objects, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        every = Records(record for records in self.values() for record in records)
        return every._repr_html_()


def holder_of(bucket: str, name: str, key: str, nonce: str) -> str:
    """Return the holder of the content of a record: its pointer's path, and its random number."""
    return f"catalog:{bucket}/{encode(name)}@{encode(key)}+{nonce}"


def new_nonce() -> str:
    """Return a random number for a record."""
    return secrets.token_hex(6)


def check_metadata(metadata: Any, *, encrypted: bool = False) -> Any:
    """Return *metadata*; raises ValueError unless it is JSON of at most `MAX_METADATA` bytes, or
    `MAX_ENCRYPTED`.
    """
    limit = MAX_ENCRYPTED if encrypted else MAX_METADATA
    try:
        text = json.dumps(metadata, allow_nan=False, **_COMPACT)
        size = len(text.encode())
        same = size > limit or json.loads(text) == metadata
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(
            "metadata must be JSON: dicts with strings as keys, lists, strings, finite numbers, "
            f"True, False, and None ({type(exc).__name__})"
        ) from None
    if size > limit:
        where = ", if it is encrypted" if encrypted else ""
        raise ValueError(f"metadata takes at most {limit} bytes as JSON{where}, not {size}")
    if not same or _is_deep(metadata):
        raise ValueError(
            "metadata must be JSON that reads back the same: dicts with strings as keys (no other "
            f"keys), lists (no tuples), no more than {_DEPTH} inside each other"
        )
    return metadata


def _is_deep(value: Any, depth: int = 0) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > _DEPTH or any(_is_deep(each, depth + 1) for each in inner)


def write_record(record: Record, pointer: str, keys: Keys) -> bytes:
    """Return the value of the record's *pointer*."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "ref": record.ref,
        "version": record.version,
        "type": record.type,
        "size": record.size,
        "digest": record.digest,
        "created": record.created,
        "author": record.author,
        "metadata": record.metadata,
        "nonce": record.nonce,
    }
    if keys.keyring is not None:
        private = json.dumps([record.author, data.pop("metadata")], **_COMPACT)
        content = private.encode("utf-8", "surrogatepass")
        sealed = sealing().seal(content, keys.keyring.current, _PURPOSE, pointer)
        data.update(format=_SEALED, author="", sealed=b64encode(sealed).decode())
    return seal(pointer, data, keys)


def _open_sealed(pointer: str, data: dict[str, Any], keys: Keys) -> None:
    """Decrypt what is private in the *data* of a record; raises as `read_record` does."""
    text, ring = data.pop("sealed", None), keys.keyring
    if text is None:
        if ring is not None and ring.required:
            raise IntegrityError(
                f"{_shown(pointer)} isn't encrypted, and offload_encryption is 'required': save it "
                "again, or unset 'required'",
                argument=_shown(pointer),
            )
        return
    try:
        sealed = b64decode(text, validate=True)
        if ring is None:
            raise missing_key(sealed[2 : 2 + ID_BYTES].hex(), _shown(pointer), [])
        private = sealing().open_sealed(sealed, ring, _PURPOSE, pointer)
        author, metadata = json.loads(private.decode("utf-8", "surrogatepass"))
        data.update(author=author, metadata=metadata)
    except (ValueError, TypeError) as exc:
        raise _altered(pointer) from exc


def sealing() -> ModuleType:
    """Return `offload.encryption.sealing`, which needs the package cryptography."""
    from offload.encryption import sealing

    return sealing


def read_record(
    pointer: str, value: bytes, keys: Keys | None, place: Place | None = None
) -> Record:
    """Return the record in the *value* of its *pointer*.

    Args:
        place: `object_of` the pointer, if it is known.
        keys: verify it with these; None to read it unverified, only for people.

    Raises:
        UnsupportedVersion: a newer offload wrote it.
        KeyUnavailable: it is encrypted with a key that this process doesn't have.
        IntegrityError: it was altered, or belongs to another store or secret.

    Without *keys*, an encrypted record has no author and no metadata.
    """
    place = place or object_of(pointer)
    data = unseal(pointer, value, keys)
    if keys is not None:
        _open_sealed(pointer, data, keys)
    kinds = {"ref": str, "version": str, "type": str, "author": str, "nonce": str, "size": int}
    if (
        place is None
        or not all(type(data.get(name)) is kind for name, kind in kinds.items())
        or not 0 <= data["size"] < GREATEST
        or not is_time(data.get("created"))
        or not _is_digest(data.get("digest"))
    ):
        raise _altered(pointer)
    bucket, name, key = place
    try:
        same = version_key(data["version"])[0] == key
    except ValueError:
        same = False
    if not same:
        raise _altered(pointer)
    known: dict[str, Any] = {each: data.get(each) for each in (*kinds, "created", "digest")}
    return Record(bucket=bucket, name=name, metadata=data.get("metadata"), **known)


# -- states of names


@dataclass(frozen=True)
class NameState:
    """Versions and tags of a name.

    Attributes:
        keys: of its versions, and perhaps of others.
        recent: when a saver announced a version, in seconds since 1970, if that was lately.
        tags: the version's key by tag.
        last: the highest number that was taken, or removed while it was the highest.
        taken: numbers in `recent` that saves without a version reserved; no other save may use
            them.
    """

    keys: frozenset[str] = frozenset()
    recent: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    last: int = 0
    taken: frozenset[str] = frozenset()

    def numbered(self, last: int) -> NameState:
        """Return the state in which no new version gets *last* or a lower number by itself."""
        return replace(self, last=max(self.last, last))

    def unnumbered(self) -> NameState:
        """Return the state of a name without versions as if it had never had any."""
        return self if self.keys or self.tags else NameState()

    def announced(self, key: str, now: float) -> NameState:
        """Return the state in which a saver has announced that it will write the record *key*."""
        return self._at(now, keys=self.keys | {key}, recent={**self.recent, key: now})

    def next_number(self, after: int, now: float) -> int:
        """Return a number higher than *after* and all others, which nobody is about to write."""
        number = max(self.last, after) + 1
        while _is_recent(self.recent, str(number), now):
            number += 1
        return number

    def took(self, number: int, now: float) -> NameState:
        """Return the state in which a saver has announced and taken *number*."""
        changed = self.announced(str(number), now).numbered(number)
        return replace(changed, taken=changed.taken | {str(number)})

    def is_taken(self, key: str, now: float) -> bool:
        """Return whether a saver without a version may still write *key*, the number it took."""
        return key in self.taken and _is_recent(self.recent, key, now)

    def found(self, keys: Iterable[str]) -> NameState:
        """Return the state that also lists *keys*, which were found to have records."""
        return replace(self, keys=self.keys.union(keys))

    def without(self, missing: frozenset[str], now: float) -> NameState:
        """Return the state without the versions *missing*, which have no record.

        A version that was announced lately stays listed: its saver may be about to write it.
        """
        gone = {key for key in missing if not _is_recent(self.recent, key, now)}
        tags = {tag: key for tag, key in self.tags.items() if key not in missing}
        return self._at(now, keys=self.keys - gone, tags=tags)

    def removed(self, keys: frozenset[str], now: float) -> NameState:
        """Return the state after the records of *keys* were removed: they may be saved again."""
        changed = self.without(keys, now)
        return replace(changed, taken=changed.taken - keys)

    def to_settle(self, now: float) -> list[str]:
        """Return versions that need no note of their announcement once they have records.

        No other saver is about to write those: one of them has taken the number, or would announce
        the version again.
        """
        return [
            key
            for key, since in self.recent.items()
            if (key.isdecimal() and int(key) <= self.last) or abs(now - since) > ANNOUNCED
        ]

    def settled(self, keys: Collection[str]) -> NameState:
        """Return the state in which *keys* aren't noted as announced."""
        recent = {k: at for k, at in self.recent.items() if k not in keys}
        return replace(self, recent=recent, taken=self.taken.intersection(recent))

    def tagged(self, tag: str, key: str | None) -> NameState:
        """Return the state in which *tag* stands for the version *key* (None: for none)."""
        tags = {name: value for name, value in self.tags.items() if name != tag}
        return replace(self, tags=tags if key is None else {**tags, tag: key})

    def tags_of(self, key: str) -> tuple[str, ...]:
        return tuple(sorted(tag for tag, value in self.tags.items() if value == key))

    def _at(self, now: float, **changes: Any) -> NameState:
        changed = replace(self, **changes)
        recent = {
            key: since
            for key, since in changed.recent.items()
            if key in changed.keys and _is_recent(changed.recent, key, now)
        }
        return replace(changed, recent=recent, taken=changed.taken.intersection(recent))

    def __bool__(self) -> bool:
        return bool(self.keys or self.tags or self.last)


def _is_recent(recent: Mapping[str, float], key: str, now: float) -> bool:
    return abs(now - recent.get(key, -math.inf)) < _SETTLED


def write_state(state: NameState, pointer: str, keys: Keys) -> bytes | None:
    """Return the value of the name's *pointer*; None to unset it.

    Raises CatalogError if the name has too many versions for one pointer.
    """
    if not state:
        return None
    data = {
        "format": FORMAT,
        "versions": sorted(state.keys),
        "recent": dict(state.recent),
        "tags": dict(state.tags),
    }
    if state.taken:
        data["taken"] = sorted(state.taken)
    if state.last:
        data["last"] = state.last
    value = seal(pointer, data, keys)
    # Removing a version may add `last`, so there must be room for it.
    spare = _LAST - (len(f',"last":{state.last}') if state.last else 0)
    if len(value) + spare > MAX_POINTER:
        name = decode(pointer.rpartition("/")[2])
        raise CatalogError(
            f"{name} has {len(state.keys)} versions and {len(state.tags)} tags, too many for their "
            f"list of {MAX_POINTER} bytes: remove some versions, or save it under another name",
            argument=name,
        )
    return value


def read_state(pointer: str, value: bytes | None, keys: Keys) -> NameState:
    """Return the state in the *value* of a name's *pointer* (None: it is unset).

    Raises UnsupportedVersion or IntegrityError as `read_record` does.
    """
    if value is None:
        return NameState()
    data = unseal(pointer, value, keys)
    versions, recent, tags = data.get("versions"), data.get("recent"), data.get("tags")
    last, taken = data.get("last", 0), data.get("taken", [])
    if not (
        type(last) is int
        and 0 <= last < 10**MAX_VERSION
        and isinstance(versions, list)
        and isinstance(taken, list)
        and isinstance(recent, dict)
        and isinstance(tags, dict)
        and all(map(_is_key, (*versions, *recent, *taken, *tags.values())))
        and all(map(is_time, recent.values()))
    ):
        raise _altered(pointer)
    return NameState(frozenset(versions), recent, tags, last, frozenset(taken))


# -- the form of both


def seal(pointer: str, data: Mapping[str, Any], keys: Keys) -> bytes:
    """Return *data* as a value that only *pointer* may have, signed with the first key."""
    return keys.sign_record(_KIND, pointer, json.dumps(data, **_COMPACT).encode())


def unseal(pointer: str, value: bytes, keys: Keys | None) -> dict[str, Any]:
    """Return the data in the *value* of *pointer*; raises as `read_record` does."""
    # Whatever a later format contains, it is signed like this: nobody else can claim to be newer.
    text = record_text(_KIND, pointer, value, keys)
    try:
        data = json.loads((text or b"").decode())
        found = data["format"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise _altered(pointer) from None
    if type(found) is int and found > _SEALED:
        raise UnsupportedVersion(
            f"{_shown(pointer)} was written by a newer offload, in format {found}; this one reads "
            f"up to {_SEALED}: upgrade offload here",
            argument=_shown(pointer),
        )
    if found not in (FORMAT, _SEALED):
        raise _altered(pointer)
    checked: dict[str, Any] = data
    return checked


def _altered(pointer: str) -> IntegrityError:
    is_record = object_of(pointer) is not None
    remedy = "remove it and save it again" if is_record else "call mend() on the catalog"
    return IntegrityError(
        f"{_shown(pointer)} isn't signed for this store: it was altered, or written with another "
        f"offload_secret; {remedy}",
        argument=_shown(pointer),
    )


def _shown(pointer: str) -> str:
    place = object_of(pointer)
    if place is None:
        return pointer
    bucket, name, key = place
    return f"{name}@{key}" if bucket == DEFAULT else f"{name}@{key} in bucket {bucket}"


def _is_key(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(parsed(value))
    except ValueError:
        return False


def is_time(value: Any) -> bool:
    """Return whether *value* is a number of seconds that a record may have."""
    return type(value) in (int, float) and abs(value) < GREATEST  # which NaN isn't


def _is_digest(value: Any) -> bool:
    try:
        return value is None or bool(parse_digest(value))
    except (ValueError, TypeError):
        return False
