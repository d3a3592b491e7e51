"""A worker with a store in S3, behind a proxy that throttles, cuts connections, and goes silent."""

from __future__ import annotations

import os
import uuid
from types import SimpleNamespace

import pytest
from faults import Setup

from offload.errors import StoreError, StoreUnavailable
from tests.support.http_proxy import Exchange, HTTPProxy, cut, refused, says, silent, stalled
from tests.support.processes import wait_until

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

RETRIES = 3
PATIENT = {"max_retries": RETRIES, "interval_start": 0.05, "interval_max": 0.1}
SIZE = 3 << 20  # two chunks
SLOW_DOWN = says(503, "SlowDown")
UNIQUE = iter(range(10**9))


@pytest.fixture(scope="module")
def s3_proxy(s3):
    with HTTPProxy(s3.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def throttled(broker, s3, s3_proxy, tmp_path_factory):
    """Return a worker that reaches S3 through the proxy, and a publisher that bypasses it."""
    folder = tmp_path_factory.mktemp("s3")
    prefix = uuid.uuid4().hex
    through = s3.url(prefix, port=s3_proxy.port, max_attempts=1, read_timeout=0.3)
    setup = Setup(
        broker, broker, SimpleNamespace(url=s3.url(prefix)), folder,
        compression="none", retry=PATIENT, cache=str(folder / "cache"), cache_write="off",
    )  # fmt: skip
    setup.cache, setup.through = folder / "cache", through
    setup.shared = setup.worker(store=through, verify="always")
    setup.wait(setup.task("size").delay(big()))  # it has the key, and connections
    yield setup
    s3_proxy.restore()
    setup.close()


@pytest.fixture(autouse=True)
def in_order(request):
    """Assert that no test leaves faults for the next."""
    yield
    if "throttled" in request.fixturenames:
        request.getfixturevalue("s3_proxy").restore()


def big():
    """Return content that isn't stored yet."""
    return f"{next(UNIQUE):09d}{os.urandom(SIZE // 2).hex()}"


def again(setup, said):
    """Return how often, according to the worker's log, its last task retried the store."""
    return setup.shared.log()[said:].count("store unavailable; retrying in")


@pytest.mark.parametrize(
    "faults",
    (
        (SLOW_DOWN, SLOW_DOWN, Exchange.pass_on, cut(100_000)),
        (Exchange.pass_on, SLOW_DOWN, stalled(5000), refused),
        (cut(10), silent),
    ),
    ids=("throttled then cut", "stalled", "cut then silent"),
)
def test_a_store_that_recovers(throttled, s3_proxy, faults):
    """A task whose argument S3 throttles, cuts, or delays gets it in the end, complete and once;
    nothing else is visible.
    """
    value = big()
    said = len(throttled.shared.log())
    for fault in faults:
        s3_proxy.fail(fault, "GET", within="/blobs/")
    result = throttled.task("take").delay(value)
    assert throttled.wait(result).get() == value
    assert s3_proxy.left() == 0
    assert 1 <= again(throttled, said) <= len(faults)
    assert len(throttled.entered(result)) == 1
    assert " retry: " not in throttled.shared.log()[said:]  # it wasn't even resent


def test_a_result_that_is_throttled(throttled, s3_proxy):
    """A large result that S3 throttles is stored in the end."""
    said = len(throttled.shared.log())
    s3_proxy.fail(SLOW_DOWN, "PUT", times=3, within="/blobs/")
    result = throttled.task("produce").delay(SIZE + next(UNIQUE))
    assert set(throttled.wait(result).get()) == {"p"}
    assert s3_proxy.left() == 0
    assert again(throttled, said) >= 1
    assert len(throttled.entered(result)) == 1


def reads(proxy):
    """Return how often a blob was read; statistics are written at any time."""
    return sum(each.method == "GET" and "/blobs/" in each.path for each in proxy.seen)


AWAY = pytest.mark.parametrize(
    ("fault", "said"),
    ((SLOW_DOWN, "too many requests at once"), (silent, "too slow"), (refused, "is unavailable")),
    ids=("throttled", "black hole", "refused"),
)


@AWAY
def test_a_longer_outage(throttled, s3_proxy, fault, said):
    """While S3 is unavailable, the task is resent, and runs once when S3 is back."""
    value = big()
    s3_proxy.fail(fault, "GET", times=10_000, within="/blobs/")
    result = throttled.task("retry_once").delay(value)
    wait_until(lambda: result.state == "RETRY", "the task is being sent again", 30)
    assert throttled.entered(result) == []
    s3_proxy.restore()
    # It used only its one retry.
    assert throttled.wait(result).get() == [1, len(value)]
    assert [seen[-1] for seen in throttled.entered(result)] == [0, 1]


@AWAY
def test_a_store_that_does_not_come_back(throttled, s3_proxy, fault, said):
    """In the end the task fails with StoreUnavailable, which names task, argument, store, and
    reason; its error callback runs, its function doesn't.
    """
    s3_proxy.fail(fault, "GET", times=10_000, within="/blobs/")
    asked = reads(s3_proxy)
    errback = throttled.task("note_error").s()
    result = throttled.task("eager_to_retry").apply_async((big(),), link_error=errback)
    error = throttled.failure(result)
    assert type(error) is StoreUnavailable
    for part in ("task 'eager_to_retry', value:", f":{s3_proxy.port}", said):
        assert part in str(error)
    assert throttled.entered(result) == []
    wait_until(lambda: throttled.errbacks(result), "the error callback ran", 20)
    # Delivered once and resent as often as the policy allows, with as many attempts each time.
    assert reads(s3_proxy) - asked == (1 + RETRIES) ** 2


def test_credentials_that_are_refused(throttled, s3_proxy):
    """An error that a retry can't fix fails the task at once and says what to do."""
    s3_proxy.fail(says(403, "AccessDenied"), "GET", times=10_000, within="/blobs/")
    asked = reads(s3_proxy)
    result = throttled.task("size").delay(big())
    error = throttled.failure(result)
    assert type(error) is StoreError
    assert "s3:GetObject" in str(error)
    assert reads(s3_proxy) == asked + 1
    assert throttled.entered(result) == []


@pytest.mark.parametrize("fault", (SLOW_DOWN, silent, refused))
def test_publishing_without_the_store(throttled, s3_proxy, fault):
    """Publishing raises StoreUnavailable in the end, and nothing is sent."""
    app = throttled.publisher(store=throttled.through, conf={"task_default_queue": "nowhere"})
    _ = app.stowaway._runtime.content.signing.keys
    s3_proxy.fail(fault, "PUT", times=10_000, within="/blobs/")
    with pytest.raises(StoreUnavailable, match="task 'size', value:") as caught:
        throttled.task("size", app).delay(big())
    assert f":{s3_proxy.port}" in str(caught.value)
    assert throttled.messages("nowhere") == []


# -- with the node cache


def test_a_cached_file_that_is_altered(throttled, s3_proxy):
    """With full verification, a changed byte on disk is noticed and the value fetched again."""
    value = big()
    throttled.wait(throttled.task("size").delay(value))
    asked, said = reads(s3_proxy), len(throttled.shared.log())
    for path in throttled.cache.glob("b3-*"):
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
    result = throttled.task("take").delay(value)
    throttled.wait(result)
    assert "was altered" in throttled.shared.log()[said:]
    assert reads(s3_proxy) > asked
    assert throttled.publisher(cache="off").AsyncResult(result.id).get() == value


def test_a_cache_folder_that_others_may_use(throttled, s3_proxy):
    """A cache folder with unsafe permissions isn't used, and the log says why; tasks read from the
    store.
    """
    said = len(throttled.shared.log())
    throttled.cache.chmod(0o755)
    try:
        value = big()
        result = throttled.wait(throttled.task("size").delay(value))
    finally:
        throttled.cache.chmod(0o700)
    assert result.get() == ["str", len(value)]
    assert "running without the node cache: offload_cache" in throttled.shared.log()[said:]
