"""Estimates of thresholds from counts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload import Counters
from offload.metrics.counters import SIZES
from offload.metrics.estimate import IN_MESSAGE, OFFLOADED, REPEATED, STORED, estimate
from offload.metrics.report import Figures, Report
from offload.text import human_time_saved

KIB, MIB = 1024, 1024**2


def counted(values, **more):
    """Return the report for counted ``(task, size, repeated bytes)``."""
    counters = Counters()
    for task, size, repeated in values:
        with counters.about(task, "argument"):
            counters.sized(size, repeated)
    tasks: dict[str, Counter[str]] = {}
    for what, amount in counters.take().items():
        tasks.setdefault(what.task, Counter())[what.name] += amount
    total = Figures.sum([*tasks.values(), more])
    return Report(None, total, {task: Figures(each) for task, each in tasks.items()}, {})


def at(choices, threshold):
    return next(each for each in choices.candidates if each.threshold == threshold)


def test_each_candidate_has_the_values_from_its_size():
    """By hand: values of at least the threshold are offloaded, one byte less isn't."""
    values = [("a", 64 * KIB, 0), ("a", 64 * KIB - 1, 0), ("b", 2 * MIB, 2 * MIB), ("b", 500, 0)]
    found = estimate(counted(values), 64 * KIB)
    assert (found.total.values, found.total.bytes) == (4, 128 * KIB - 1 + 2 * MIB + 500)
    assert [each.threshold for each in found.total.candidates] == list(SIZES)
    one = at(found.total, 64 * KIB)
    assert (one.values, one.bytes, one.stored_bytes) == (2, 64 * KIB + 2 * MIB, 64 * KIB)
    assert one.round_trips == 3 + (4 + 0)  # the large one is read in two, and was there
    assert one.saved_seconds == pytest.approx(
        64 * KIB * (IN_MESSAGE - STORED) + 2 * MIB * (IN_MESSAGE - REPEATED) - 2 * OFFLOADED
    )
    assert at(found.total, 32 * KIB).values == 3
    assert at(found.total, 4 * MIB).values == 0
    assert at(found.tasks["b"], KIB).values == 1


def test_the_best_threshold_is_named():
    """The advice names the threshold that saves most."""
    small = [("small", 4 * KIB, 0)] * 1000
    large = [("large", 600 * KIB, 0)] * 20
    found = estimate(counted(small + large), 4 * KIB)
    best = found.total.best
    assert best.threshold == 8 * KIB  # among equal ones, the closest to the current one
    assert best.values == 20
    assert best == max(
        found.total.candidates, key=lambda each: (each.saved_seconds, -each.threshold)
    )
    assert "8.2 kB would pay best (offload_threshold = 8192, now 4096)" in found.advice
    assert "20 of 1,020 values (75% of the bytes)" in found.advice
    assert found.tasks["small"].best is None
    assert found.tasks["large"].best is not None


def test_the_current_threshold_is_kept_if_none_is_better():
    """A threshold that saves as much as others isn't changed."""
    found = estimate(counted([("a", 3 * MIB, 0)] * 5), 64 * KIB)
    assert found.total.best.threshold == 64 * KIB
    assert found.advice.startswith("The current threshold, 65.5 kB, pays best: 5 of 5 values")


def test_small_differences_are_not_worth_changing():
    """If the best threshold saves hardly more than the current one, the advice says so."""
    large = [("large", 3 * MIB, 0)] * 50
    found = estimate(counted([*large, ("large", 150 * KIB, 0)]), 256 * KIB)
    assert found.total.best.threshold == 128 * KIB
    assert found.total.best.saved_seconds > found.total.current.saved_seconds
    assert not found.total.is_worth_changing
    assert found.advice.startswith("Not worth a change: the current threshold, 262.1 kB")
    many = estimate(counted([*large, *[("large", 150 * KIB, 0)] * 5000]), 256 * KIB)
    assert many.total.is_worth_changing
    assert "131.1 kB would pay best" in many.advice
    nothing = estimate(counted([("a", 200 * KIB, 0)]), 4 * MIB)
    assert nothing.total.current.values == 0
    assert nothing.total.is_worth_changing


def test_no_threshold_saves_anything():
    """If no threshold saves anything, there is no best one, and the advice says so."""
    advice = estimate(counted([]), 64 * KIB).advice
    assert advice.startswith("No sizes have been counted yet.")
    assert 'offload_mode="observe"' in advice
    found = estimate(counted([("a", 2 * KIB, 0)] * 9), 64 * KIB)
    assert found.total.best is None
    assert found.advice.startswith("No threshold pays: 9 values of 18.4 kB")


def test_nothing_is_estimated_below_the_threshold_in_mode_on():
    """In mode ``on``, smaller values aren't observed, so nothing is known about them."""
    values = [("a", 3 * MIB, 0)]
    known = estimate(counted(values, values_offloaded=1), 100_000)
    assert known.counted_from == 100_000
    assert known.total.candidates[0].threshold == 128 * KIB
    assert estimate(counted(values, observed_values=1), 100_000).counted_from == KIB


values = st.lists(
    st.tuples(
        st.sampled_from(("a", "b", "c")),
        st.integers(0, 2**40)
        | st.sampled_from(SIZES)
        | st.sampled_from(SIZES).map(lambda n: n - 1),
        st.integers(0, 2**40),
    ),
    max_size=30,
)


@given(values, st.integers(0, 2**23), st.booleans())
def test_sums_agree_and_nothing_grows_with_the_threshold(values, threshold, on):
    """Each candidate's numbers follow from the values, and a higher one moves less."""
    values = [(task, size, min(size, repeated)) for task, size, repeated in values]
    found = estimate(counted(values, values_offloaded=int(on)), threshold)
    assert found.total.bytes == sum(size for _, size, _ in values)
    for each in found.total.candidates:
        moved = [(size, again) for _, size, again in values if size >= each.threshold]
        assert each.values == len(moved)
        assert each.bytes == sum(size for size, _ in moved)
        assert each.stored_bytes == sum(size - again for size, again in moved)
        assert 3 * each.values <= each.round_trips <= 5 * each.values
        of_tasks = [at(choices, each.threshold) for choices in found.tasks.values()]
        assert each.values == sum(one.values for one in of_tasks)
        assert each.saved_seconds == pytest.approx(sum(one.saved_seconds for one in of_tasks))
    for lower, higher in zip(found.total.candidates, found.total.candidates[1:], strict=False):
        assert lower.threshold < higher.threshold
        for name in ("values", "bytes", "stored_bytes", "round_trips"):
            assert getattr(lower, name) >= getattr(higher, name)
    if found.total.best is not None:
        most = max(each.saved_seconds for each in found.total.candidates)
        assert found.total.best.saved_seconds == most > 0
    assert found.advice.endswith(".")


def test_plain_data_has_all_of_it():
    """The dict form has the advice, the best threshold, and every candidate."""
    found = estimate(counted([("a", 3 * MIB, MIB)]), 64 * KIB)
    data = found.as_dict()
    assert data["advice"] == found.advice
    assert data["total"]["best"] == data["tasks"]["a"]["best"]
    assert data["total"]["best"]["stored_bytes"] == 2 * MIB
    assert len(data["total"]["candidates"]) == len(SIZES)


def test_times_saved_are_readable():
    """CPU times are formatted in the unit that fits their size."""
    assert list(map(human_time_saved, (0.04, -1.5, 90, 7200, 200_000))) == [
        "40.0 ms",
        "-1.5 s",
        "90.0 s",
        "2.0 h",
        "2.3 days",
    ]
