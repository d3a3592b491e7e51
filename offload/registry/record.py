"""What a registry knows of a version, and what its signature covers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from offload.digest import parse_digest
from offload.errors import CodeRefused
from offload.registry.names import check_hash

__all__ = ("CLASS", "FUNCTION", "LATEST", "VERSION", "Record", "Signature", "tagged")

CLASS, FUNCTION = "class", "function"
VERSION, LATEST = "version", "latest"
_MOST_NEEDS = 1000


def tagged(tag: str) -> str:
    """Return the purpose of a record that stands under *tag*."""
    return f"tag {tag}"


@dataclass(frozen=True)
class Signature:
    """Attributes: *key* is the id of the key (see `offload.registry.keys`), *value* in hex."""

    key: str
    value: str


@dataclass(frozen=True)
class Record:
    """One version of a class or function.

    Attributes:
        class_name: module and qualified name.
        hash: see `offload.registry.identity`.
        digest: of the pickle's bytes.
        size: of the pickle, in bytes.
        python: whose bytecode it is, as ``cpython-311``.
        kind: ``class`` or ``function``.
        purpose: what this record stands for: ``version``, ``latest`` or ``tag <tag>``. A
            signature for one is none for another.
        created: when it was pushed, in seconds since 1970.
        modules: what was shipped with it, besides what is in its own module; needed to hash it.
        needs: the versions of other classes that it refers to, as (name, hash).
        source: digest of the source that was pushed with it, "" if none was.
        source_size: of that, in bytes.
        signature: None if it is not signed.
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
        """Name and hash."""
        return self.class_name, self.hash

    @property
    def signed_bytes(self) -> bytes:
        """What a signature covers: everything but itself, as JSON with sorted keys."""
        plain = asdict(replace(self, signature=None))
        del plain["signature"]
        return b"offload class record 1\0" + orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)

    def to_bytes(self) -> bytes:
        return orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Record:
        """Read a record; raises CodeRefused, saying *where*, if it is none."""
        try:
            return _read(orjson.loads(content))
        except (ValueError, TypeError, KeyError) as exc:
            raise CodeRefused(f"{where} is no record of a class: {exc}") from exc


def _read(found: Any) -> Record:
    if not isinstance(found, dict):
        raise TypeError("it is not a JSON object")
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
            raise ValueError(f"{number!r} is no size")
    if type(record.created) not in (int, float):
        raise TypeError(f"{record.created!r} is no time")
    return record


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r:.60} is no text")
    return value
