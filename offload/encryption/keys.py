"""Encryption keys: where they come from, and what is derived from each.

A key is 32 random bytes, written ``aes256:`` and their base64. A setting has this text, the path of
a file that contains it, or a function without arguments. The function returns the text or the 32
bytes, for example from a key management service.

Nothing is encrypted with these bytes themselves. By HKDF (RFC 5869, SHA-256), they yield a key for
the names of blobs, one for their content, one for each other purpose, and the key's own id. The id
is stored with everything encrypted, and reveals nothing.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Union
from urllib.parse import unquote, urlsplit

from offload.digest import Buffer, Digest, digest_of
from offload.errors import ConfigurationError, KeyUnavailable
from offload.forks import start_thread_or_call
from offload.settings import RetryPolicy, Settings

KeySource = Union[str, "os.PathLike[str]", Callable[[], Union[str, bytes]]]

PREFIX = "aes256:"
KEY_BYTES = 32
ID_BYTES = 8

_WHERE = "offload_encryption_keys"
_WANTED = "aes256: and the base64 of 32 random bytes, as printed by `openssl rand -base64 32`"
_SALT = b"offload encryption 1"
_LONGEST = 4096  # bytes of a key file
_PATIENCE = 10.0  # seconds in which a callable returns its key
_RELOAD = 30.0  # seconds between two loads because an id is unknown
_COOLDOWN = 5.0  # seconds after a failed load in which no other is tried
_MOST_KEPT = 8  # keys of earlier loads, which still decrypt

logger = logging.getLogger(__name__)


def expand(key: bytes, info: bytes) -> bytes:
    """Return 32 bytes derived from *key*: one step of HKDF-Expand with SHA-256."""
    return hmac.digest(key, info + b"\x01", "sha256")


class EncryptionKey:
    """One key, as derived from its 32 bytes.

    Attributes:
        id: 16 hexadecimal digits, which identify the key without revealing it.
        names: the key of the BLAKE3 hash that names blobs.
        contents: from which each blob's own key is derived; see `offload.encryption.blobs`.
    """

    def __init__(self, master: bytes) -> None:
        if len(master) != KEY_BYTES:
            raise ConfigurationError(f"{_WHERE}: a key has {KEY_BYTES} bytes, not {len(master)}")
        self._root = hmac.digest(_SALT, master, "sha256")
        self.id = self.derive("id")[:ID_BYTES].hex()
        self.names = self.derive("names")
        self.contents = self.derive("contents")

    def derive(self, purpose: str) -> bytes:
        """Return the 32 bytes of the key for *purpose*; each purpose has its own."""
        return expand(self._root, purpose.encode())

    def digest_of(self, parts: Sequence[Buffer]) -> Digest:
        """Return the name of the blob that consists of *parts*: their keyed hash."""
        return digest_of(parts, self.names)

    def __repr__(self) -> str:
        return f"<encryption key {self.id}>"


def parse_key(text: str, where: str = _WHERE) -> EncryptionKey:
    """Return the key written as *text*; raises ConfigurationError, without the text."""
    text = text.strip()
    try:
        if text.startswith(PREFIX):
            return EncryptionKey(base64.b64decode(text[len(PREFIX) :], validate=True))
    except (binascii.Error, ValueError):
        pass
    raise ConfigurationError(f"{where}: a key is {_WANTED}") from None


class Keyring:
    """The keys of one app, loaded at first use. The first encrypts, all decrypt.

    Args:
        sources: ``offload_encryption_keys``; keys given as text are checked at once.
        required: whether data that isn't encrypted is refused.
        policy: how often and how long to retry when a callable fails.
        sleep: waits that many seconds.
        clock: returns seconds that only increase.
        patience: seconds to wait for a callable to return its key.

    Raises ConfigurationError for an invalid key, for a repeated key, and without the package
    cryptography.
    """

    def __init__(
        self,
        sources: Sequence[KeySource],
        *,
        required: bool = False,
        policy: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        patience: float = _PATIENCE,
    ) -> None:
        self.required = required
        self._policy = policy or RetryPolicy()
        self._sleep = sleep
        self._clock = clock
        self._patience = patience
        self._sources = tuple(sources)
        self._calls: dict[tuple[int, int], _Call] = {}  # by process and source, while they run
        self._keys: tuple[EncryptionKey, ...] = ()
        self._loaded_at = 0.0
        self._failed: tuple[float, KeyUnavailable] | None = None
        _check_cryptography()
        for source in self._sources:
            _check_source(source)
        fixed = [parse_key(source) for source in map(_text_of, self._sources) if source]
        _check_distinct(fixed)
        if len(fixed) == len(self._sources):
            self._keys = tuple(fixed)

    @property
    def keys(self) -> tuple[EncryptionKey, ...]:
        """All keys; the first one encrypts. The first access loads them; see `load`."""
        return self._keys or self.load()

    @property
    def current(self) -> EncryptionKey:
        """The key that encrypts."""
        return self.keys[0]

    def load(self) -> tuple[EncryptionKey, ...]:
        """Read files and call callables again; return the keys.

        Keys of earlier loads still decrypt.

        Raises:
            KeyUnavailable: a callable failed, or was too slow, in each of several attempts. Calls
                in the next few seconds raise it again without an attempt.
            ConfigurationError: a file can't be read, a key is malformed, or two are the same.
        """
        if self._failed is not None:
            when, error = self._failed
            if self._clock() - when < _COOLDOWN:
                raise KeyUnavailable(str(error)) from error
        try:
            found = [self._load(number, source) for number, source in enumerate(self._sources)]
        except KeyUnavailable as exc:
            self._failed = self._clock(), exc
            raise
        _check_distinct(found)
        self._failed = None
        ids = {key.id for key in found}
        kept = [key for key in self._keys if key.id not in ids][:_MOST_KEPT]
        self._keys = (*found, *kept)
        self._loaded_at = self._clock()
        return self._keys

    def find(self, key_id: str, what: str = "data") -> EncryptionKey:
        """Return the key with this id, which encrypted *what*.

        If it is unknown, files are read and callables called again, at most every 30 seconds.

        Raises KeyUnavailable: this process doesn't have the key.
        """
        for attempt in range(2):
            for key in self.keys:
                if key.id == key_id:
                    return key
            if attempt or self.is_fixed:
                break
            if self._clock() - self._loaded_at < _RELOAD:
                break
            self.load()
        raise missing_key(key_id, what, [key.id for key in self.keys])

    @property
    def is_loaded(self) -> bool:
        """Whether `keys` returns at once."""
        return bool(self._keys)

    @cached_property
    def is_fixed(self) -> bool:
        """Whether all keys are given as text, so that none can be unavailable."""
        return all(map(_text_of, self._sources))

    def _load(self, number: int, source: KeySource) -> EncryptionKey:
        if callable(source):
            return self._called(number, source)
        text = _text_of(source)
        return parse_key(text) if text else _read_file(os.fspath(source))

    def _called(self, number: int, source: Callable[[], str | bytes]) -> EncryptionKey:
        where = f"{_WHERE}: key {number + 1}, a callable,"
        attempt = 0
        while True:
            try:
                found = self._call(number, source)
                break
            except Exception as exc:
                # Its message may contain what it was called with.
                why = str(exc) if isinstance(exc, TimeoutError) else f"raised {type(exc).__name__}"
                if attempt >= self._policy.max_retries:
                    raise KeyUnavailable(
                        f"{where} {why} in {attempt + 1} attempts: check that the key management "
                        "service can be reached from this process"
                    ) from exc
                wait = self._policy.wait(attempt, random.random)
                logger.warning("%s %s; retrying in %.2f s", where, why, wait)
            self._sleep(wait)
            attempt += 1
        if isinstance(found, str):
            return parse_key(found, where)
        if isinstance(found, (bytes, bytearray)):
            return EncryptionKey(bytes(found))
        raise ConfigurationError(
            f"{where} returned a {type(found).__name__}: it must return {_WANTED}, or these bytes"
        )

    def _call(self, number: int, source: Callable[[], str | bytes]) -> object:
        """Call *source* in a thread, or wait for the call that an earlier attempt started."""
        place = (os.getpid(), number)
        call = self._calls.setdefault(place, _Call(source))
        call.start()
        if not call.done.wait(self._patience):
            raise TimeoutError(f"didn't return within {self._patience:g} s")
        self._calls.pop(place, None)
        if call.error is not None:
            raise call.error
        return call.result


class _Call:
    """A call of a user's function in a thread of its own, as it may never return."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._started = iter((True,))  # taken once, without a lock that a fork could copy
        self.done = threading.Event()
        self.result: object = None
        self.error: Exception | None = None

    def start(self) -> None:
        if next(self._started, False):
            start_thread_or_call(self._run, "offload-key")

    def _run(self) -> None:
        try:
            self.result = self._function()
        except Exception as exc:
            self.error = exc
        finally:
            self.done.set()


