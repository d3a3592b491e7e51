"""All settings, read once and checked as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from offload.errors import ConfigurationError
from offload.settings.checks import (
    is_int,
    is_number,
    names,
    patterns,
    refuse,
    seconds,
    serializers,
    unknown,
    whole,
)
from offload.settings.options import TaskOptions
from offload.settings.retry import RetryPolicy

__all__ = ("Settings",)

MODES = ("on", "observe", "off")
OUTAGES = ("raise", "inline")
COMPRESSIONS = ("auto", "zstd", "none")
CACHES = ("auto", "off")
PREFETCHES = ("auto", "on", "off")
VERIFICATIONS = ("none", "entry", "always")
CODES = ("off", "signed", "trusted")
MIN_SECRET = 16


@dataclass(frozen=True)
class Settings:
    """All settings. As Celery settings their names begin with ``offload_``.

    Attributes:
        store: URL of the store, or several, which are its tiers. Default: the result
            backend's Redis, else the broker's.
        store_options: options of the store besides those in its URL, a dict (for several stores
            a list of one for each), such as TLS and credentials; see `offload.open_store`.
        tier_sizes: bytes of a value from which it goes to the second tier, the third and so
            on; one number fewer than there are tiers.
        mode: ``on``; ``observe`` leaves messages as they are and only counts what
            would have been stored; ``off`` does nothing but resolve what still comes.
        threshold: bytes from which a value is stored rather than sent.
        results: whether results are stored, too.
        inline: names of parameters that stay in the message, in every task.
        max_size: bytes of the largest value carried.
        retention: seconds that a message or a `put` holds its value, unless it is released
            earlier. Default: 7 days where the store tracks holds; 1 day where values
            live by their age alone.
        grace: seconds that a value is kept after its last holder released it, in addition to the
            broker's time to redeliver a message (``visibility_timeout``).
        retry: how often and how long to retry when a store is unavailable; see `RetryPolicy`.
        on_outage: ``raise`` StoreUnavailable from publishing when the store stays
            away, or ``inline``: send values up to *inline_limit* bytes in the message.
        inline_limit: see *on_outage*.
        accept: serializers that may be decoded besides those of ``accept_content``, by the names
            or content types under which kombu knows them.
        secret: what references are signed with; a tuple's first signs and all are
            accepted. Default: a random key that the store keeps.
        compression: ``auto`` compresses where a probe says that it pays; ``zstd``;
            ``none``.
        memo_size: bytes of immutable values per process that are remembered, so that
            the same object is not hashed again.
        cache: folder of the node cache, where large values from a remote store are kept
            for all processes of a machine; ``auto`` is one in ``/dev/shm``; ``off``.
        cache_size: bytes of it at most, see `offload.content.cache.folder.Folder`.
        prefetch: whether a worker fetches large values into the node cache for tasks that
            wait in it: ``auto`` in prefork workers; ``on`` in every pool; ``off``.
        code: what classes and functions a worker loads from the store: none (``off``), those
            that a key of *verify_keys* signed (``signed``), or all (``trusted``). Unless it is
            ``off``, such are also shipped; see `offload.classes`.
        code_allow: patterns of their names, optionally with ``@`` and a hash prefix; no others
            are loaded. Default: all.
        signing_key: signs what is shipped: ``ed25519:…``, ``hmac:…`` or the path of a PEM file.
        verify_keys: whose signatures are accepted: such texts, or dicts of ``key``, ``name``
            and ``until`` (a date). What *signing_key* signs is accepted as well.
        ship_source: whether source is shipped along, and used where a version is of another
            Python.
        stats_interval: seconds between two writings of a process' statistics to the store; 0: none
            are kept.
        verify: when the cache's files are verified, beyond what is read from a store,
            which always is: ``none``; ``entry`` (their roots at each use); ``always``.
    """

    store: str | tuple[str, ...] | None = field(default=None, repr=False)  # may hold a password
    store_options: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)  # credentials
    tier_sizes: tuple[int, ...] = (1024**2,)
    mode: str = "on"
    threshold: int = 64 * 1024
    results: bool = True
    inline: tuple[str, ...] = ()
    max_size: int = 2 * 1024**3
    retention: float | None = None
    grace: float = 3600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    on_outage: str = "raise"
    inline_limit: int = 1024**2
    accept: tuple[str, ...] = ()
    secret: tuple[str, ...] = field(default=(), repr=False)
    compression: str = "auto"
    memo_size: int = 64 * 1024**2
    cache: str = "auto"
    cache_size: int = 1024**3
    prefetch: str = "auto"
    verify: str = "entry"
    code: str = "off"
    code_allow: tuple[str, ...] = ()
    signing_key: str | None = field(default=None, repr=False)
    verify_keys: tuple[str | Mapping[str, Any], ...] = field(default=(), repr=False)
    ship_source: bool = False
    stats_interval: float = 10.0

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if isinstance(self.store, (list, tuple)):
            put("store", tuple(self.store))
        if self.store is not None and not (
            isinstance(self.store, str)
            or (
                isinstance(self.store, tuple)
                and self.store
                and all(isinstance(url, str) for url in self.store)
            )
        ):
            raise ConfigurationError("offload_store must be a URL or a list of URLs")
        put("store_options", _store_options(self.store_options, self.store))
        if is_int(self.tier_sizes):
            put("tier_sizes", (self.tier_sizes,))
        put("tier_sizes", _tier_sizes(self.tier_sizes, self.store))
        for name, allowed in (
            ("mode", MODES),
            ("on_outage", OUTAGES),
            ("compression", COMPRESSIONS),
            ("prefetch", PREFETCHES),
            ("verify", VERIFICATIONS),
            ("code", CODES),
        ):
            if getattr(self, name) not in allowed:
                refuse(f"offload_{name}", getattr(self, name), "one of " + ", ".join(allowed))
        for name in ("results", "ship_source"):
            if not isinstance(getattr(self, name), bool):
                refuse(f"offload_{name}", getattr(self, name), "True or False")
        for name in ("threshold", "max_size", "inline_limit", "memo_size", "cache_size"):
            whole(f"offload_{name}", getattr(self, name), "a number of bytes from 0")
        if self.retention is not None:
            seconds("offload_retention", self.retention)
        seconds("offload_grace", self.grace, "'grace'")
        if not is_number(self.stats_interval) or self.stats_interval < 0:
            refuse("offload_stats_interval", self.stats_interval, "a number of seconds from 0")
        if isinstance(self.cache, os.PathLike):
            put("cache", os.fspath(self.cache))
        if not isinstance(self.cache, str) or (
            self.cache not in CACHES and not Path(self.cache).is_absolute()
        ):
            refuse("offload_cache", self.cache, "'auto', 'off' or the absolute path of a folder")
        put("inline", names("offload_inline", self.inline))
        put("accept", serializers("offload_accept", self.accept))
        secret = (self.secret,) if isinstance(self.secret, str) else self.secret
        if secret is None:
            secret = ()
        if not all(isinstance(s, str) and len(s) >= MIN_SECRET for s in secret):
            raise ConfigurationError(
                f"offload_secret: every secret is a text of at least {MIN_SECRET} characters"
            )
        put("secret", tuple(secret))
        self._check_code(put)
        if isinstance(self.retry, Mapping):
            known = [f.name for f in fields(RetryPolicy)]
            for name in self.retry:
                if name not in known:
                    raise ConfigurationError(unknown(f"offload_retry: {name!r}", name, known))
            put("retry", RetryPolicy(**self.retry))
        if not isinstance(self.retry, RetryPolicy):
            refuse("offload_retry", self.retry, "a dict like Celery's retry_policy")

    def _check_code(self, put: Callable[[str, object], None]) -> None:
        put("code_allow", patterns("offload_code_allow", self.code_allow))
        if isinstance(self.signing_key, os.PathLike):
            put("signing_key", os.fspath(self.signing_key))
        if self.signing_key is not None and not isinstance(self.signing_key, str):
            raise ConfigurationError("offload_signing_key: ed25519:…, hmac:… or a PEM file's path")
        keys = self.verify_keys
        keys = (keys,) if isinstance(keys, (str, Mapping)) else keys
        if not isinstance(keys, (list, tuple)) or not all(
            isinstance(key, (str, Mapping)) for key in keys
        ):
            raise ConfigurationError("offload_verify_keys: a list of keys, each a text or a dict")
        put("verify_keys", tuple(keys))
        if self.code == "signed" and not keys and self.signing_key is None:
            raise ConfigurationError(
                "offload_code is 'signed', and there is no key to verify signatures by: set "
                "offload_verify_keys (`celery offload classes keygen` makes a pair)"
            )

    @classmethod
    def read(
        cls, conf: Mapping[str, Any], namespace: str | None, given: Mapping[str, Any]
    ) -> Settings:
        """Return the settings from Celery's *conf*, overridden by those *given* by keyword.

        *namespace* is Celery's (``CELERY`` where Django's settings say
        ``CELERY_OFFLOAD_STORE``). Raises ConfigurationError naming the key.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for key in list(conf.keys()):
            name = _short(key, namespace)
            if name is None:
                continue
            if name not in known:
                raise ConfigurationError(
                    unknown(f"setting {key!r}", f"offload_{name}", _prefixed(known))
                )
            values[name] = conf[key]
        for name in given:
            if name not in known:
                raise ConfigurationError(unknown(f"Offload({name}=…)", name, known))
        values.update(given)
        return cls(**{name: value for name, value in values.items() if value is not None})

    def options(self) -> TaskOptions:
        """Return what these settings say where neither a task nor a call says otherwise."""
        return TaskOptions(
            enabled=self.mode != "off",
            inline=self.inline,
            results=self.results,
            threshold=self.threshold,
            retention=self.retention,
        )


