"""Events with large fields: what is sent, and what receivers read."""

from __future__ import annotations

import pytest
from celery.worker.request import Request

from offload import BlobMissing, InvalidRef, StoreUnavailable
from offload.hooks import requests
from offload.hooks.events import VALUE_TTL
from tests.support.wire import make_wire

ROWS = [{"row": n, "text": "x" * 50} for n in range(500)]


@pytest.fixture
def wire():
    wire = make_wire(watch=False, retry={"max_retries": 0})

    @wire.app.task(name="told", shared=False)
    def told():
        """Send no event."""

    wire.told = told
    return wire


def receive(wire, send):
    """Return the events that *send* sends, as a receiver gets them."""
    found = []
    with wire.app.connection_for_read() as connection:
        receiver = wire.app.events.Receiver(connection, handlers={"*": found.append})
        with receiver.consumer_context(wakeup=False) as (its_connection, _, _):
            send()
            its_connection.drain_events(timeout=10)
    return found


def test_large_fields_are_read_from_the_store(wire):
    """An event with large fields is small and readable; `read_event` returns the values, which are
    held for an hour; other fields are sent as they are.
    """
    text = "é" * 3000
    (event,) = receive(
        wire, lambda: wire.told.send_event("task-told", rows=ROWS, text=text, done=3, no=None)
    )
    assert len(repr(event)) < 2000
    assert event["rows"].startswith("<list ")
    assert (event["done"], event["no"]) == (3, None)
    taken = wire.hook.counters.take()
    counted = {each.argument: n for each, n in taken.items() if each.name == "values_offloaded"}
    assert counted == {"event": 2}
    found = wire.hook.read_event(event)
    assert (found["rows"], found["text"], found["done"]) == (ROWS, text, 3)
    assert found.keys() == event.keys()
    left = [info.ttl for info in wire.hook.store.blobs.scan()]
    assert VALUE_TTL <= min(left) <= max(left) < 2 * VALUE_TTL


def test_text_that_looks_like_a_reference_stays_text(wire):
    """A field's text that is a reference of another value is delivered as this text."""
    (event,) = receive(wire, lambda: wire.told.send_event("task-told", rows=ROWS))
    copied = event["rows"]
    (event,) = receive(wire, lambda: wire.told.send_event("task-told", note=copied))
    assert wire.hook.read_event(event)["note"] == copied
    with pytest.raises(InvalidRef):
        wire.hook.read_event({"rows": f"{copied[:-1]}{'0' if copied[-1] != '0' else '1'}"})


def test_a_failing_store_fails_no_event(wire, monkeypatch):
    """If the store is unavailable, the event says what is missing; the task goes on."""

    def unavailable(*_given, **_more):
        raise StoreUnavailable("the store is down")

    with monkeypatch.context() as broken:
        broken.setattr(wire.hook.store.blobs, "hold", unavailable)
        (event,) = receive(wire, lambda: wire.told.send_event("task-told", rows=ROWS, done=1))
    assert event["done"] == 1
    assert event["rows"].startswith("<list of ")
    assert "not stored by offload: StoreUnavailable" in event["rows"]
    assert wire.hook.counters.snapshot()["errors_unavailable"] == 1
    (event,) = receive(wire, lambda: wire.told.send_event("task-told", rows=ROWS))
    blobs = wire.hook.store.blobs
    blobs.delete([info.digest for info in blobs.scan()])
    with pytest.raises(BlobMissing):
        wire.hook.read_event(event)


@pytest.mark.parametrize("settings", ({"mode": "off"}, {"mode": "observe"}))
def test_without_offloading_events_are_sent_as_they_are(settings):
    """In modes that send no references, events contain their data."""
    wire = make_wire(watch=False, **settings)

    @wire.app.task(name="told", shared=False)
    def task():
        """Send no event."""

    (event,) = receive(wire, lambda: task.send_event("task-told", rows=ROWS))
    assert event["rows"] == ROWS


def test_events_on_failures_stay_small(wire):
    """A worker's own event about a failure has the start and the end of a large traceback, and
    the whole of a small one.
    """
    requests.install()
    wire.told.delay()
    sent = []

    class Eventer:
        enabled = True

        def send(self, _type, **fields):
            sent.append(fields)

    message = wire.take()
    message.headers = {**message.headers, "task": "told"}
    request = Request(message, app=wire.app, task=wire.told, eventer=Eventer())
    large = "Traceback: " + "x" * 2_000_000 + " the end"
    request.send_event("task-failed", exception=repr(ValueError(large)), traceback=large)
    request.send_event("task-failed", exception="ValueError('no')", traceback="Traceback")
    assert all(len(text) < 1500 for text in (sent[0]["exception"], sent[0]["traceback"]))
    assert sent[0]["traceback"].startswith("Traceback: x")
    assert sent[0]["traceback"].endswith("x the end")
    assert "see the task's result" in sent[0]["traceback"]
    assert (sent[1]["exception"], sent[1]["traceback"]) == ("ValueError('no')", "Traceback")
