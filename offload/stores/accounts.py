"""The two accounts of what is counted, as plain numbers: see `offload.stores.tallies`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from offload.stores.tallies import FIELDS, KEPT, LABEL, SPANS, Span, Tally

__all__ = ("Accounts", "Amounts", "positive")

Amounts = dict[str, int]


class Accounts:
    """The total, and the series of minutes, hours and days. Not safe among threads."""

    def __init__(self) -> None:
        self.total: Amounts = {}
        self.series: dict[Span, dict[int, Amounts]] = {span: {} for span in SPANS}

    def __bool__(self) -> bool:
        return bool(self.total) or any(self.series.values())

    def count(self, tally: Tally, now: float) -> None:
        """Add what was counted, at *now* (seconds since 1970)."""
        _add(self.total, tally.total)
        for span, seconds in SPANS.items():
            amounts = _bare(tally.series) if span == "minute" else tally.series
            begin = int(now) - int(now) % seconds
            _add(self.series[span].setdefault(begin, {}), amounts)

    def add(self, other: Accounts, times: int = 1) -> None:
        """Add *other* so many times; -1 takes it away."""
        _add(self.total, other.total, times)
        for span, series in other.series.items():
            for begin, amounts in series.items():
                _add(self.series[span].setdefault(begin, {}), amounts, times)

    def prune(self, now: float) -> None:
        """Drop from the series what is not kept any more at *now*."""
        for span, series in self.series.items():
            for begin in [begin for begin in series if begin + SPANS[span] < now - KEPT[span]]:
                del series[begin]

    def counted(self, span: Span, since: float | None, now: float) -> dict[int, Amounts]:
        """Return the series of one span as `Tallies.series` does, without what is 0."""
        first = now - (KEPT[span] if since is None else since) - SPANS[span]
        last = now + SPANS[span]  # later is what a clock that is wrong, or anybody, wrote
        kept = sorted(begin for begin in self.series[span] if first < begin <= last)
        found = {begin: positive(self.series[span][begin]) for begin in kept}
        return {begin: amounts for begin, amounts in found.items() if amounts}


def positive(amounts: Mapping[str, int]) -> Amounts:
    return {text: amount for text, amount in amounts.items() if amount > 0}


def _bare(amounts: Mapping[str, int]) -> Counter[str]:
    """Return amounts by the name of the counter alone."""
    found: Counter[str] = Counter()
    for text, amount in amounts.items():
        found[text.partition(LABEL)[0]] += amount
    return found


def _add(counts: Amounts, amounts: Mapping[str, int], times: int = 1) -> None:
    for text, amount in amounts.items():
        if text not in counts and len(counts) >= FIELDS:
            name = text.partition(LABEL)[0]
            text = f"{name}{LABEL}(other){LABEL}"  # noqa: PLW2901 (it is counted under that)
        counts[text] = counts.get(text, 0) + amount * times
