"""`Ref`, the claim check that is sent instead of a value.

Its wire form is plain data, the same under every serializer::

    {"__type__": "offload", "__value__": "offload:1?d=b3:1f0c…&n=41200000&…&m=<mac>"}

The text is a query string of these fields: ``d``, the digest of the value's root blob; ``n``, the
value's bytes; ``s``, its serializer; ``t``, its type, for people; ``c`` and ``u``, when the
reference was created and until when the store holds the value (seconds since 1970); ``k``, a
fingerprint of the signing key, or ``x`` and the start of the id of the encryption key that it is
derived from; and ``m``, a keyed BLAKE2b (RFC 7693, 128 bits) of everything
before it. Instead of ``d`` there may be ``i``: a small value itself, in base64, that the message's
own serializer doesn't support. Readers ignore unknown fields; references created before ``k``
was added lack it.

A *late* reference (wire version 2, which earlier releases refuse) names an object of the catalog
instead: ``l``, its name; ``v``, a version, a tag, or ``latest``; and ``b``, its bucket.

Text without a valid ``m`` never becomes a reference: `Keys.open` decides that, and
all wire data goes through it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import unquote_plus, urlencode

from kombu.utils.json import register_type

from offload.digest import Digest, parse_digest
from offload.encryption.keys import Keyring
from offload.errors import InvalidRef, KeyUnavailable, SerializationError, UnsupportedVersion
from offload.text import human_size, human_time, printable

T = TypeVar("T")
Resolve = Callable[["Ref[Any]"], Any]

WIRE_VERSION = 1
_LATE_VERSION = 2  # of late references, and the newest one read
TYPE_KEY, VALUE_KEY = "__type__", "__value__"
MARKER = "offload"
MESSAGE_KEY = "__offload__"
_PREFIX = "offload:"
_MAC = re.compile(  # printable ASCII only, as `Keys.sign` writes it
    r"(?P<signed>offload:(?P<version>[0-9]{1,4})\?[!-~]*)&m=(?P<mac>[0-9a-f]{32})"
)
_ORDINARY = re.compile(r"[\w:=.&-]*", re.ASCII)
_FINGERPRINT = re.compile(r"&k=([0-9a-fx][0-9a-f]{7})(?:&|$)")
_DIGITS = 8  # of a fingerprint, in a reference
ENCRYPTION = "x"
"""First character of the fingerprint of a key that is derived from an encryption key."""
_LONGEST_NUMBER = 19  # digits
_SCANNED = 300  # characters of a refused reference in which to look for its digest
MAX_TYPE = 48
"""Characters of a type's name in a reference."""
_NEVER_REF_LIKE = frozenset({type(None), bool, int, float, str, bytes, list, tuple})
_within_values: ContextVar[bool] = ContextVar("offload_within_values", default=False)


class Late(NamedTuple):
    """The object of a late reference, looked up in the catalog when a task starts."""

    bucket: str
    name: str
    version: str


