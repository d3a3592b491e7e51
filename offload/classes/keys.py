"""Keys that sign versions, and keys that verify their signatures.

There are two kinds, written as text:

- ``ed25519:<base64>`` (RFC 8032): on producers, the 32 bytes of a private key; on workers, those of
  its public key; or the path of a PEM file with either. Needs the package *cryptography*.
- ``hmac:<secret>`` (HMAC-SHA-256, RFC 2104): one secret for both. Anyone who can verify can sign.

A verify key may have a name, shown in logs, and an expiry: ``{"key": …, "name": "ci", "until":
"2027-06-30"}``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timezone
from pathlib import Path
from typing import Any, Protocol

from offload.errors import ConfigurationError
from offload.settings.checks import is_number

_MIN_SECRET = 16
_ED25519, _HMAC = "ed25519:", "hmac:"


class Signer(Protocol):
    """A private key.

    Attributes:
        id: the first 16 hexadecimal digits of the SHA-256 of the verify key.
        public: the verify key, as text; "" if it is secret.
    """

    @property
    def id(self) -> str: ...

    @property
    def public(self) -> str: ...

    def sign(self, content: bytes) -> bytes: ...


@dataclass(frozen=True)
class VerifyKey:
    """A key that verifies signatures.

    Attributes:
        verifier: checks a signature.
        name: its name in logs and errors.
        until: when it expires, in seconds since 1970; None if never. All signatures by an expired
            key are refused.
    """

    verifier: _Hmac | _Ed25519
    name: str
    until: float | None = None

    @property
    def id(self) -> str:
        return self.verifier.id

    def is_expired(self, now: float) -> bool:
        return self.until is not None and now >= self.until


def signer(key: str) -> Signer:
    """Parse a private key. Raises ConfigurationError if it is invalid."""
    return _parsed("offload_signing_key", key, private=True)


def own_key(signing_key: str | None) -> tuple[dict[str, Any], ...]:
    """Return the verify key of *signing_key* in the form that `verify_keys` accepts."""
    if signing_key is None:
        return ()
    key = signing_key if signing_key.startswith(_HMAC) else signer(signing_key).public
    return ({"key": key, "name": "this process"},)


def verify_keys(given: Iterable[str | Mapping[str, Any]]) -> dict[str, VerifyKey]:
    """Parse verify keys, and return them by ID. Raises ConfigurationError if one is invalid.

    If a key is given twice, its first name and its earliest expiry count.
    """
    found: dict[str, VerifyKey] = {}
    for each in given:
        key = _verify_key({"key": each} if isinstance(each, str) else each)
        first = found.setdefault(key.id, key)
        ends = [it.until for it in (first, key) if it.until is not None]
        found[key.id] = replace(first, until=min(ends, default=None))
    return found


def generate() -> tuple[str, str]:
    """Return a new private key and its public key, as settings accept them."""
    private = _cryptography().Ed25519PrivateKey.generate()
    return (
        _ED25519 + base64.b64encode(private.private_bytes_raw()).decode(),
        _ED25519 + base64.b64encode(private.public_key().public_bytes_raw()).decode(),
    )


def _verify_key(given: Mapping[str, Any]) -> VerifyKey:
    where = "offload_verify_keys"
    unknown = set(given) - {"key", "name", "until"}
    key = given.get("key")
    if unknown or not isinstance(key, str):
        raise ConfigurationError(
            f"{where}: a key must be text, or a dict with 'key' and optionally 'name' and 'until'"
        )
    verifier = _parsed(where, key, private=False)
    return VerifyKey(
        verifier, str(given.get("name") or verifier.id), _moment(where, given.get("until"))
    )


def _moment(where: str, until: Any) -> float | None:
    """Return when a key expires, in seconds since 1970; a date counts to its end (UTC)."""
    try:
        if isinstance(until, str):
            until = datetime.fromisoformat(until) if len(until) > 10 else date.fromisoformat(until)
        if isinstance(until, date) and not isinstance(until, datetime):
            until = datetime.combine(until, time.max)
        if isinstance(until, datetime):
            moment: datetime = until if until.tzinfo else until.replace(tzinfo=timezone.utc)
            return moment.timestamp()
        if until is None:
            return None
        if is_number(until):
            return float(until)
    except ValueError:
        pass
    raise ConfigurationError(f"{where}: 'until' must be a date such as 2027-06-30, not {until!r}")


def _parsed(where: str, key: str, *, private: bool) -> _Hmac | _Ed25519:
    if not key.startswith(_HMAC):
        return _Ed25519(*_ed25519(where, key, private=private))
    secret = key[len(_HMAC) :].encode()
    if len(secret) < _MIN_SECRET:
        raise ConfigurationError(
            f"{where}: an hmac: secret needs at least {_MIN_SECRET} characters"
        )
    return _Hmac(secret)


class _Hmac:
    public = ""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.id = hashlib.sha256(b"offload hmac key\0" + secret).hexdigest()[:16]

    def sign(self, content: bytes) -> bytes:
        return hmac.digest(self._secret, content, "sha256")

    def verify(self, signature: bytes, content: bytes) -> bool:
        return hmac.compare_digest(signature, self.sign(content))


class _Ed25519:
    def __init__(self, private: Any, public: Any) -> None:
        self._private = private
        self._public = public
        self.id = hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]

    @property
    def public(self) -> str:
        return _ED25519 + base64.b64encode(self._public.public_bytes_raw()).decode()

    def sign(self, content: bytes) -> bytes:
        signature: bytes = self._private.sign(content)
        return signature

    def verify(self, signature: bytes, content: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            self._public.verify(signature, content)
        except InvalidSignature:
            return False
        return True


def _cryptography() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as exc:
        raise ConfigurationError(
            'Ed25519 keys need the package cryptography: pip install "offload[signing]"'
        ) from exc
    return ed25519


def _ed25519(where: str, key: str, *, private: bool) -> tuple[Any, Any]:
    module = _cryptography()
    expected = module.Ed25519PrivateKey if private else module.Ed25519PublicKey
    kind = "private" if private else "public"
    if key.startswith(_ED25519):
        try:
            raw = base64.b64decode(key[len(_ED25519) :], validate=True)
            make = expected.from_private_bytes if private else expected.from_public_bytes
            found = make(raw)
        except (binascii.Error, ValueError) as exc:
            raise ConfigurationError(
                f"{where}: expected ed25519: and the 32 bytes of a {kind} key in base64"
            ) from exc
    else:
        found = _pem(where, key, private=private)
        if not isinstance(found, expected):
            raise ConfigurationError(f"{where}: {key} doesn't hold an Ed25519 {kind} key")
    return (found, found.public_key()) if private else (None, found)


def _pem(where: str, path: str, *, private: bool) -> Any:
    from cryptography.hazmat.primitives import serialization

    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or "it isn't a path"
        raise ConfigurationError(  # without its cause, which would show a misspelled key
            f"{where}: expected ed25519:…, hmac:…, or the path of a readable PEM file: {why}"
        ) from None
    try:
        if private:
            return serialization.load_pem_private_key(content, password=None)
        return serialization.load_pem_public_key(content)
    except (ValueError, TypeError) as exc:
        raise ConfigurationError(f"{where}: {path} cannot be read: {exc}") from exc
