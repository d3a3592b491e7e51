"""Versions in a store: their names, records, and stored form.

These files are pointers::

    plugins/<Name>/<hash>.pkl       a version; never changed
    plugins/<Name>/latest.json      the record of the latest version
    plugins/<Name>/tags/<tag>.json  the record of the version with this tag
    plugins/<Name>/<hash>.<digest prefix>.<number>.pkl
                                    another part of a long version

``<Name>`` is the module and qualified name, such as ``shop.models.Filter``. Characters that aren't
allowed in a pointer's name are written as ``-`` and two hexadecimal digits per byte of UTF-8. A
name that is too long is cut and ends in ``--`` and 16 digits of its SHA-256.

``<hash>.pkl`` contains the pickle, the source if there is one, the record as JSON, and the record's
length in four bytes (big endian). A version longer than a pointer's limit continues in further
parts. These are written first, and their names depend on their content. So a version is stored
completely or not at all, even if several processes push it at the same time.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from offload.digest import digest_of, parse_digest
from offload.encryption.keys import ID_BYTES, Keyring, missing_key
from offload.errors import CodeRefused, IntegrityError, NotShippable, SerializationError
from offload.stores.checks import MAX_POINTER
from offload.stores.protocols import PointerStore

ClassVersion = tuple[str, str]
"""The name and hash of a version."""

FOLDER = "plugins/"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_.]", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_VERSION = re.compile(r".*/([0-9a-f]{64})\.pkl", re.ASCII)
_TAGGED = re.compile(rf".*/tags/({_TAG.pattern})\.json", re.ASCII)
_LONGEST = 100


def name_of(obj: Any) -> str:
    """Return the name under which a class or function ships: its module and qualified name.

    Raises NotShippable for other objects.
    """
    qualname = getattr(obj, "__qualname__", None)
    if not isinstance(qualname, str):
        raise NotShippable(f"expected a class or function, not a {type(obj).__name__}")
    return f"{obj.__module__ or '__main__'}.{qualname}"


def label(pair: ClassVersion) -> str:
    """Format a version for people, such as ``shop.Filter@3f0c11aa9d52``."""
    return f"{pair[0]}@{pair[1][:12]}"


def check_hash(code_hash: str) -> str:
    """Return *code_hash*. Raises ValueError if it is malformed."""
    if not isinstance(code_hash, str) or not _HASH.fullmatch(code_hash):
        raise ValueError(f"not the hash of a class: {code_hash!r:.100}")
    return code_hash


def versions_in(pointers: Iterable[str]) -> list[str]:
    """Return the hashes of the versions among a class's pointers."""
    return [match[1] for pointer in pointers if (match := _VERSION.fullmatch(pointer))]


def tags_in(pointers: Iterable[str]) -> list[str]:
    """Return the tags among a class's pointers."""
    return [match[1] for pointer in pointers if (match := _TAGGED.fullmatch(pointer))]


class PointerNames:
    """The names of one class's pointers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = f"{FOLDER}{_written(name)}/"
        self.latest = f"{self.folder}latest.json"

    def version(self, code_hash: str) -> str:
        return f"{self.folder}{check_hash(code_hash)}.pkl"

    def more(self, code_hash: str, digest: str, count: int) -> list[str]:
        """Return the names of the further parts of a long version."""
        prefix = f"{self.folder}{check_hash(code_hash)}.{digest.partition(':')[2][:16]}"
        return [f"{prefix}.{number}.pkl" for number in range(1, count)]

    def tag(self, tag: str) -> str:
        """Return the name of a tag's pointer. Raises ValueError if the tag is malformed."""
        if not isinstance(tag, str) or not _TAG.fullmatch(tag) or tag == "latest":
            raise ValueError(
                f"not a tag: {tag!r:.60}; a tag is 1 to 40 of A-Z a-z 0-9 . _ -, and not 'latest'"
            )
        return f"{self.folder}tags/{tag}.json"