@dataclass(frozen=True, eq=False)
class Ref(Generic[T]):
    """A reference to a stored value.

    Pass it to a task instead of the value: the task receives the value. A parameter
    annotated ``Ref`` or ``Ref[DataFrame]`` receives the reference itself; the task then
    calls `get` if it needs the value.

    Attributes:
        digest: digest of the stored content; equal values that are serialized in the same way
            have equal digests. None for a small value inside the reference.
        size: bytes of the serialized value.
        serializer: name of the serializer that reads it.
        type: name of the value's type, for display.
        created: when the reference was created, in seconds since 1970.
        until: when its hold expires at the earliest, in seconds since 1970.
        late: the object of a late reference, see `offload.Catalog.late`; None for others.
    """

    digest: Digest | None
    size: int
    serializer: str
    type: str
    created: float
    until: float
    wire: str = field(repr=False)
    data: bytes | None = field(default=None, repr=False)
    resolve: Callable[[Ref[T]], T] | None = field(default=None, repr=False)
    late: Late | None = None

    def get(self) -> T:
        """Return the value, as a new private copy at each call.

        Raises:
            InvalidRef: if the reference isn't from a task, a result, or `Offload.put`, so it
                isn't bound to a store; use `Offload.get`.
            BlobMissing: if the value is no longer in the store.
            IntegrityError: if the value was altered.
            StoreUnavailable: if the store is unavailable.
        """
        if self.resolve is None:
            raise InvalidRef(f"{self!r} is bound to no app; use Offload.get(ref)")
        return self.resolve(self)

    @classmethod
    def local(cls, value: T) -> Ref[T]:
        """Return a reference to a value in this process; `get` returns that value.

        A parameter annotated ``Ref`` receives such a reference if the value was small enough for
        the message. If you pass the reference to a task, the value itself is sent.
        """
        now = time.time()
        return cls(None, 0, "", type(value).__name__, now, now, "", None, lambda _: value)

    @classmethod
    def unbound(cls, wire: str) -> Ref[Any]:
        """Return an unverified Ref, which only has its wire text until `Keys.open` verifies it."""
        return Ref(None, 0, "", "unverified", 0, 0, wire)

    @property
    def is_local(self) -> bool:
        return not self.wire

    @property
    def shown(self) -> str:
        """Type, size, and digest prefix, for people; an unverified Ref shows what it claims.

        It contains no signature, so it can't be redeemed.
        """
        if self.late is not None:
            return f"late {self.late.name}@{self.late.version}"
        kind, size, digest = self.type, self.size, str(self.digest or "")
        if self.resolve is None and self.wire:
            claimed: Mapping[str, str] = {}
            with suppress(ValueError):
                claimed = _query(self.wire[:_SCANNED].partition("?")[2])
            kind, digest = claimed.get("t", "")[:MAX_TYPE], claimed.get("d", "")
            number = claimed.get("n", "")[:20]
            size = int(number) if number.isdecimal() else 0
        where = f"{digest[:11]}…" if digest else "inline"
        return f"{printable(kind) or 'object'} {human_size(size)} {where}"

    def __json__(self) -> dict[str, str]:
        if _within_values.get():
            raise SerializationError(
                f"{self!r} is inside a value, where it would be read as data: put the values, "
                "or pass the references as arguments"
            )
        return {TYPE_KEY: MARKER, VALUE_KEY: self.wire}

    def __reduce__(self) -> tuple[Any, ...]:
        return (Ref.local, (self.get(),)) if self.is_local else (Ref.unbound, (self.wire,))

    def __copy__(self) -> Ref[T]:
        return self  # immutable; and Celery copies signatures, which must not unbind it

    def __deepcopy__(self, _memo: object) -> Ref[T]:
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ref):
            return NotImplemented
        return self is other or (bool(self.wire) and self.wire == other.wire)

    def __hash__(self) -> int:
        return hash(self.wire) if self.wire else id(self)

    def _repr_html_(self) -> str:
        """Describe it in a notebook; nothing is fetched. Shows no signature."""
        from offload.text import facts

        if self.late is not None:
            title, values = "Ref, resolved when a task starts", dict(self.late._asdict())
        elif self.is_local:
            title, values = "Ref to a value in this process", {"type": self.type}
        elif self.serializer == "":
            title, values = "Ref, not verified", {"claims": self.shown}
        else:
            title, values = (
                "Ref",
                {
                    "type": self.type,
                    "size": human_size(self.size),
                    "digest": self.digest or "none, the value is in the reference",
                    "serializer": self.serializer,
                    "created": human_time(self.created),
                    "held until": human_time(self.until) if self.digest else None,
                },
            )
        return facts(title, values)

    def __repr__(self) -> str:
        if self.serializer == "" and self.wire:
            return "<Ref, not verified>"
        return f"<Ref {self.shown}>"


@contextmanager
def no_refs_within() -> Iterator[None]:
    """Make a Ref inside a value that JSON serializes in this context raise SerializationError."""
    token = _within_values.set(True)
    try:
        yield
    finally:
        _within_values.reset(token)


class LostValue(str):
    """Placeholder for a task's argument that could not be read, in code that runs after a failure:
    ``on_failure``, ``after_return``, error callbacks, and the ``task_failure`` signal.

    It is a descriptive string, so it can be shown, hashed, and written as JSON. No task starts
    with one, and it can't be sent to a task.

    Attributes:
        error: why the value could not be read.
    """

    __slots__ = ("error",)
    error: Exception

    @classmethod
    def of(cls, ref: Ref[Any], error: Exception) -> LostValue:
        """Return the placeholder for the value of *ref*, which could not be read due to *error*."""
        return _lost(f"<offload: lost {ref.shown}: {type(error).__name__}>", error)

    def __repr__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _lost, (str(self), self.error)


def _lost(text: str, error: Exception) -> LostValue:
    made = LostValue(text)
    made.error = error
    return made


def wire_text(value: object) -> str | None:
    """Return the text of *value* if it has the wire form of a Ref, else None; doesn't verify it."""
    if type(value) is dict and len(value) == 1 and MESSAGE_KEY in value:
        text = value[MESSAGE_KEY]
        return text if isinstance(text, str) and text else None
    if type(value) is dict and len(value) == 2 and value.get(TYPE_KEY) == MARKER:
        text = value.get(VALUE_KEY)
        return text if isinstance(text, str) and text else None
    return value.wire or None if isinstance(value, Ref) else None


def in_message(text: str) -> dict[str, str]:
    """Return the data that replaces a value in a message, for any serializer.

    It can be read without this library; the message's note lists where it is.

    Args:
        text: the wire text of its reference, or the short form of that.
    """
    return {MESSAGE_KEY: text}


