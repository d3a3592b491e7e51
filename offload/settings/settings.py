"""All settings, in three groups: read once from Celery's configuration, and checked as a whole."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from offload.errors import ConfigurationError
from offload.settings.checks import (
    as_seconds,
    as_size,
    check_choice,
    check_flag,
    check_names,
    check_patterns,
    check_serializers,
    check_whole,
    is_int,
    refuse,
    unknown_name,
)
from offload.settings.options import TaskOptions
from offload.text import parse_size

_MODES = ("on", "observe", "off")
_OUTAGES = ("raise", "inline")
_ENCRYPTIONS = ("optional", "required")
_COMPRESSIONS = ("auto", "zstd", "none")
_CACHES = ("auto", "off")
_PREFETCHES = ("auto", "on", "off")
_CACHE_WRITES = ("auto", "on", "off")
_VERIFICATIONS = ("none", "entry", "always")
_CODES = ("off", "signed", "trusted")
_MIN_SECRET = 16  # characters
_MIN_MESSAGE = 4096  # bytes
_SIMILAR = 0.9  # of names whose start is misspelled; 1 is equal
_TIER_SIZES = (1024**2,)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to retry; named as in Celery's ``retry_policy``.

    Attributes:
        max_retries: attempts after the first.
        interval_start: seconds before the first retry.
        interval_step: seconds added to each further wait.
        interval_max: longest wait in seconds.
    """

    max_retries: int = 5
    interval_start: float = 0.2
    interval_step: float = 0.5
    interval_max: float = 10.0

    def __post_init__(self) -> None:
        check_whole("offload_retry: 'max_retries'", self.max_retries, "a whole number, at least 0")
        for name in ("interval_start", "interval_step", "interval_max"):
            given = getattr(self, name)
            seconds = as_seconds(f"offload_retry: {name!r}", given, zero=True)
            object.__setattr__(self, name, seconds)

    def wait(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the seconds to wait before retry number *attempt* (from 0).

        The interval grows by a fixed step, as Celery's does. *random()* (0 to 1) shifts the wait
        by up to a fifth either way, so that many clients don't return at once.
        """
        interval = self.interval_start + self.interval_step * attempt
        return min(interval * (0.8 + 0.4 * random()), self.interval_max)


@dataclass(frozen=True)
class CoreSettings:
    """Stores, thresholds, retention, and handling of outages.

    Attributes:
        store: URL of the store, or several, which are its tiers. Default: the result
            backend's Redis, else the broker's.
        store_options: dict of options besides those in the store's URL, such as TLS and
            credentials (for several stores, a list of dicts); see `offload.open_store`.
        tier_sizes: sizes in bytes at which values go to the second tier, the third, and so on; one
            fewer than there are tiers.
        mode: ``on``; ``observe`` leaves messages as they are and only counts what
            would be stored; ``off`` stores nothing, but still resolves what arrives.
        threshold: smallest size, in bytes, at which a value is stored rather than sent.
        message_limit: largest message in bytes, as the broker receives it, with body and headers.
            If one would be larger, its largest values are stored regardless of *threshold*.
            ``auto``: the limit of Amazon SQS or RabbitMQ, less a sixteenth; none for other brokers.
            0: none.
        results: whether results are stored, too.
        inline: names of parameters that stay in the message, in every task.
        max_size: largest value in bytes.
        retention: seconds that a message or a `put` holds its value, unless it is released
            earlier. Default: 7 days where the store tracks holds; 1 day where values
            expire only by age.
        grace: seconds that a value is kept after its last holder released it, in addition to the
            broker's time to redeliver a message (``visibility_timeout``).
        retry: how often and how long to retry when a store is unavailable; see `RetryPolicy`.
        on_outage: ``raise`` StoreUnavailable from publishing when the store stays
            unavailable, or ``inline``: send values of up to *inline_limit* bytes in the message.
        inline_limit: see *on_outage*.
        accept: serializers that may be decoded besides those of ``accept_content``, by kombu's
            names or content types.
        types: dotted names of types to register once one is needed: of modules that call
            `offload.register_type`, or of classes that it accepts.
        secret: signs references; of a tuple, the first signs and all are accepted.
            Default: a random key that the store keeps.
        encryption_keys: keys that encrypt what is stored; the first encrypts, all decrypt. Each is
            ``aes256:…``, the path of a file with such a string, or a callable that returns a key.
        encryption: ``optional`` also reads data that isn't encrypted; ``required`` refuses it.
        short_refs: whether messages have references of about 80 characters instead of 180, which
            earlier releases refuse.
        compression: ``auto`` compresses if a sample shrinks; ``zstd``; ``none``.
        memo_size: bytes of immutable values per process that are remembered, so that
            the same object is not hashed again.
        stats_interval: seconds between writes of a process's statistics to the store; 0 keeps
            none.
    """

    store: str | tuple[str, ...] | None = field(default=None, repr=False)  # may hold a password
    store_options: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)  # credentials
    tier_sizes: tuple[int, ...] = _TIER_SIZES
    mode: str = "on"
    threshold: int = 64 * 1024
    message_limit: int | str = "auto"
    results: bool = True
    inline: tuple[str, ...] = ()
    max_size: int = 2 * 1024**3
    retention: float | None = None
    grace: float = 3600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    on_outage: str = "raise"
    inline_limit: int = 1024**2
    accept: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    secret: tuple[str, ...] = field(default=(), repr=False)
    encryption_keys: tuple[str | Callable[[], str | bytes], ...] = field(default=(), repr=False)
    encryption: str = "optional"
    short_refs: bool = False
    compression: str = "auto"
    memo_size: int = 64 * 1024**2
    stats_interval: float = 10.0

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if isinstance(self.store, list):
            put("store", tuple(self.store))
        urls = self.store if isinstance(self.store, tuple) else (self.store or "",)
        if not urls or not all(isinstance(url, str) for url in urls):
            raise ConfigurationError("offload_store must be a URL or a list of URLs")
        put("store_options", _store_options(self.store_options, len(urls)))
        put("tier_sizes", _tier_sizes(self.tier_sizes, len(urls)))
        check_choice("offload_mode", self.mode, _MODES)
        check_choice("offload_on_outage", self.on_outage, _OUTAGES)
        check_choice("offload_compression", self.compression, _COMPRESSIONS)
        check_flag("offload_results", self.results)
        check_flag("offload_short_refs", self.short_refs)
        for name in ("threshold", "max_size", "inline_limit", "memo_size"):
            put(name, as_size(f"offload_{name}", getattr(self, name)))
        put("message_limit", _message_limit(self.message_limit))
        if self.retention is not None:
            put("retention", as_seconds("offload_retention", self.retention))
        put("grace", as_seconds("offload_grace", self.grace))
        interval = as_seconds("offload_stats_interval", self.stats_interval, zero=True)
        put("stats_interval", interval)
        put("inline", check_names("offload_inline", self.inline))
        put("accept", check_serializers("offload_accept", self.accept))
        put("types", check_names("offload_types", self.types))
        put("secret", _secret(self.secret))
        put("encryption_keys", _encryption_keys(self.encryption_keys))
        check_choice("offload_encryption", self.encryption, _ENCRYPTIONS)
        if self.encryption == "required":
            _check_required(self.encryption_keys, self.on_outage)
        put("retry", _retry(self.retry))


@dataclass(frozen=True)
class NodeCacheSettings:
    """The node cache, which the processes of one machine share.

    Attributes:
        cache: folder that keeps large values from a remote store for all processes of a
            machine; ``auto`` is one in ``/dev/shm``; ``off``.
        cache_size: its maximum size in bytes; see `offload.content.cache.folder.Folder`.
        cache_write: whether a process also puts large values into the node cache when it stores
            them: ``auto`` if a worker of the machine uses that cache; ``on``; ``off``.
        cache_plain: whether *cache* may be on a disk although *encryption_keys* are set. Cached
            values aren't encrypted.
        prefetch: whether a worker fetches large values into the node cache for tasks that
            wait in it: ``auto`` in prefork workers; ``on`` in every pool; ``off``.
        verify: when cached files are verified, in addition to all that is read from a store:
            ``none``; ``entry`` (their roots at each use); ``always``.
    """

    cache: str = "auto"
    cache_size: int = 1024**3
    cache_write: str = "auto"
    cache_plain: bool = False
    prefetch: str = "auto"
    verify: str = "entry"

    def __post_init__(self) -> None:
        if isinstance(self.cache, os.PathLike):
            object.__setattr__(self, "cache", os.fspath(self.cache))
        if not isinstance(self.cache, str) or (
            self.cache not in _CACHES and not Path(self.cache).is_absolute()
        ):
            refuse("offload_cache", self.cache, "'auto', 'off', or the absolute path of a folder")
        size = as_size("offload_cache_size", self.cache_size)
        object.__setattr__(self, "cache_size", size)
        check_choice("offload_cache_write", self.cache_write, _CACHE_WRITES)
        check_flag("offload_cache_plain", self.cache_plain)
        check_choice("offload_prefetch", self.prefetch, _PREFETCHES)
        check_choice("offload_verify", self.verify, _VERIFICATIONS)


@dataclass(frozen=True)
class ClassSettings:
    """Which classes and functions are shipped, and which a worker loads.

    Attributes:
        code: which classes and functions a worker loads from the store: none (``off``), those
            signed by a key of *verify_keys* (``signed``), or all (``trusted``). Unless it is
            ``off``, classes are also shipped; see `offload.ClassRegistry`.
        code_allow: patterns of their names, optionally with ``@`` and a hash prefix; no others
            are loaded. Default: all.
        signing_key: signs shipped code: ``ed25519:…``, ``hmac:…`` or the path of a PEM file.
        verify_keys: keys whose signatures are accepted, in addition to *signing_key*: such strings,
            or dicts of ``key``, ``name`` and ``until`` (a date).
        ship_source: whether source is shipped, too, and used for versions made by another Python
            version.
    """

    code: str = "off"
    code_allow: tuple[str, ...] = ()
    signing_key: str | None = field(default=None, repr=False)
    verify_keys: tuple[str | Mapping[str, Any], ...] = field(default=(), repr=False)
    ship_source: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        check_choice("offload_code", self.code, _CODES)
        check_flag("offload_ship_source", self.ship_source)
        put("code_allow", check_patterns("offload_code_allow", self.code_allow))
        if isinstance(self.signing_key, os.PathLike):
            put("signing_key", os.fspath(self.signing_key))
        if self.signing_key is not None and not isinstance(self.signing_key, str):
            raise ConfigurationError("offload_signing_key: ed25519:…, hmac:… or a PEM file's path")
        keys = self.verify_keys
        keys = (keys,) if isinstance(keys, (str, Mapping)) else keys
        if not isinstance(keys, (list, tuple)) or not all(
            isinstance(key, (str, Mapping)) for key in keys
        ):
            raise ConfigurationError("offload_verify_keys: a list of keys, each a string or a dict")
        put("verify_keys", tuple(keys))
        if self.code == "signed" and not keys and self.signing_key is None:
            raise ConfigurationError(
                "offload_code is 'signed', but no key verifies signatures: set "
                "offload_verify_keys (`celery offload classes keygen` makes a pair)"
            )


@dataclass(frozen=True)
class Settings(ClassSettings, NodeCacheSettings, CoreSettings):  # fields: in reverse order
    """All settings. As Celery settings, their names start with ``offload_``.

    `CoreSettings`, `NodeCacheSettings` and `ClassSettings` describe them.
    """

    def __post_init__(self) -> None:
        for group in (CoreSettings, NodeCacheSettings, ClassSettings):
            group.__post_init__(self)

    @classmethod
    def read(
        cls, conf: Mapping[str, Any], namespace: str | None, given: Mapping[str, Any]
    ) -> Settings:
        """Return the settings from Celery's *conf*, overridden by *given*, without the prefix.

        *namespace* is Celery's (``CELERY`` where Django's settings say
        ``CELERY_OFFLOAD_STORE``). Raises ConfigurationError naming the key.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for key in list(conf.keys()):
            name = _short(key, namespace)
            if name is None:
                _check_similar(key, namespace, known)
                continue
            if name not in known:
                start = key[: -len(name)] if name else key  # as it is spelled, with a namespace
                names = [f"{start}{each.upper() if key.isupper() else each}" for each in known]
                raise ConfigurationError(unknown_name(f"setting {key!r}", key, names))
            values[name] = conf[key]
        for name in given:
            if name not in known:
                raise ConfigurationError(unknown_name(f"Offload({name}=…)", name, known))
        values.update(given)
        return cls(**{name: value for name, value in values.items() if value is not None})

    def options(self) -> TaskOptions:
        """Return the options that hold unless a task or a call sets others."""
        return TaskOptions(
            enabled=self.mode != "off",
            inline=self.inline,
            results=self.results,
            threshold=self.threshold,
            retention=self.retention,
        )