def _written(name: str) -> str:
    written = "".join(
        c if _PLAIN.match(c) else "".join(f"-{b:02x}" for b in c.encode("utf-8", "surrogatepass"))
        for c in name
    )
    if written in ("", ".", ".."):
        written = written.replace(".", "-2e") or "-"
    if len(written) > _LONGEST:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        written = f"{written[: _LONGEST - 18]}--{digest}"
    return written


CLASS, FUNCTION = "class", "function"
VERSION, LATEST = "version", "latest"
_MOST_NEEDS = 1000


def tag_purpose(tag: str) -> str:
    """Return the purpose of a tag's record."""
    return f"tag {tag}"


@dataclass(frozen=True)
class Signature:
    """A signature of a record.

    Attributes:
        key: ID of the signing key (see `offload.classes.keys`).
        value: the signature, in hexadecimal digits.
    """

    key: str
    value: str


@dataclass(frozen=True)
class Record:
    """Metadata of one version of a class or function.

    Attributes:
        class_name: module and qualified name.
        hash: the version's code hash; see `offload.classes.hashing`.
        digest: digest of the pickle.
        size: size of the pickle in bytes.
        python: the Python version of its bytecode, such as ``cpython-311``.
        kind: ``class`` or ``function``.
        purpose: ``version``, ``latest``, or ``tag <tag>``. A signature is valid for one purpose.
        created: when it was pushed, in seconds since 1970.
        modules: other modules whose code was shipped with it; needed to compute its hash.
        needs: versions of other classes that it refers to, as (name, hash).
        source: digest of the source that was pushed with it; "" if there is none.
        source_size: size of the source in bytes.
        signature: the signature; None if it isn't signed.
    """

    class_name: str
    hash: str
    digest: str
    size: int
    python: str
    kind: str
    created: float
    purpose: str = VERSION
    modules: tuple[str, ...] = ()
    needs: tuple[tuple[str, str], ...] = ()
    source: str = ""
    source_size: int = 0
    signature: Signature | None = field(default=None)

    @property
    def pair(self) -> tuple[str, str]:
        """The name and the hash."""
        return self.class_name, self.hash

    @property
    def signed_bytes(self) -> bytes:
        """The bytes that a signature covers: everything but itself, as JSON with sorted keys."""
        plain = asdict(replace(self, signature=None))
        del plain["signature"]
        return b"offload class record 1\0" + orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)

    def to_bytes(self) -> bytes:
        return orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Record:
        """Parse a record. Raises CodeRefused, naming *where*, if it is malformed."""
        try:
            return _read(orjson.loads(content))
        except (ValueError, TypeError, KeyError) as exc:
            raise CodeRefused(f"{where} isn't a class record: {exc}") from exc


def describe(record: Record) -> str:
    """Format a record for people, such as ``class shop.Filter@3f0c11aa9d52``."""
    return f"{record.kind} {label(record.pair)}"


def _read(found: Any) -> Record:
    if not isinstance(found, dict):
        raise TypeError("it isn't a JSON object")
    signature = found.pop("signature", None)
    if signature is not None:
        signature = Signature(_text(signature["key"]), _text(signature["value"]))
    needs = found.pop("needs", ())
    if len(needs) > _MOST_NEEDS:
        raise ValueError(f"it needs {len(needs)} others")
    record = Record(
        **found, needs=tuple((_text(n), check_hash(h)) for n, h in needs), signature=signature
    )
    record = replace(record, modules=tuple(map(_text, record.modules)))
    for text in (record.class_name, record.python, record.kind, record.purpose, record.source):
        _text(text)
    check_hash(record.hash)
    parse_digest(record.digest)
    if record.source:
        parse_digest(record.source)
    for number in (record.size, record.source_size):
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise ValueError(f"{number!r} isn't a size")
    if type(record.created) not in (int, float):
        raise TypeError(f"{record.created!r} isn't a time")
    return record


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r:.60} isn't text")
    return value