def keyring_of(settings: Settings) -> Keyring | None:
    """Return the keys that *settings* name; None if they name none."""
    if not settings.encryption_keys:
        return None
    required = settings.encryption == "required"
    return Keyring(settings.encryption_keys, required=required, policy=settings.retry)


def missing_key(key_id: str, what: str, known: Sequence[str]) -> KeyUnavailable:
    """Return the error about data that was encrypted with a key unknown here."""
    have = ", ".join(known) or "no key"
    return KeyUnavailable(
        f"{what} is encrypted with the key {key_id}, and this process has {have}: add that key "
        f"to {_WHERE}, where keys after the first only decrypt",
        key=key_id,
    )


def _text_of(source: KeySource) -> str:
    """Return *source* if it is the text of a key, else an empty text."""
    return source if isinstance(source, str) and source.startswith(PREFIX) else ""


def _check_source(source: KeySource) -> None:
    if not callable(source) and not _text_of(source):
        path = os.fspath(source)
        if not path.startswith("file:///") and not Path(path).is_absolute():
            raise ConfigurationError(  # without the text, which may be a misspelt key
                f"{_WHERE}: a key is {_WANTED}, a callable, or the absolute path of a file"
            )


def _read_file(given: str) -> EncryptionKey:
    path = unquote(urlsplit(given).path) if given.startswith("file:") else given
    try:
        with Path(path).open("rb") as file:
            text = file.read(_LONGEST).decode("ascii", "replace")
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or "it isn't a path"
        raise ConfigurationError(  # without its cause, which shows a key that was misspelt
            f"{_WHERE}: a key is {_WANTED}, a callable, or the path of a file that can be read: "
            f"{why}"
        ) from None
    return parse_key(text, f"{_WHERE}: {path}")


def _check_distinct(keys: Sequence[EncryptionKey]) -> None:
    ids = [key.id for key in keys]
    for key_id in ids:
        if ids.count(key_id) > 1:
            raise ConfigurationError(
                f"{_WHERE}: two keys have the id {key_id}: each key is listed once"
            )


def _check_cryptography() -> None:
    try:
        import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401
    except ImportError as exc:
        raise ConfigurationError(
            f'{_WHERE} needs the package cryptography: pip install "offload[encryption]"'
        ) from exc
