"""How much is counted now."""

from __future__ import annotations

import pytest

from offload.stats.figures import Figures
from offload.stats.recent import Changes, last_minutes

MINUTE = 60


def figures(seen, **more):
    return Figures({"values_seen": seen, **more})


def test_this_minute_and_the_one_before():
    """As a minute that has just begun tells nothing."""
    line = {10 * MINUTE: figures(600), 11 * MINUTE: figures(90), 12 * MINUTE: figures(30)}
    now = last_minutes(line, 12 * MINUTE + 20)
    assert now.seconds == 80
    assert now.rate("values_seen") == pytest.approx(120 / 80)


def test_nothing_lately_is_no_rate():
    now = last_minutes({5 * MINUTE: figures(600)}, 12 * MINUTE)
    assert now.rate("values_seen") == 0
    assert now.figures.hit_ratio is None


def test_a_task_is_told_once_readings_span_enough():
    """A process writes every few seconds: two readings within that tell nothing."""
    changes = Changes(20)
    assert changes.read(0, {"a": figures(100)}) == {}
    assert changes.read(19, {"a": figures(150)}) == {}
    found = changes.read(20, {"a": figures(160), "b": figures(40)})
    assert found["a"].rate("values_seen") == 3
    assert found["b"].rate("values_seen") == 2


def test_only_the_last_minute_counts():
    """What was long ago does not linger on."""
    changes = Changes(20)
    for second in range(0, 600, 2):
        changes.read(second, {"a": figures(min(second, 300) * 10)})
    found = changes.read(600, {"a": figures(3000)})["a"]
    assert found.rate("values_seen") == 0
    assert 55 <= found.seconds <= 70


def test_a_reset_begins_anew():
    """Counters never fall otherwise, and a rate is never negative."""
    changes = Changes(10)
    changes.read(0, {"a": figures(100)})
    changes.read(10, {"a": figures(200)})
    assert changes.read(20, {"a": figures(5)}) == {}
    assert changes.read(30, {"a": figures(15)})["a"].rate("values_seen") == 1


@pytest.mark.parametrize("interval", (0.2, 2, 60))
def test_what_is_kept_is_bounded(interval):
    """However long it runs, and however often it is read."""
    changes = Changes(20)
    for number in range(3000):
        changes.read(number * interval, {"a": figures(number, upload_microseconds=10**9)})
        assert len(changes._readings) <= 14
    kept = {name for _, tasks in changes._readings for name in tasks["a"]}
    assert kept == {"values_seen"}
