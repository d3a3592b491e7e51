"""How long an app may ask its store to keep something, compared with its actual calls."""

from __future__ import annotations

import itertools
import math
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery, chain
from hypothesis import given, settings
from hypothesis import strategies as st

from offload import Catalog, ConfigurationError, Offload
from offload.content.holds import longest_ttl
from offload.doctor.examination import _longest
from offload.doctor.retention import (
    DAY,
    days_for,
    has_catalog,
    has_pins,
    lifecycle_rule,
    retention_requirements,
)
from offload.stores.memory import MemoryStore
from offload.stores.s3.client import S3Client
from offload.stores.s3.store import S3Store
from offload.stores.tiered import TieredStore
from offload.testing.store import FakeClock
from tests.support.moto_s3 import moto_s3
from tests.support.wire import make_wire

BIG = "x" * 2000
_fresh = itertools.count()

seconds = st.floats(1, 200 * DAY)


def same(value=None):
    return value


def spied(wire, tracks_holds):
    """Return a list of every lifetime that the store is asked for."""
    asked = []
    blobs = wire.hook.store.blobs
    hold, put = blobs.hold, blobs.put

    def spy_hold(digests, ttl, *given, **more):
        asked.append(ttl)
        return hold(digests, ttl, *given, **more)

    def spy_put(contents, ttl, **more):
        asked.append(ttl)
        return put(contents, ttl, **more)

    blobs.hold, blobs.put, blobs.tracks_holds = spy_hold, spy_put, tracks_holds
    return asked


def calls(wire, task, delay, half):
    """Make every call that stores a value, with delays of at most *delay* in total."""
    value = f"{next(_fresh)}{BIG}"
    eta = datetime.now(timezone.utc) + timedelta(seconds=delay)
    yield lambda: wire.hook.put(value)
    yield lambda: task.apply_async((value,), countdown=delay)
    yield lambda: task.apply_async((value,), eta=eta)
    yield lambda: task.apply_async((value,), expires=delay)
    yield lambda: task.apply_async((value,), eta=eta, expires=eta)
    yield lambda: task.apply_async((1,), link=task.si(value).set(countdown=half), countdown=half)
    later = task.si(value).set(countdown=half)
    yield lambda: chain(task.si(1).set(countdown=half), later).apply_async()
    yield lambda: chain(task.si(1).set(expires=half), later).apply_async()
    yield lambda: task.delay(value)
    yield wire.work  # the results, too


@settings(max_examples=40, deadline=None)
@given(
    retention=seconds,
    own=st.none() | seconds,
    grace=seconds,
    expires=st.none() | seconds | st.builds(timedelta, seconds=seconds),
    delay=seconds,
    given_retention=seconds,
    skew=st.floats(1, 1000),
    ahead=st.floats(0, 10),
    tracks_holds=st.booleans(),
)
def test_a_rule_outlasts_every_lifetime(
    retention, own, grace, expires, delay, given_retention, skew, ahead, tracks_holds
):
    """With any settings, S3 is never asked to keep something for longer than the days of the
    lifecycle rule.
    """
    wire = make_wire(
        conf={"result_expires": expires}, watch=False, retention=retention, grace=grace
    )
    options = {} if own is None else {"retention": own}
    task = wire.app.task(name="keep", shared=False, offload=options)(same)
    asked = spied(wire, tracks_holds)
    for call in calls(wire, task, delay, delay / 2):
        call()
    if expires is not None:
        found = retention_requirements(wire.hook._runtime, delay=delay, retention=None)
    else:  # the operator says for how long results are read
        with pytest.raises(ConfigurationError, match="result_expires"):
            retention_requirements(wire.hook._runtime, delay=delay)
        found = retention_requirements(wire.hook._runtime, delay=delay, retention=given_retention)
        asked = [ttl for ttl in asked if ttl < 9 * 365 * DAY]  # all but the results
    client = S3Client(lambda records: None, bucket="b", url="s3://b")
    s3 = S3Store(client, skew=skew, ahead=ahead)
    assert len(asked) > 8
    longest = longest_ttl(found[0].seconds)
    assert max(asked) <= longest * (1 + 1e-9)
    rule = lifecycle_rule(s3, longest)
    assert max(float(s3.blobs.life(ttl)) for ttl in asked) <= rule.days * DAY


def test_a_rule_outlasts_lifetimes_in_a_lower_tier():
    """In a lower tier of a store with holds, too, no object in S3 is written for longer than the
    rule's days.
    """
    clock = FakeClock()
    wire = make_wire(watch=False, retention=30 * DAY)
    task = wire.app.task(name="keep", shared=False)(same)
    delay = DAY / 10
    with moto_s3(clock, ahead=1) as s3:
        store = TieredStore(MemoryStore(clock=clock), [s3], [1000], small=1, clock=clock)
        wire.hook._runtime._store = store
        for call in calls(wire, task, delay, delay / 2):
            call()
            clock.advance(DAY)  # so that some lifetimes are extended
        life = s3.blobs.life(
            longest_ttl(retention_requirements(wire.hook._runtime, delay=delay)[0].seconds)
        )
        client = s3.client
        keys = [entry["Key"] for page in client.pages("blobs") for entry in page]
        report = [client.ask("head_object", Key=key)[1]["Metadata"] for key in keys]
    assert 0.9 * life < max(float(each["offload-ttl"]) for each in report) <= life


def make_app(**conf):
    app = Celery("needs", broker="memory://", set_as_current=False)
    app.conf.update(conf)
    return app


def test_each_requirement_has_a_reason():
    """Each requirement names the setting or task that needs it."""
    app = make_app(result_expires=5000)
    hook = Offload(app, retention=100, grace=10)
    app.task(name="long", shared=False, offload={"retention": 300})(same)
    found = retention_requirements(hook._runtime, delay=1, retention=200)
    assert [(need.seconds, need.why) for need in found] == [
        (5000, "result_expires"),
        (311, "retention of task long"),
        (211, "the given retention"),
        (111, "offload_retention"),
        (40, "offload_grace, for tasks that run long"),
    ]


def test_results_that_are_not_stored_need_nothing():
    """If no task stores results by reference, results that never expire don't matter."""
    app = make_app(result_expires=None)
    hook = Offload(app, retention=100, grace=10, results=False)
    assert retention_requirements(hook._runtime)[0].why == "offload_retention"
    app.task(name="one", shared=False, offload={"results": True})(same)
    with pytest.raises(ConfigurationError, match="result_expires"):
        retention_requirements(hook._runtime)


@pytest.mark.parametrize(
    ("life", "days"), ((1, 2), (DAY - 1, 2), (DAY, 2), (DAY + 1, 3), (10 * DAY, 11))
)
def test_days_are_whole_and_one_more(life, days):
    """Days are rounded up, plus one, because servers that count dates expire objects up to a day
    early.
    """
    assert days_for(life) == days


def test_pins_are_reported():
    """A pinned value is needed forever; a store without holds can't have pins."""
    hook = make_wire().hook
    assert not has_pins(hook._runtime)
    hook.pin(hook.put(BIG), "model")
    assert has_pins(hook._runtime)
    hook.unpin("model")
    assert not has_pins(hook._runtime)


def test_a_catalog_is_reported():
    """What a catalog names is needed until it is removed, so no lifecycle rule suits it."""
    hook = make_wire().hook
    assert not has_catalog(hook._runtime)
    catalog = Catalog(hook.store)
    catalog.save("model", BIG)
    assert has_catalog(hook._runtime)
    assert _longest(hook._runtime) == math.inf
    catalog.remove("model")
    assert not has_catalog(hook._runtime)
