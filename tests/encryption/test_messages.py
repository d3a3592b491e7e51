"""Messages that wait while keys change: read with the old key, or kept for who has it."""

from __future__ import annotations

import base64

import pytest

from offload import KeyUnavailable
from offload.testing.store import unique
from tests.support.wire import make_wire

OLD, NEW, THIRD = (f"aes256:{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2, 3))
BIG = list(range(1000))
RETRY = {"max_retries": 2, "interval_start": 0.0, "interval_step": 0.0}


@pytest.fixture
def process():
    """Return a function that makes a process of one app, with these encryption keys."""
    name = unique().replace("/", "-")

    def make(*keys, **settings):
        wire = make_wire(
            store=f"memory://{name}",
            conf={"task_default_queue": name},
            encryption_keys=keys,
            retry=RETRY,
            **settings,
        )
        wire.ran = []

        @wire.app.task(name="total", shared=False)
        def total(numbers):
            wire.ran.append(numbers)
            return [sum(numbers), *numbers]

        wire.total = total
        return wire

    return make


@pytest.mark.parametrize("short_refs", (False, True))
def test_messages_that_wait_during_a_rotation_are_read(process, short_refs):
    """A message from before each step of a rotation is read after it, and so is its result."""
    steps = ((OLD,), (OLD, NEW), (NEW, OLD), (NEW,))
    before = process(*steps[0], short_refs=short_refs)
    for number, step in enumerate(steps[1:]):
        after = process(*step, short_refs=short_refs)
        value = [number, *BIG]  # new, as what is stored already keeps its key
        result = before.total.delay(value)
        after.work()
        assert after.ran == [value]
        assert after.app.AsyncResult(result.id).get(timeout=10)[0] == sum(value)
        before = after


@pytest.mark.parametrize("keys", ((), (THIRD,)), ids=("none", "another"))
def test_a_worker_without_the_key_leaves_the_message_to_others(process, keys):
    """It sends the message again, as in a store outage; a worker with the key then runs it."""
    publisher, without = process(NEW), process(*keys)
    result = publisher.total.delay(BIG)
    without.execute(without.take())
    assert without.ran == []
    assert without.app.AsyncResult(result.id).state == "RETRY"
    publisher.work()
    assert publisher.ran == [BIG]
    assert result.get(timeout=10)[0] == sum(BIG)


def test_a_missing_key_ends_in_a_typed_error(process):
    """If no worker has the key, attempts are bounded, and the error has the start of its id."""
    publisher, without = process(NEW), process(OLD)
    result = publisher.total.delay(BIG)
    attempts = 0
    while (message := without.take()) is not None:
        without.execute(message)
        attempts += 1
        assert attempts < 20
    with pytest.raises(KeyUnavailable, match=r"the encryption key [0-9a-f]{7}…") as caught:
        without.app.AsyncResult(result.id).get(timeout=10)
    assert publisher.hook._runtime.keyring.current.id.startswith(caught.value.key)
    assert without.ran == []


def test_what_was_sent_before_encryption_is_read(process):
    """A message from before there were keys is read, and its result is encrypted."""
    before, after = process(), process(NEW)
    result = before.total.delay(BIG)
    after.work()
    assert after.ran == [BIG]
    assert after.app.AsyncResult(result.id).get(timeout=10)[0] == sum(BIG)