_PURPOSE = "class"  # of sealed versions
_SEALED = b"\x02\x80"  # start of one, see `offload.encryption.sealing`; no pickle starts so
_SEALING = 38  # bytes that sealing adds

LARGEST = 16 << 20
"""Maximum size of a version, in bytes."""
_LENGTH = 4


@dataclass(frozen=True)
class StoredVersion:
    """A version as stored."""

    record: Record
    content: bytes
    source: bytes = b""

    def check(self) -> None:
        """Raise CodeRefused if the content doesn't match the record."""
        record = self.record
        if digest_of([self.content]) != record.digest or (
            digest_of([self.source]) != record.source if record.source else self.source
        ):
            raise CodeRefused(
                f"{label(record.pair)} was altered: its content is not what its "
                "record says; find out who writes to the store, and push it again",
                digest=record.digest,
            )


class Storage:
    """Versions and pointers in a store.

    Args:
        pointers: the store's pointers.
        retrying: calls an idempotent function, and retries while the store is unavailable.
        keyring: encrypts content and source; None without encryption. Records aren't encrypted.
    """

    def __init__(
        self,
        pointers: PointerStore,
        retrying: Callable[[Callable[[], object]], object],
        keyring: Keyring | None = None,
    ) -> None:
        self._pointers = pointers
        self._keyring = keyring
        self._retrying = retrying

    def read(self, names: Iterable[str]) -> list[bytes | None]:
        """Return the contents of pointers, in one round trip if the store supports it."""
        names = list(names)
        if not names:
            return []
        found: list[bytes | None] = self._retrying(lambda: self._pointers.read_all(names))  # type: ignore[assignment]
        return found

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        return self._pointers.swap(name, expected, value)

    def names(self, folder: str = FOLDER) -> list[str]:
        found: list[str] = self._retrying(lambda: list(self._pointers.names(folder)))  # type: ignore[assignment]
        return sorted(found)

    # -- versions

    def put(self, stored: StoredVersion, replaced: bytes | None = None) -> bool:
        """Store a version if its pointer has the value *replaced* (None if it must be unset).

        Return whether it was stored. Raises SerializationError if it is too large.
        """
        record = stored.record
        names = PointerNames(record.class_name)
        tail = record.to_bytes()
        tail += len(tail).to_bytes(_LENGTH, "big")
        body = memoryview(stored.content + stored.source)
        if len(body) > LARGEST:
            raise SerializationError(
                f"{record.class_name} has {len(body)} bytes including everything it ships; "
                f"the limit is {LARGEST}. Does it refer to data that should be an argument?"
            )
        if self._keyring is not None:
            name = _sealed_name(record)
            sealed = _sealing().seal(bytes(body), self._keyring.current, _PURPOSE, name)
            body = memoryview(sealed)
        first = MAX_POINTER - len(tail)
        if first <= 0:
            raise SerializationError(f"{record.class_name} needs too many other classes")
        more = [body[at : at + MAX_POINTER] for at in range(first, len(body), MAX_POINTER)]
        for name, part in zip(
            names.more(record.hash, record.digest, len(more) + 1), more, strict=True
        ):
            self._set(name, bytes(part))
        return self.swap(names.version(record.hash), replaced, bytes(body[:first]) + tail)

    def _set(self, name: str, part: bytes) -> None:
        """Set a pointer whose name determines its content, replacing altered content."""
        if not self.swap(name, None, part):
            [there] = self.read([name])
            if there != part:
                self.swap(name, there, part)

    def get(self, versions: Iterable[tuple[str, str]]) -> list[StoredVersion | None]:
        """Return versions by name and hash, without verifying signatures; None if missing.

        Raises CodeRefused if a version is malformed.
        """
        asked = [(PointerNames(name), code_hash) for name, code_hash in versions]
        found = self.read(names.version(code_hash) for names, code_hash in asked)
        return [
            None if content is None else self.stored(names, code_hash, content)
            for (names, code_hash), content in zip(asked, found, strict=True)
        ]

    def hashes(self, names: PointerNames) -> list[str]:
        """Return the hashes of all versions of a class."""
        return versions_in(self.names(names.folder))

    def read_records(self, pointers: Iterable[str]) -> list[Record | None]:
        """Return the records of versions by pointer.

        A record is None if it is missing or malformed, or was moved there from another pointer.
        """
        pointers = list(pointers)
        found: dict[str, Record] = {}
        for pointer, content in zip(pointers, self.read(pointers), strict=True):
            with suppress(CodeRefused):
                record = None if content is None else _split(pointer, content)[0]
                if record and PointerNames(record.class_name).version(record.hash) == pointer:
                    found[pointer] = record
        return [found.get(pointer) for pointer in pointers]

    def records(self, names: PointerNames) -> list[Record]:
        """Return the records of all versions of a class, oldest first."""
        found = [names.version(code_hash) for code_hash in self.hashes(names)]
        contents = zip(found, self.read(found), strict=True)
        records = [_split(name, content)[0] for name, content in contents if content is not None]
        return sorted(records, key=lambda record: record.created)

    def record(self, names: PointerNames, code_hash: str, content: bytes) -> Record:
        """Parse a version's record from a pointer's *content*. Raises the errors of `get`."""
        return self._read_first(names, code_hash, content)[0]

    def stored(self, names: PointerNames, code_hash: str, content: bytes) -> StoredVersion:
        """Return the version whose first part is *content*. Raises the errors of `get`."""
        record, body = self._read_first(names, code_hash, content)
        size = record.size + record.source_size
        if size > LARGEST:
            raise CodeRefused(
                f"{names.version(code_hash)} claims {size} bytes; the limit is {LARGEST}"
            )
        is_sealed = body[: len(_SEALED)] == _SEALED
        stored_size = size + _SEALING if is_sealed else size
        count = 1 + math.ceil(max(0, stored_size - len(body)) / MAX_POINTER)
        for part in self.read(names.more(code_hash, record.digest, count)):
            body += part or b""
        body = self._opened(record, body, is_sealed=is_sealed)
        stored = StoredVersion(record, body[: record.size], body[record.size :])
        stored.check()
        return stored

    def _opened(self, record: Record, body: bytes, *, is_sealed: bool) -> bytes:
        name = _sealed_name(record)
        if self._keyring is None:
            if is_sealed:
                raise missing_key(body[2 : 2 + ID_BYTES].hex(), name, [])
            return body
        try:
            opened: bytes = _sealing().open_sealed(body, self._keyring, _PURPOSE, name)
        except IntegrityError as exc:
            raise CodeRefused(str(exc)) from exc
        return opened

    def _read_first(
        self, names: PointerNames, code_hash: str, content: bytes
    ) -> tuple[Record, bytes]:
        record, body = _split(names.version(code_hash), content)
        if (record.class_name, record.hash, record.purpose) != (names.name, code_hash, VERSION):
            raise CodeRefused(
                f"{names.version(code_hash)} holds {record.purpose} of "
                f"{label(record.pair)}: another record was moved there; find out who writes to "
                f"the store, and push {names.name} again"
            )
        return record, body


def _split(name: str, content: bytes) -> tuple[Record, bytes]:
    end = len(content) - _LENGTH
    start = end - int.from_bytes(content[max(end, 0) :], "big")
    if start < 0:
        raise CodeRefused(f"{name} isn't a version of a class")
    return Record.from_bytes(content[start:end], name), content[:start]


def _sealing() -> Any:
    from offload.encryption import sealing  # needs the package cryptography

    return sealing


def _sealed_name(record: Record) -> str:
    return f"{record.class_name}@{record.hash}"