def looks_like_ref(value: object) -> bool:
    """Return whether *value*, after a round trip through JSON, could be mistaken for a Ref."""
    kind = type(value)
    if kind in _NEVER_REF_LIKE:
        return False
    if kind is not dict and hasattr(kind, "__json__") and kind is not Ref:
        try:
            value = value.__json__()  # type: ignore[attr-defined]  # as kombu's JSON does
        except Exception:
            return False
    return isinstance(value, Mapping) and len(value) == 2 and value.get(TYPE_KEY) == MARKER


def has_wire_form(text: str) -> bool:
    """Return whether *text* has exactly the form of a reference; doesn't verify it."""
    return _MAC.fullmatch(text) is not None


def claimed_digest(text: str) -> Digest | None:
    """Return the digest that *text* claims as a reference, unverified; None if there is none."""
    with suppress(ValueError):
        return parse_digest(_query(text[:_SCANNED].partition("?")[2]).get("d", ""))
    return None


@dataclass(frozen=True)
class Keys:
    """Signs and opens references: the first key signs, all of them open.

    Attributes:
        keys: 16 to 64 secret bytes each.
        secret: whether they come from ``offload_secret`` or encryption keys, not from the store.
        ids: of the encryption keys that *keys* are derived from; "" or missing for others.
        keyring: the encryption keys, which seal what is private in signed records; None without.
    """

    keys: Sequence[bytes] = field(repr=False)
    secret: bool = False
    ids: Sequence[str] = ()
    keyring: Keyring | None = field(default=None, repr=False, compare=False)

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """The keys' fingerprints, as in references."""
        return tuple(
            f"{ENCRYPTION}{each}"[:_DIGITS] if each else fingerprint(key)[:_DIGITS]
            for key, each in self.with_ids()
        )

    def with_ids(self) -> Iterator[tuple[bytes, str]]:
        """Yield each key, and the id of the encryption key that it is derived from, or ""."""
        missing = len(self.keys) - len(self.ids)
        return zip(self.keys, (*self.ids, *[""] * missing), strict=True)

    def sign(
        self,
        *,
        digest: Digest | None,
        data: bytes | None,
        size: int,
        serializer: str,
        type: str,  # noqa: A002 (the attribute's name)
        created: float,
        until: float,
        resolve: Resolve | None = None,
    ) -> Ref[Any]:
        """Return a new signed reference; its times are rounded down to seconds."""
        query: dict[str, str | int] = {}
        if digest is not None:
            query["d"] = digest
        shown = type[:MAX_TYPE].encode("utf-8", "replace").decode()
        query.update(n=size, s=serializer, t=shown, c=int(created), u=int(until))
        query["k"] = self.fingerprints[0]
        if data is not None:
            query["i"] = base64.urlsafe_b64encode(data).decode("ascii")
        signed = f"{_PREFIX}{WIRE_VERSION}?{_encode(query)}"
        wire = f"{signed}&m={_mac(self.keys[0], signed)}"
        return Ref(digest, size, serializer, shown, int(created), int(until), wire, data, resolve)

    def sign_late(self, late: Late, created: float, resolve: Resolve | None = None) -> Ref[Any]:
        """Return a new late reference."""
        query = {"b": late.bucket, "l": late.name, "v": late.version, "c": int(created)}
        query["k"] = self.fingerprints[0]
        signed = f"{_PREFIX}{_LATE_VERSION}?{_encode(query)}"
        return _parse_late(f"{signed}&m={_mac(self.keys[0], signed)}", signed, resolve)

    def open(self, wire: str, resolve: Resolve | None = None) -> Ref[Any]:
        """Verify *wire* and return its reference; *resolve* is what its `Ref.get` calls.

        Raises:
            UnsupportedVersion: it was written by a newer version of offload.
            KeyUnavailable: it is signed with an encryption key that is unknown here.
            InvalidRef: it isn't a reference, was changed, or belongs to another app or store.
        """
        form = _MAC.fullmatch(wire)
        if form is None:
            raise InvalidRef(f"not a reference: {wire[:80]!r}")
        if int(form["version"]) > _LATE_VERSION:
            raise UnsupportedVersion(
                f"a reference of wire version {form['version']} arrived, this offload reads up to "
                f"{_LATE_VERSION}; upgrade offload here before where tasks are published"
            )
        signed, mac = form["signed"], form["mac"]
        if not any(hmac.compare_digest(_mac(key, signed), mac) for key in self.keys):
            raise self._refusal(signed)
        parse = _parse_late if int(form["version"]) == _LATE_VERSION else _parse
        return parse(wire, signed, resolve)

    def sign_record(self, kind: bytes, name: str, text: bytes) -> bytes:
        """Return a value ``<MAC> <text>`` that only the pointer *name* of this *kind* may have."""
        return b"%b %b" % (_record_mac(self.keys[0], kind, name, text), text)

    def _refusal(self, signed: str) -> InvalidRef | KeyUnavailable:
        ours = ", ".join(self.fingerprints) or "none"
        found = _FINGERPRINT.search(signed)
        theirs = found[1] if found else "not named"
        if theirs in self.fingerprints:
            return InvalidRef(
                "a reference has no valid signature: it was changed after it was signed with our "
                f"key {theirs}"
            )
        if theirs.startswith(ENCRYPTION):
            return KeyUnavailable(
                f"a reference is signed with the encryption key {theirs[1:]}… (ours: {ours}): list "
                "that key in offload_encryption_keys here, where keys after the first only decrypt",
                key=theirs[1:],
            )
        if any(self.ids):
            remedy = (
                "set the same offload_store and offload_encryption_keys here and where it was made"
            )
        elif self.secret:
            remedy = (
                "set the same offload_secret here and where it was made; during a rotation, "
                "list the old and the new secret in both places"
            )
        else:
            remedy = (
                "set the same offload_store here and where it was made, and set "
                "offload_secret in both places or in neither"
            )
        changed = "" if found else ", or changed after it was signed"
        return InvalidRef(
            f"a reference has no valid signature: it was made for another store or secret "
            f"(theirs {theirs}, ours {ours}){changed}; {remedy}"
        )


