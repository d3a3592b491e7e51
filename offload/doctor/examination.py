"""Run all checks; one that fails doesn't stop the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from offload.content.holds import longest_ttl
from offload.doctor import app, store
from offload.doctor.retention import (
    check_messages,
    has_catalog,
    has_pins,
    retention_requirements,
)
from offload.errors import ConfigurationError, OffloadError, StoreUnavailable
from offload.hooks.runtime import Runtime
from offload.inspect import Finding
from offload.inspect.config_drift import config_drift
from offload.inspect.workers import ask_workers, this_process
from offload.stores.capabilities import tiers_of
from offload.stores.protocols import Store

Check = Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class Examined:
    """A finding with its context.

    Attributes:
        subject: what was checked, such as ``settings`` or a store's URL.
        finding: the result.
        unavailable: whether the check failed because a server is unavailable.
    """

    subject: str
    finding: Finding
    unavailable: bool = False


def examine(runtime: Runtime, *, workers: float | None = None) -> Iterator[Examined]:
    """Run all checks, and yield their findings.

    Writes a small blob, a pointer, and a lease to the store, and deletes them.

    Args:
        workers: seconds to wait for workers' replies; None skips the workers.
    """
    try:
        _ = runtime.settings
    except ConfigurationError as exc:
        yield Examined("settings", Finding("error", str(exc)))
        return  # nothing else can be checked
    with suppress(ConfigurationError):  # another check reports that there is no store
        runtime.app.finalize(auto=True)
    for subject, check in app.CHECKS.items():
        yield from _checked(subject, partial(check, runtime))
    yield from _checked("dependencies", app.dependencies)
    try:
        tiers = tiers_of(runtime.store)
    except OffloadError as exc:
        yield Examined("store", Finding("error", str(exc)))
        return
    yield from _checked("node cache", partial(app.node_cache, runtime))
    yield from _checked(
        "classes", partial(app.class_keys, runtime), partial(app.pushed_classes, runtime)
    )
    unavailable = False
    for tier in tiers:
        checks: list[Check] = [partial(store.blobs, tier)]
        if tier is tiers[0]:
            checks += [partial(store.pointers, tier), partial(store.leases, tier)]
        checks.append(partial(_diagnosed, runtime, tier))
        if tier is tiers[0]:
            checks.append(partial(store.sweeping, runtime.store))
        for examined in _checked(tier.url, *checks):
            unavailable = unavailable or examined.unavailable
            yield examined
    if not unavailable:  # otherwise, these would report the same again
        yield from _checked("encryption", partial(app.encryption, runtime))
        yield from _checked("messages", partial(check_messages, runtime))
    if workers is not None:
        yield from _checked("workers", partial(_workers_agree, runtime, workers))


def _checked(subject: str, *checks: Check) -> Iterator[Examined]:
    for check in checks:
        try:
            for finding in check():
                yield Examined(subject, finding)
        except StoreUnavailable as exc:
            yield Examined(subject, Finding("error", str(exc)), unavailable=True)
            return  # the other checks would wait for the same server
        except OffloadError as exc:
            yield Examined(subject, Finding("error", str(exc)))
        except Exception as exc:
            yield Examined(
                subject,
                Finding("error", f"check failed: {type(exc).__name__}: {exc}"),
            )


def _diagnosed(runtime: Runtime, tier: Store) -> Iterator[Finding]:
    return store.diagnose(tier, longest=_longest(runtime))


def _longest(runtime: Runtime) -> float:
    """Return the longest time in seconds that the app keeps a value, not counting delays."""
    try:
        if has_pins(runtime) or has_catalog(runtime):
            return math.inf
    except StoreUnavailable:
        raise
    except OffloadError:  # may not list names, so there may be pins or a catalog
        return math.inf
    try:
        return longest_ttl(retention_requirements(runtime)[0].seconds)
    except ConfigurationError:  # results never expire
        return math.inf


def _workers_agree(runtime: Runtime, timeout: float) -> Iterator[Finding]:
    """Compare this process's settings with those of workers that reply in *timeout* seconds."""
    return config_drift(this_process(runtime), ask_workers(runtime.app, timeout=timeout))