def _short(key: object, namespace: str | None) -> str | None:
    """Return the name of our setting that *key* is; None for other keys."""
    if not isinstance(key, str):
        return None
    name = key
    if namespace and name.startswith(namespace + "_"):
        name = name[len(namespace) + 1 :]
    elif namespace and name.isupper():
        return None
    name = name.lower().removeprefix("celery_")
    return name.removeprefix("offload_") if name.startswith("offload_") else None


def _check_similar(key: object, namespace: str | None, known: Iterable[str]) -> None:
    """Raise ConfigurationError for a key such as ``ofload_store``, which would be ignored.

    So is ``OFFLOAD_STORE``, if Celery reads only names in its *namespace*.
    """
    name = key.lower().removeprefix("celery_") if isinstance(key, str) else ""
    if not isinstance(key, str) or not name.startswith("of"):
        return
    near = difflib.get_close_matches(name, [f"offload_{each}" for each in known], 1, _SIMILAR)
    if near:
        start = key[: -len(name)] or (f"{namespace}_" if namespace and key.isupper() else "")
        meant = start + (near[0].upper() if key.isupper() else near[0])
        raise ConfigurationError(f"setting {key!r} is unknown; did you mean {meant!r}?")


def _message_limit(given: Any) -> int | str:
    if given == "auto":
        return "auto"
    size = parse_size(given) if isinstance(given, str) else given
    if not is_int(size) or (size != 0 and size < _MIN_MESSAGE):
        wanted = (
            f"'auto', 0 for no limit, or at least {_MIN_MESSAGE} bytes (a number, or a string such "
            "as '1MB'): a message without arguments takes more than 1,000, and each reference "
            "up to 300"
        )
        refuse("offload_message_limit", given, wanted)
    return size