def _short(key: object, namespace: str | None) -> str | None:
    if not isinstance(key, str):
        return None
    name = key
    if namespace and name.startswith(namespace + "_"):
        name = name[len(namespace) + 1 :]
    elif namespace and name.isupper():
        return None
    name = name.lower().removeprefix("celery_")
    return name.removeprefix("offload_") if name.startswith("offload_") else None


def _prefixed(names: Iterable[str]) -> list[str]:
    return [f"offload_{name}" for name in names]


def _store_options(
    given: Any, store: str | tuple[str, ...] | None
) -> tuple[Mapping[str, Any], ...]:
    """Return a dict of options for each store; none if there are none at all."""
    where, stores = "offload_store_options", len(store) if isinstance(store, tuple) else 1
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


def _tier_sizes(sizes: Any, store: str | tuple[str, ...] | None) -> tuple[int, ...]:
    where, stores = "offload_tier_sizes", len(store) if isinstance(store, tuple) else 1
    if not isinstance(sizes, (list, tuple)):
        refuse(where, sizes, "a list of numbers of bytes")
    for size, before in zip(sizes, [0, *sizes], strict=False):
        whole(where, size, "numbers of bytes")
        if size <= before:
            refuse(where, tuple(sizes), "numbers of bytes above 0, each greater than the last")
    if len(sizes) != stores - 1 and not (stores == 1 and tuple(sizes) == Settings.tier_sizes):
        wanted = f"offload_store is {stores} URLs, so it is {stores - 1} numbers: from how many "
        wanted += "bytes on a value goes to the second, the third and so on"
        if stores == 1:
            wanted = "it is for several URLs in offload_store, which is one"
        refuse(where, tuple(sizes), wanted)
    return tuple(sizes)