def _parse(wire: str, signed: str, resolve: Resolve | None) -> Ref[Any]:
    try:
        query = _query(signed.partition("?")[2])
        return Ref(
            digest=parse_digest(query["d"]) if "d" in query else None,
            data=base64.b64decode(query["i"], b"-_", validate=True) if "i" in query else None,
            size=_number(query["n"]),
            serializer=query["s"],
            type=query["t"],
            created=_number(query["c"]),
            until=_number(query["u"]),
            wire=wire,
            resolve=resolve,
        )
    except (KeyError, ValueError, binascii.Error) as exc:
        raise InvalidRef(f"a signed reference cannot be read: {exc}") from exc


def _parse_late(wire: str, signed: str, resolve: Resolve | None) -> Ref[Any]:
    try:
        query = _query(signed.partition("?")[2])
        late, created = Late(query["b"], query["l"], query["v"]), _number(query["c"])
    except (KeyError, ValueError) as exc:
        raise InvalidRef(f"a signed reference cannot be read: {exc}") from exc
    return Ref(None, 0, "late", "late", created, created, wire, None, resolve, late)


def _number(text: str) -> int:
    """Return a number of at most 19 digits; raises ValueError."""
    if not text.isdecimal() or len(text) > _LONGEST_NUMBER:
        raise ValueError("not a number")
    return int(text)


def _encode(query: Mapping[str, object]) -> str:
    text = "&".join([f"{name}={value}" for name, value in query.items()])
    if text.count("&") == len(query) - 1 and _ORDINARY.fullmatch(text):
        return text  # as `urlencode` would return, which takes ten times as long
    return urlencode(query, safe=":=.")


def _query(text: str) -> dict[str, str]:
    """Parse a query string; raises ValueError if it isn't one.

    Called for each reference of a message; `urllib.parse.parse_qsl` takes four times as long.
    """
    found = {}
    for pair in text.split("&"):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError("not a query string")
        found[name] = unquote_plus(value) if "%" in value or "+" in value else value
    return found


def fingerprint(key: bytes) -> str:
    """Return a fingerprint, which identifies *key* without revealing it.

    It is a keyed hash as the MAC is, but in another domain, so that neither helps to compute
    the other.
    """
    return blake2b(key=key, digest_size=8, person=b"offload-key-name").hexdigest()


def _mac(key: bytes, signed: str) -> str:
    return blake2b(signed.encode(), key=key, digest_size=16, person=b"offload-ref").hexdigest()


def record_text(kind: bytes, name: str, value: bytes, keys: Keys | None) -> bytes | None:
    """Return the text in a *value* of `Keys.sign_record`; None if none of *keys* signed it.

    If *keys* is None, it isn't verified.
    """
    mac, _, text = value.partition(b" ")
    if keys is None:
        return text
    for key in keys.keys:
        if hmac.compare_digest(_record_mac(key, kind, name, text), mac):
            return text
    return None


def _record_mac(key: bytes, kind: bytes, name: str, text: bytes) -> bytes:
    content = b"%b\n%b" % (name.encode(), text)
    return blake2b(content, key=key, digest_size=16, person=kind).hexdigest().encode()


def _plain(text: Any) -> Any:
    """Decode our type in JSON to the same data.

    The message's header lists where references are; data that looks like one isn't. Registering
    the type makes JSON fail where this library is missing.
    """
    return {TYPE_KEY: MARKER, VALUE_KEY: text}


register_type(Ref, MARKER, lambda ref: ref.wire, _plain)