def _secret(given: Any) -> tuple[str, ...]:
    secret = (given,) if isinstance(given, str) else given or ()
    if not all(isinstance(s, str) and len(s) >= _MIN_SECRET for s in secret):
        raise ConfigurationError(
            f"offload_secret: every secret is a string of at least {_MIN_SECRET} characters"
        )
    return tuple(secret)


def _encryption_keys(given: Any) -> tuple[str | Callable[[], str | bytes], ...]:
    is_one = isinstance(given, (str, os.PathLike)) or callable(given)
    keys = (given,) if is_one else given
    if not isinstance(keys, (list, tuple)) or not all(
        isinstance(key, (str, os.PathLike)) or callable(key) for key in keys
    ):
        raise ConfigurationError(
            "offload_encryption_keys: a list of keys, each a string that starts with aes256:, the "
            "path of a file, or a callable that returns a key"
        )
    return tuple(os.fspath(key) if isinstance(key, os.PathLike) else key for key in keys)


def _check_required(keys: tuple[Any, ...], on_outage: str) -> None:
    if not keys:
        raise ConfigurationError(
            "offload_encryption is 'required', but there is no key: set offload_encryption_keys"
        )
    if on_outage == "inline":
        raise ConfigurationError(
            "offload_encryption is 'required', and offload_on_outage 'inline' would send values "
            "unencrypted: set it to 'raise'"
        )


