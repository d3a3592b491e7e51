"""All checks, one after another; one that fails keeps no other from running."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from offload.content.holds import longest_ttl
from offload.doctor import app as of_app
from offload.doctor import classes as of_classes
from offload.doctor import dependencies as of_dependencies
from offload.doctor import store as of_store
from offload.doctor import workers as of_workers
from offload.doctor.kinds import diagnose
from offload.doctor.messages import check_messages
from offload.doctor.retention import has_pins, retention_requirements
from offload.errors import ConfigurationError, OffloadError, StoreUnavailable
from offload.hooks.runtime import Runtime
from offload.inspect.findings import Finding
from offload.stores.capabilities import tiers_of
from offload.stores.protocols import Store

__all__ = ("Examined", "examine")

Check = Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class Examined:
    """A finding, what was looked at (``settings``, a store's URL, …), and whether the finding is
    that a store is unavailable.
    """

    subject: str
    finding: Finding
    unavailable: bool = False


def examine(runtime: Runtime, *, workers: float | None = None) -> Iterator[Examined]:
    """Look at everything, and yield what is found.

    It stores a small blob, a pointer and a lease, and removes them again. *workers* is how many
    seconds they have to answer; None: they are not asked.
    """
    try:
        _ = runtime.settings
    except ConfigurationError as exc:
        yield Examined("settings", Finding("error", str(exc)))
        return  # nothing else can be asked
    for subject, check in of_app.CHECKS.items():
        yield from _checked(subject, partial(check, runtime))
    yield from _checked("dependencies", of_dependencies.versions)
    try:
        tiers = tiers_of(runtime.store)
    except OffloadError as exc:
        yield Examined("store", Finding("error", str(exc)))
        return
    yield from _checked("node cache", partial(of_app.node_cache, runtime))
    yield from _checked(
        "classes", partial(of_classes.keys, runtime), partial(of_classes.registered, runtime)
    )
    unavailable = False
    for tier in tiers:
        checks: list[Check] = [partial(of_store.blobs, tier)]
        if tier is tiers[0]:
            checks += [partial(of_store.pointers, tier), partial(of_store.leases, tier)]
        checks.append(partial(_diagnosed, runtime, tier))
        if tier is tiers[0]:
            checks.append(partial(of_store.sweeping, runtime.store))
        for examined in _checked(tier.url, *checks):
            unavailable = unavailable or examined.unavailable
            yield examined
    if not unavailable:  # it would say the same once more
        yield from _checked("messages", partial(check_messages, runtime))
    if workers is not None:
        yield from _checked("workers", partial(of_workers.agree, runtime, workers))


def _checked(subject: str, *checks: Check) -> Iterator[Examined]:
    for check in checks:
        try:
            for finding in check():
                yield Examined(subject, finding)
        except StoreUnavailable as exc:
            yield Examined(subject, Finding("error", str(exc)), unavailable=True)
            return  # the others would only wait for it once more
        except OffloadError as exc:
            yield Examined(subject, Finding("error", str(exc)))
        except Exception as exc:
            yield Examined(
                subject,
                Finding("error", f"could not be examined: {type(exc).__name__}: {exc}"),
            )


def _diagnosed(runtime: Runtime, tier: Store) -> Iterator[Finding]:
    return diagnose(tier, longest=_longest(runtime))


def _longest(runtime: Runtime) -> float:
    """Return for how many seconds the store is asked to keep something, delays apart."""
    try:
        if has_pins(runtime):
            return math.inf
    except StoreUnavailable:
        raise
    except OffloadError:  # its user may not list names: there may be pins
        return math.inf
    try:
        return longest_ttl(retention_requirements(runtime)[0].seconds)
    except ConfigurationError:  # results never expire
        return math.inf
