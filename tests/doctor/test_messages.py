"""Messages that have waited so long that their values are about to expire."""

from __future__ import annotations

from operator import attrgetter

import pytest

from offload.doctor import examine
from offload.doctor.retention import expiring_messages
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock
from tests.support.content import set_clock
from tests.support.wire import make_wire

finding_of = attrgetter("finding")

DAY = 86400.0
BIG = list(range(2000))


@pytest.fixture
def wire():
    wire = make_wire(watch=False, conf={"result_expires": DAY})
    wire.clock = FakeClock()
    wire.hook._runtime._store = MemoryStore(clock=wire.clock)
    set_clock(wire.hook._runtime.content, lambda: 1e9 + wire.clock())

    @wire.app.task(name="echo", shared=False)
    def echo(value):
        return value

    wire.echo = echo
    return wire


def test_a_message_that_waits_too_long_is_found(wire):
    """A message is reported after most of its retention, with the first to expire named."""
    first = wire.echo.delay([*BIG, 1])
    wire.clock.advance(DAY)
    wire.echo.delay([*BIG, 2])
    wire.clock.advance(4.2 * DAY)
    assert expiring_messages(wire.hook._runtime).count == 0
    wire.clock.advance(DAY / 4)
    found = expiring_messages(wire.hook._runtime)
    assert found.count == 1
    assert found.holder.startswith(f"task:{first.id}+")
    assert found.left == pytest.approx(1.55 * DAY, abs=120)
    wire.clock.advance(DAY)
    assert expiring_messages(wire.hook._runtime).count == 2
    (report,) = (
        f for f in map(finding_of, examine(wire.hook._runtime)) if "messages have" in f.what
    )
    assert report.level == "warning"
    assert report.what.startswith("2 messages have waited for most of their retention")
    assert f"task {first.id}, expire in 13.2 h" in report.what
    wire.work()
    assert expiring_messages(wire.hook._runtime).count == 0


def test_messages_that_expire_soon_are_not_reported(wire):
    """Messages that expire, are short-lived by choice, or whose values are held by others aren't
    reported, nor are results, puts, and pins.
    """
    wire.echo.apply_async(([*BIG, 1],), expires=60)
    wire.echo.apply_async(([*BIG, 2],), offload={"retention": 3600})
    wire.hook.put([*BIG, 3], retention=60)
    wire.echo.delay([*BIG, 4])
    wire.work()  # its result
    wire.echo.delay([*BIG, 5])
    wire.clock.advance(6 * DAY)
    wire.echo.delay([*BIG, 5])
    wire.echo.apply_async(([*BIG, 2],), offload={"retention": 3600})
    assert expiring_messages(wire.hook._runtime).count == 0


def test_without_hold_tracking_nothing_is_known(tmp_path):
    """Without hold tracking, waiting messages are unknown."""
    wire = make_wire(store=f"file://{tmp_path}")
    assert expiring_messages(wire.hook._runtime).count == 0
    assert not [
        each for each in examine(wire.hook._runtime) if "messages have" in each.finding.what
    ]