def _retry(given: Any) -> RetryPolicy:
    if isinstance(given, RetryPolicy):
        return given
    if not isinstance(given, Mapping):
        refuse("offload_retry", given, "a dict like Celery's retry_policy")
    known = [f.name for f in fields(RetryPolicy)]
    for name in given:
        if name not in known:
            raise ConfigurationError(unknown_name(f"offload_retry: {name!r}", name, known))
    return RetryPolicy(**given)


def _store_options(given: Any, stores: int) -> tuple[Mapping[str, Any], ...]:
    """Return a dict of options for each store; empty if there are none at all."""
    where = "offload_store_options"
    each = (given,) if isinstance(given, Mapping) else given
    if not isinstance(each, (list, tuple)) or not all(
        isinstance(options, Mapping) and all(isinstance(name, str) for name in options)
        for options in each
    ):
        raise ConfigurationError(f"{where} must be a dict, or a list of dicts for several stores")
    if each and len(each) != stores:
        raise ConfigurationError(
            f"{where}: {len(each)} dicts for {stores} stores; give one for each URL"
        )
    return tuple(each) if any(each) else ()


def _tier_sizes(sizes: Any, stores: int) -> tuple[int, ...]:
    where = "offload_tier_sizes"
    if is_int(sizes) or isinstance(sizes, str):
        sizes = (sizes,)
    if not isinstance(sizes, (list, tuple)):
        refuse(where, sizes, "a list of sizes")
    sizes = [as_size(where, size) for size in sizes]
    for size, before in zip(sizes, [0, *sizes], strict=False):
        if size <= before:
            refuse(where, tuple(sizes), "numbers of bytes above 0, each greater than the last")
    if len(sizes) != stores - 1 and not (stores == 1 and tuple(sizes) == _TIER_SIZES):
        wanted = (
            "no sizes, because offload_store is one URL"
            if stores == 1
            else f"{stores - 1} for the {stores} URLs of offload_store: the sizes at which values "
            "go to the second store, the third, and so on"
        )
        refuse(where, tuple(sizes), wanted)
    return tuple(sizes)
