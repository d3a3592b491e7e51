"""Reading statistics again and again, aside: keys are heard while a store does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from offload.errors import StoreError
from offload.hooks.runtime import Runtime
from offload.stats import Figures, Report, report, timeline
from offload.stats.recent import Changes, Recent, last_minutes
from offload.stats.report import tallies_of

__all__ = ("LINE", "Reader", "Reading", "State", "reading_of")

LINE = 3600.0
"""Seconds that the line of minutes covers."""


@dataclass(frozen=True)
class Reading:
    """What was read at once.

    Attributes:
        at: when, in seconds since 1970.
        took: seconds.
        report: of all time, or since a while ago.
        line: the last hour by minutes.
        now: what all tasks did lately: by the last minutes as long as `tasks` is empty.
        tasks: what each did lately; empty where that is not known yet.
    """

    at: float
    took: float
    report: Report
    line: Mapping[int, Figures]
    now: Recent
    tasks: Mapping[str, Recent]


@dataclass(frozen=True)
class State:
    """Attributes:
    last: what was read last; None before the first.
    away: why nothing is read now; "" if it is.
    away_since: seconds since 1970.
    """

    last: Reading | None = None
    away: str = ""
    away_since: float = 0.0


def reading_of(runtime: Runtime, since: float | None) -> Callable[[], Reading]:
    """Return what reads the statistics of *runtime*'s store, of the last *since* seconds or all.

    Raises ConfigurationError if it keeps none, or none for that long.
    """
    tallies = tallies_of(runtime.store)
    changes = Changes(2 * runtime.settings.stats_interval)

    def read() -> Reading:
        began = time.monotonic()
        in_all = report(tallies)
        found = in_all if since is None else report(tallies, since, tasks=True)
        line = timeline(tallies, "minute", LINE)
        now = time.time()
        tasks = changes.read(began, in_all.tasks)
        return Reading(
            at=now,
            took=time.monotonic() - began,
            report=found,
            line=line,
            now=Recent.sum(list(tasks.values())) if tasks else last_minutes(line, now),
            tasks=tasks,
        )

    return read


class Reader:
    """Reads each *interval* seconds, in a thread, until it is stopped."""

    def __init__(self, read: Callable[[], Reading], interval: float) -> None:
        self._read = read
        self._interval = interval
        self._state = State()
        self._failed: Exception | None = None
        self._stopped = threading.Event()
        # A daemon, as what it waits for may never answer.
        self._thread = threading.Thread(target=self._run, name="offload-top", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def state(self) -> State:
        """What is known now; another object when that has changed. Raises what is no failure of
        the store.
        """
        if self._failed is not None:
            raise self._failed
        return self._state

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._state = State(self._read())
            except StoreError as exc:
                since = self._state.away_since or time.time()
                self._state = replace(self._state, away=str(exc), away_since=since)
            except Exception as exc:
                self._failed = exc
                return
            self._stopped.wait(self._interval)
