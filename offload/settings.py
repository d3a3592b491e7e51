"""What can be configured: one frozen `Settings`, read once and checked as a whole."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from offload.errors import ConfigurationError

__all__ = ("RetryPolicy", "Settings", "TaskOptions")

MODES = ("on", "observe", "off")
OUTAGES = ("raise", "inline")
COMPRESSIONS = ("auto", "zstd", "none")
CACHES = ("auto", "off")
PREFETCHES = ("auto", "on", "off")
VERIFICATIONS = ("none", "entry", "always")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to try again; the names are those of Celery's ``retry_policy``.

    Attributes:
        max_retries: further attempts after the first.
        interval_start: seconds before the first of them.
        interval_step: factor by which each further wait is longer than the one before.
        interval_max: seconds that no wait exceeds.
    """

    max_retries: int = 5
    interval_start: float = 0.2
    interval_step: float = 2.0
    interval_max: float = 10.0

    def __post_init__(self) -> None:
        if not _is_int(self.max_retries) or self.max_retries < 0:
            _refuse("offload_retry", self.max_retries, "'max_retries' is a whole number from 0")
        for name in ("interval_start", "interval_step", "interval_max"):
            if not _is_number(getattr(self, name)) or getattr(self, name) < 0:
                _refuse("offload_retry", getattr(self, name), f"{name!r} is a number from 0")

    def wait(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the seconds to wait before retry number *attempt* (from 0).

        Exponential backoff with equal jitter: half the interval for certain, the other
        half times *random()* (0 to 1), so that many clients do not return at once.
        """
        interval = min(self.interval_start * self.interval_step**attempt, self.interval_max)
        return interval * (0.5 + random() / 2)


@dataclass(frozen=True)
class TaskOptions:
    """The options that a task or a call may set for itself; None means "as configured".

    Attributes:
        enabled: False keeps this task's values in its messages.
        inline: names of parameters whose values stay in the message; ``("*",)`` is all.
        results: whether large results are stored by reference.
        threshold: bytes from which a value is stored.
        retention: seconds that stored values are kept.
    """

    enabled: bool | None = None
    inline: tuple[str, ...] | None = None
    results: bool | None = None
    threshold: int | None = None
    retention: float | None = None

    def __post_init__(self) -> None:
        where = "option offload"
        for name in ("enabled", "results"):
            if getattr(self, name) not in (None, True, False):
                _refuse(where, getattr(self, name), f"{name!r} is True or False")
        if self.inline is not None:
            object.__setattr__(self, "inline", _names(where, self.inline))
        if self.threshold is not None:
            _whole(where, self.threshold, "'threshold' is a number of bytes from 0")
        if self.retention is not None:
            _seconds(where, self.retention)

    @classmethod
    def read(cls, value: Any, where: str) -> TaskOptions:
        """Return *value* (a mapping, a bool, None or TaskOptions) as options.

        *where* tells a ConfigurationError's reader which task or call it is about.
        """
        if value is None:
            return _NO_OPTIONS
        if isinstance(value, TaskOptions):
            return value
        if isinstance(value, bool):
            return cls(enabled=value)
        if not isinstance(value, Mapping):
            _refuse(where, value, "offload= takes a dict of options, True or False")
        known = [f.name for f in fields(cls)]
        for name in value:
            if name not in known:
                raise ConfigurationError(_unknown(f"{where}: option {name!r}", name, known))
        try:
            return cls(**value)
        except ConfigurationError as exc:
            raise ConfigurationError(f"{where}: {exc}") from None

    def over(self, other: TaskOptions) -> TaskOptions:
        """Return these options, filled up from *other* where they say nothing."""
        if other is _NO_OPTIONS:
            return self
        if self is _NO_OPTIONS:
            return other
        return replace(
            other, **{f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        )

    def check_parameters(self, function: Callable[..., Any], task: str) -> None:
        """Raise ConfigurationError for an inline name that *function* has no parameter for."""
        if not self.inline or self.inline == ("*",):
            return
        parameters = inspect.signature(function).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        for name in self.inline:
            if name not in parameters:
                raise ConfigurationError(
                    _unknown(f"task {task!r}: inline argument {name!r}", name, parameters),
                    task=task,
                    argument=name,
                )


_NO_OPTIONS = TaskOptions()


@dataclass(frozen=True)
class Settings:
    """All settings. As Celery settings their names begin with ``offload_``.

    Attributes:
        store: URL of the store, or several, which are its tiers. Default: the result
            backend's Redis, else the broker's.
        tier_sizes: bytes of a value from which it goes to the second tier, the third and so
            on; one number fewer than there are tiers.
        mode: ``on``; ``observe`` leaves messages as they are and only counts what
            would have been stored; ``off`` does nothing but resolve what still comes.
        threshold: bytes from which a value is stored rather than sent.
        results: whether results are stored, too.
        inline: names of parameters that stay in the message, in every task.
        max_size: bytes of the largest value carried.
        retention: seconds that a stored value is kept after its last publishing, unless it is
            known earlier that nobody needs it.
        grace: seconds that it is kept after that is known, besides the broker's own time to
            give a message again (``visibility_timeout``).
        retry: what to do when a store does not answer; see `RetryPolicy`.
        on_outage: ``raise`` StoreUnavailable from publishing when the store stays
            away, or ``inline``: send values up to *inline_limit* bytes in the message.
        inline_limit: see *on_outage*.
        accept: serializers that may be decoded besides those of ``accept_content``.
        secret: what references are signed with; a tuple's first signs and all are
            accepted. Default: a random key that the store keeps.
        compression: ``auto`` compresses where a probe says that it pays; ``zstd``;
            ``none``.
        memo_size: bytes of immutable values per process that are remembered, so that
            the same object is not hashed again.
        cache: folder of the node cache, where large values from a remote store are kept
            for all processes of a machine; ``auto`` is one in ``/dev/shm``; ``off``.
        cache_size: bytes of it at most, see `offload.content.cache_folder.Folder`.
        prefetch: whether a worker fetches large values into the node cache for tasks that
            wait in it: ``auto`` in prefork workers; ``on`` in every pool; ``off``.
        verify: when the cache's files are verified, beyond what is read from a store,
            which always is: ``none``; ``entry`` (their roots at each use); ``always``.
    """

    store: str | tuple[str, ...] | None = field(default=None, repr=False)  # may hold a password
    tier_sizes: tuple[int, ...] = (1024**2,)
    mode: str = "on"
    threshold: int = 64 * 1024
    results: bool = True
    inline: tuple[str, ...] = ()
    max_size: int = 2 * 1024**3
    retention: float = 86400.0
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
            _refuse("offload_store", self.store, "it is a URL or a list of URLs")
        if _is_int(self.tier_sizes):
            put("tier_sizes", (self.tier_sizes,))
        put("tier_sizes", _tier_sizes(self.tier_sizes, self.store))
        for name, allowed in (
            ("mode", MODES),
            ("on_outage", OUTAGES),
            ("compression", COMPRESSIONS),
            ("prefetch", PREFETCHES),
            ("verify", VERIFICATIONS),
        ):
            if getattr(self, name) not in allowed:
                _refuse(f"offload_{name}", getattr(self, name), "one of " + ", ".join(allowed))
        if not isinstance(self.results, bool):
            _refuse("offload_results", self.results, "True or False")
        for name in ("threshold", "max_size", "inline_limit", "memo_size", "cache_size"):
            _whole(f"offload_{name}", getattr(self, name), "a number of bytes from 0")
        _seconds("offload_retention", self.retention)
        _seconds("offload_grace", self.grace, "'grace'")
        if isinstance(self.cache, os.PathLike):
            put("cache", os.fspath(self.cache))
        if not isinstance(self.cache, str) or (
            self.cache not in CACHES and not Path(self.cache).is_absolute()
        ):
            _refuse("offload_cache", self.cache, "'auto', 'off' or the absolute path of a folder")
        put("inline", _names("offload_inline", self.inline))
        put("accept", _names("offload_accept", self.accept))
        secret = (self.secret,) if isinstance(self.secret, str) else self.secret
        if secret is None:
            secret = ()
        if not all(isinstance(s, str) and len(s) >= MIN_SECRET for s in secret):
            raise ConfigurationError(
                f"offload_secret: every secret is a text of at least {MIN_SECRET} characters"
            )
        put("secret", tuple(secret))
        if isinstance(self.retry, Mapping):
            known = [f.name for f in fields(RetryPolicy)]
            for name in self.retry:
                if name not in known:
                    raise ConfigurationError(_unknown(f"offload_retry: {name!r}", name, known))
            put("retry", RetryPolicy(**self.retry))
        if not isinstance(self.retry, RetryPolicy):
            _refuse("offload_retry", self.retry, "a dict like Celery's retry_policy")

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
                    _unknown(f"setting {key!r}", f"offload_{name}", _prefixed(known))
                )
            values[name] = conf[key]
        for name in given:
            if name not in known:
                raise ConfigurationError(_unknown(f"Offload({name}=…)", name, known))
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


MIN_SECRET = 16


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


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{what} is unknown{hint} There are: {', '.join(known) or 'none'}"


def _refuse(where: str, value: object, wanted: str) -> None:
    raise ConfigurationError(f"{where}: {value!r} is refused: {wanted}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _whole(where: str, value: object, wanted: str) -> None:
    if not _is_int(value) or value < 0:  # type: ignore[operator]
        _refuse(where, value, wanted)


def _tier_sizes(sizes: Any, store: str | tuple[str, ...] | None) -> tuple[int, ...]:
    where, stores = "offload_tier_sizes", len(store) if isinstance(store, tuple) else 1
    if not isinstance(sizes, (list, tuple)):
        _refuse(where, sizes, "a list of numbers of bytes")
    for size, before in zip(sizes, [0, *sizes], strict=False):
        _whole(where, size, "numbers of bytes")
        if size <= before:
            _refuse(where, tuple(sizes), "numbers of bytes above 0, each greater than the last")
    if len(sizes) != stores - 1 and not (stores == 1 and tuple(sizes) == Settings.tier_sizes):
        wanted = f"offload_store is {stores} URLs, so it is {stores - 1} numbers: from how many "
        wanted += "bytes on a value goes to the second, the third and so on"
        if stores == 1:
            wanted = "it is for several URLs in offload_store, which is one"
        _refuse(where, tuple(sizes), wanted)
    return tuple(sizes)


def _seconds(where: str, value: object, name: str = "'retention'") -> None:
    if not _is_number(value) or value <= 0:  # type: ignore[operator]
        _refuse(where, value, f"{name} is a number of seconds above 0")


def _names(where: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        _refuse(where, value, "a list of names")
    if not all(isinstance(name, str) for name in value):  # type: ignore[attr-defined]
        _refuse(where, value, "a list of names")
    return tuple(value)  # type: ignore[arg-type]
