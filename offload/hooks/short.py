"""The short form of references in a message: less than half as long, and the same text once read.

It can't be forged: reading it yields exactly the wire text (`offload.ref`) that was shortened. Its
signature is then verified as always. The message's note has the fingerprint that all of its short
references share.

Base64url without padding of these bytes::

    codes       1 byte: serializer (high) and type (low); 15: a text follows
    digest     32 bytes
    mac        16 bytes
    created     4 bytes, big-endian, seconds since 1970
    lifetime    days * 2, or seconds * 2 + 1: from *created* until the hold expires
    size        bytes of the value
    serializer  its length (1 byte), and the text; only if its code is 15
    type        likewise

*lifetime* and *size* are LEB128: 7 bits a byte, the lowest first. Texts are as in the query string.
References of other forms (late, with their value inside, signed by another key, with
unknown fields) stay as they are.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator

KEY_FORM = re.compile(r"[0-9a-fx][0-9a-f]{7}", re.ASCII)
"""A fingerprint, as in the wire text."""
_WIRE = re.compile(  # exactly as `expand` writes it, so that nothing is lost
    r"offload:1\?d=b3:([0-9a-f]{64})&n=(0|[1-9][0-9]{0,17})&s=([!-%'-~]*)&t=([!-%'-~]*)"
    r"&c=(0|[1-9][0-9]{0,9})&u=(0|[1-9][0-9]{0,10})&k=([0-9a-fx][0-9a-f]{7})&m=([0-9a-f]{32})"
)
_SHORT = re.compile(r"[\w-]{72,760}", re.ASCII)
# The order is part of the form: append, and write a newer version of the note.
_SERIALIZERS = (
    *("raw", "json", "tree", "pickle"),
    *("native:json", "native:pickle", "native:msgpack", "native:yaml"),
)
_TYPES = (
    *("str", "bytes", "list", "dict", "tuple", "ndarray", "DataFrame", "Series", "Table", "set"),
    *("bytearray", "frozenset", "LazyFrame", "RecordBatch", "Index"),
)
_NAMED = 15
_DAY = 86_400
_BYTES = 63  # most bits of a number


def key_of(wires: Iterable[str]) -> str:
    """Return the fingerprint in the first of *wires* that can be shortened; "" if none can."""
    forms = map(_WIRE.fullmatch, wires)
    return next((form[7] for form in forms if form is not None), "")


def shorten(wire: str, key: str) -> str:
    """Return the short form of the reference *wire*; *wire* itself if it has none.

    Args:
        key: the fingerprint that the message's note has.
    """
    form = _WIRE.fullmatch(wire)
    if form is None or form[7] != key:
        return wire
    digest, size, serializer, kind, start, end, _, mac = form.groups()
    created, lifetime = int(start), int(end) - int(start)
    if created >> 32 or lifetime < 0 or max(len(serializer), len(kind)) > 255:
        return wire
    packed = bytearray(1)
    packed += bytes.fromhex(digest)
    packed += bytes.fromhex(mac)
    packed += created.to_bytes(4, "big")
    _write(packed, lifetime * 2 + 1 if lifetime % _DAY else lifetime // _DAY * 2)
    _write(packed, int(size))
    packed[0] = _code(_SERIALIZERS, serializer, packed) << 4 | _code(_TYPES, kind, packed)
    short = urlsafe_b64encode(packed).rstrip(b"=").decode("ascii")
    return short if len(short) < len(wire) else wire  # names may be long


def expand(text: str, key: str) -> str:
    """Return the wire text of the short form *text*; *text* itself if it isn't one.

    The result is as trustworthy as *text*: its signature must still be verified.
    """
    if not key or not _SHORT.fullmatch(text):
        return text
    try:
        packed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if urlsafe_b64encode(packed).rstrip(b"=") != text.encode("ascii"):
            return text  # its last character has bits that mean nothing
        rest = iter(packed[53:])
        lifetime, size = _read(rest), _read(rest)
        serializer = _text(_SERIALIZERS, packed[0] >> 4, rest)
        kind = _text(_TYPES, packed[0] & 15, rest)
    except (IndexError, StopIteration, ValueError):
        return text
    if next(rest, None) is not None:
        return text
    created = int.from_bytes(packed[49:53], "big")
    until = created + (lifetime >> 1) * (1 if lifetime & 1 else _DAY)
    return (
        f"offload:1?d=b3:{packed[1:33].hex()}&n={size}&s={serializer}&t={kind}"
        f"&c={created}&u={until}&k={key}&m={packed[33:49].hex()}"
    )


def _write(packed: bytearray, number: int) -> None:
    while number > 127:
        packed.append(number & 127 | 128)
        number >>= 7
    packed.append(number)


def _read(data: Iterator[int]) -> int:
    number = 0
    for shift in range(0, _BYTES, 7):
        byte = next(data)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise ValueError


def _code(names: tuple[str, ...], name: str, packed: bytearray) -> int:
    """Return the code of *name*; if it has none, append the text."""
    if name in names:
        return names.index(name)
    packed.append(len(name))
    packed += name.encode("ascii")
    return _NAMED


def _text(names: tuple[str, ...], code: int, data: Iterator[int]) -> str:
    if code != _NAMED:
        return names[code]
    length = next(data)
    return bytes([next(data) for _ in range(length)]).decode("ascii")
