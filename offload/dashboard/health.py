"""Assess stores, workers, and task errors for the overview page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from offload.dashboard.caching import Refreshed
from offload.dashboard.state import Compared
from offload.doctor.servers import Capacity
from offload.doctor.store import StoreState, TierState
from offload.inspect import Level
from offload.metrics.latest import Noted
from offload.metrics.report import OUTSIDE, Figures
from offload.text import human_count, human_latency, human_number, human_size, some

_FULL = 0.9  # used share of a server's memory or space above which a card warns
_RANK: Mapping[Level, int] = {"ok": 0, "info": 1, "warning": 2, "error": 3}
_SHOWN = 3  # findings on a card


@dataclass(frozen=True)
class Fact:
    """One statement on a card.

    Attributes:
        name: the label; text: the value.
        level: its severity, as in `Finding`.
        remedy: what to do about it; "" if nothing.
        share: used share of a limit, from 0 to 1; None if there is no limit.
    """

    name: str
    text: str
    level: Level = "ok"
    remedy: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Card:
    """The health of one component.

    Attributes:
        title: the component's name.
        path: the page with details, relative to the dashboard's root.
        level: the worst level of its facts; "info" while nothing is known.
        summary: its state in a few words.
        facts: the details.
    """

    title: str
    path: str
    level: Level
    summary: str
    facts: Sequence[Fact]

    @classmethod
    def of(cls, title: str, path: str, summary: str, facts: Sequence[Fact]) -> Card:
        level: Level = max((fact.level for fact in facts), key=_RANK.__getitem__, default="ok")
        return cls(title, path, level, summary, facts)


def verdict(cards: Iterable[Card], errors: Sequence[ErrorRow], when: str) -> tuple[Level, str]:
    """Return the level and text that answer "Is it healthy?".

    Args:
        when: the time range of *errors*, such as ``in the last hour``.
    """
    cards = list(cards)
    bad = [card for card in cards if card.level in ("warning", "error")]
    parts = [f"{card.title.lower()}: {card.summary}" for card in bad]
    level: Level = max((card.level for card in bad), key=_RANK.__getitem__, default="ok")
    if errors:
        count = sum(row.count for row in errors)
        parts.append(f"{human_count(count, 'error')} {when}")
        level = "error"
    if not parts:
        unknown = [
            f"{card.title.lower()}: {card.summary}" for card in cards if card.level == "info"
        ]
        return ("info", f"No problems found; {'; '.join(unknown)}.") if unknown else ("ok", "Yes.")
    return level, f"No: {'; '.join(parts)}." if level == "error" else f"Look at {'; '.join(parts)}."


# -- stores


def stores_of(kept: Refreshed[StoreState]) -> list[Card]:
    """Return a card for each tier of the store."""
    if kept.value is None:
        if kept.error is not None:
            return [
                Card.of(
                    "Store", "/stores", "unavailable", [Fact("Check", str(kept.error), "error")]
                )
            ]
        return [Card("Store", "/stores", "info", "checking", [])]
    tiers = kept.value.tiers
    return [
        _store(tier, f"Store {n}" if len(tiers) > 1 else "Store") for n, tier in _numbered(tiers)
    ]


def _numbered(tiers: Sequence[TierState]) -> Iterator[tuple[int, TierState]]:
    return enumerate(tiers, 1)


def _store(tier: TierState, title: str) -> Card:
    if tier.error:
        remedy = "tasks retry until it is back; check the server and the network"
        facts = [Fact("URL", tier.url), Fact("Reachable", tier.error, "error", remedy)]
        return Card.of(title, "/stores", "unavailable", facts)
    facts = [Fact("URL", tier.url), Fact("Round trip", human_latency(tier.latency))]
    for capacity in tier.capacity:
        facts += _capacity(capacity)
    worst = max(facts, key=lambda fact: _RANK[fact.level])
    summary = "reachable" if worst.level == "ok" else worst.name.lower() + " " + worst.text
    return Card.of(title, "/stores", summary, facts)


def _capacity(capacity: Capacity) -> Iterator[Fact]:
    of_server = f" of {capacity.server}" if capacity.server else ""
    used, limit = capacity.used, capacity.limit
    if used is not None:
        share = used / limit if limit else None
        text = human_size(used) + (f" of {human_size(limit)}" if limit else "; no limit is set")
        full = share is not None and share > _FULL
        yield Fact(
            ("Memory" if capacity.policy else "Space") + of_server,
            text + (f" ({share:.0%})" if share is not None else ""),
            "warning" if full else "ok",
            "raise the limit, or lower offload_retention" if full else "",
            share,
        )
    if capacity.evicted is not None:
        evicts = capacity.policy not in ("", "noeviction")
        lost = bool(capacity.evicted) and evicts
        yield Fact(
            "Evictions" + of_server,
            human_number(capacity.evicted) + (f" ({capacity.policy})" if capacity.policy else ""),
            "error" if lost else "warning" if evicts else "ok",
            "set maxmemory-policy noeviction: tasks fail if the server evicts their values"
            if evicts
            else "",
        )


# -- workers


def workers_of(kept: Refreshed[Compared]) -> Card:
    """Return one card for all workers."""
    if kept.value is None:
        if kept.error is not None:
            return Card.of(
                "Workers", "/workers", "unknown", [Fact("Replies", str(kept.error), "warning")]
            )
        return Card("Workers", "/workers", "info", "checking", [])
    asked = kept.value.asked
    found = [each for each in kept.value.findings if each.level in ("warning", "error")]
    without = [each.name for each in asked.workers if each.state == "without"]
    silent = [each.name for each in asked.workers if each.state in ("silent", "unreadable")]
    facts = [
        Fact(
            "Online", human_number(len(asked.workers)), "info" if asked.note else "ok", asked.note
        ),
        _named("Without offload", without),
        _named("Not replying", silent),
        Fact("Problems", human_number(len(found)) if found else "none"),
        *(Fact("", each.what, each.level, each.remedy) for each in found[:_SHOWN]),
    ]
    online = f"{human_number(len(asked.workers))} online" if asked.workers else "none replied"
    if found:
        online += f", {human_count(len(found), 'problem')}"
    return Card.of("Workers", "/workers", online, facts)


def _named(what: str, workers: Sequence[str]) -> Fact:
    return Fact(what, some(workers) if workers else "none", "warning" if workers else "ok")


# -- errors


_ERRORS = {
    "errors_unavailable": (
        "store unavailable",
        "check the store and the network; tasks were retried, and publishers got StoreUnavailable",
    ),
    "errors_missing": (
        "values missing",
        "look for evictions and flushes; raise offload_retention if messages wait longer than that",
    ),
    "errors_altered": ("values altered", "check the store's disks and who else writes to it"),
    "errors_serialising": (
        "not serializable, or too large",
        "pass a supported type, or raise offload_max_size",
    ),
    "errors_code": ("class not shipped or loaded", "push the class, or allow it on the workers"),
    "errors_other": ("other errors", "see the worker's log"),
}
_EVENTS = {
    "refs_refused": ("references refused", "give publishers and workers the same offload_secret"),
    "classes_refused": ("classes refused", "see Classes for the reason"),
    "cache_altered": ("cache files altered", "check the disk of the node cache"),
    "outage_inline": ("sent inline during an outage", ""),
    "failures_truncated": ("failures stored truncated", ""),
    "releases_failed": ("holds not released early", "they expire by themselves"),
    "task_retries": ("tasks retried", ""),
    "store_retries": ("store calls retried", ""),
}


@dataclass(frozen=True)
class ErrorRow:
    """Errors of one kind.

    Attributes:
        kind: the counter's name.
        label: the name shown to people.
        remedy: what to do about it; "" if nothing.
        latest: the latest error; None if it wasn't recorded.
    """

    kind: str
    label: str
    count: int
    remedy: str
    latest: Noted | None = None

    @property
    def task(self) -> str:
        """Task of the latest error, as shown to people; "" if unknown."""
        return "" if self.latest is None else self.latest.task or OUTSIDE

    @property
    def link(self) -> str:
        """Path of the latest error's task page below the dashboard's root; "" if unknown."""
        if self.latest is None:
            return ""
        return "/task?" + urlencode({"name": self.latest.task}) + "#errors"


def errors_of(
    figures: Figures, noted: Iterable[Noted] = (), since: float | None = None
) -> list[ErrorRow]:
    """Return the errors of each kind, most frequent first, with the latest one after *since*."""
    latest: dict[str, Noted] = {}
    for each in noted:
        if since is None or each.at >= since:
            latest.setdefault(each.kind, each)
    return _rows(_ERRORS, figures, latest)


def recent_errors(noted: Iterable[Noted]) -> list[tuple[str, Noted]]:
    """Return each error with the label of its kind."""
    return [(_ERRORS.get(each.kind, (each.kind, ""))[0], each) for each in noted]


def events_of(figures: Figures) -> list[ErrorRow]:
    """Return other events that may interest an operator, such as retries."""
    return _rows(_EVENTS, figures, {})


def _rows(
    texts: Mapping[str, tuple[str, str]], figures: Figures, latest: Mapping[str, Any]
) -> list[ErrorRow]:
    found = [
        ErrorRow(kind, label, figures[kind], remedy, latest.get(kind))
        for kind, (label, remedy) in texts.items()
        if figures[kind]
    ]
    return sorted(found, key=lambda row: -row.count)
