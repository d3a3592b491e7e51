"""Faults while a worker fetches arguments: each raises a typed error, and never a wrong value."""

from __future__ import annotations

import pytest
from celery import chord
from faults import BIG

from offload.errors import (
    BlobMissing,
    IntegrityError,
    InvalidRef,
    SerializerNotAccepted,
    StoreUnavailable,
    UnsupportedVersion,
)
from offload.hooks.message import NOTE_VERSION
from tests.support.processes import wait_until
from tests.support.servers import redis_client

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

UNIQUE = iter(range(10**9))


def big():
    """Return a large value that isn't stored yet."""
    return f"{next(UNIQUE):09d}" + BIG


@pytest.fixture
def held(running):
    """Hold published messages in the broker until `resume`."""
    running.hold()
    return running


def only_blob(setup, before):
    (key,) = set(setup.blobs()) - set(before)
    return key


# -- missing or altered content


@pytest.mark.parametrize("name", ("size", "eager_to_retry", "carefully"))
@pytest.mark.parametrize("fault", ("gone", "altered", "replaced"))
def test_missing_or_altered_content(running, held, name, fault):
    """The task fails at once with an error that names task, argument, digest, store, and age. It
    isn't retried, not even by autoretry_for=(Exception,); neither its function nor its before_start
    runs; its error callback does.
    """
    before = running.blobs()
    result = running.task(name).apply_async((big(),), link_error=running.task("note_error").s())
    key = only_blob(running, before)
    if fault == "gone":
        running.stored.delete(key)
    elif fault == "altered":
        content = bytearray(running.stored.get(key))
        content[len(content) // 2] ^= 1
        running.stored.set(key, bytes(content), keepttl=True)
    else:
        running.stored.set(key, b"\0" + b"z" * 50_000_000, keepttl=True)
    held.resume()
    error = running.failure(result)
    assert type(error) is (BlobMissing if fault == "gone" else IntegrityError)
    message = str(error)
    digest = key.decode().partition("{")[2].rstrip("}")
    for part in (f"task {name!r}, value:", digest, f"127.0.0.1:{running.proxy.port}", " s old"):
        assert part in message
    assert running.entered(result) == []
    assert running.broker.lrange(f"before:{result.id}", 0, -1) == []
    wait_until(lambda: running.errbacks(result), "the error callback ran", 20)
    (seen,) = running.errbacks(result)
    assert type(error).__name__ in seen


def test_other_arguments_are_named(running, held):
    """The error names the affected argument, whatever its position."""
    before = running.blobs()
    bad = big()
    running.offload.put(bad)
    key = only_blob(running, before)
    result = running.task("take").delay(BIG, config=bad)
    running.stored.delete(key)
    held.resume()
    assert "task 'take', config:" in str(running.failure(result))


def test_a_chord_with_a_missing_argument_fails(running, held):
    """The chord fails with a chord error instead of hanging; body and parts call errbacks."""
    before = running.blobs()
    take, total = running.task("take"), running.task("total")
    body = total.s().on_error(running.task("note_error").s())
    bad = big()
    result = chord([take.s(BIG), take.s(bad), take.s(BIG + "2")])(body)
    # The second part's message holds the reference whose blob is deleted.
    wire = running.offload.put(bad).digest
    running.stored.delete(f"offload:blob:{{{wire}}}")
    assert set(running.blobs()) - set(before)
    held.resume()
    error = running.failure(result)
    assert type(error).__name__ == "ChordError"
    assert "BlobMissing" in str(error)
    assert running.entered(result) == []
    wait_until(lambda: running.errbacks(result), "the body's error callback ran", 20)


def test_a_chord_with_a_missing_result_fails(running):
    """If a part's result is missing when the body needs it, the body fails and names the part."""
    produce, total = running.task("produce"), running.task("total")
    part = produce.delay(70_001)
    running.wait(part)
    result = total.delay([running.offload.put(big()), 1])
    running.wait(result)
    before = running.blobs()
    ref = running.offload.put(big())
    parts = [ref, "small"]
    key = only_blob(running, before)
    running.stored.delete(key)
    result = total.delay(parts)
    error = running.failure(result)
    assert type(error) is BlobMissing
    assert "task 'total', parts[0]:" in str(error)


def test_a_missing_result(running):
    """Reading a result whose content is missing raises BlobMissing; its state stays readable."""
    before = running.blobs()
    result = running.task("produce").delay(60_000 + next(UNIQUE))
    running.wait(result)
    running.stored.delete(only_blob(running, before))
    assert result.state == "SUCCESS"
    with pytest.raises(BlobMissing, match=" s old"):
        result.get(timeout=10)


# -- unavailable store


def test_a_task_is_resent_while_the_store_is_unavailable(running):
    """A task whose arguments can't be fetched is resent until the store is back, then runs once
    with its own retry count unchanged; nothing else is visible.
    """
    result = running.task("retry_once").apply_async((big(),), countdown=1)
    running.proxy.refuse()
    wait_until(lambda: result.state == "RETRY", "the task is being sent again", 30)
    assert running.entered(result) == []
    running.proxy.restore()
    running.wait(result)
    # It used only its one retry.
    assert result.get() == [1, len(BIG) + 9]
    assert [seen[-1] for seen in running.entered(result)] == [0, 1]


def test_a_store_that_stays_unavailable_fails_the_task(running):
    """In the end the task fails with StoreUnavailable, which names task and argument; its error
    callback runs, its function doesn't, and autoretry doesn't apply.
    """
    result = running.task("eager_to_retry").apply_async(
        (big(),), link_error=running.task("note_error").s(), countdown=1
    )
    running.proxy.refuse()
    error = running.failure(result)
    assert type(error) is StoreUnavailable
    assert "task 'eager_to_retry', value:" in str(error)
    assert running.entered(result) == []
    wait_until(lambda: running.errbacks(result), "the error callback ran", 20)


def test_a_black_hole_is_noticed(running):
    """A store that accepts connections and never answers counts as unavailable."""
    result = running.task("size").apply_async((big(),), countdown=1)
    running.proxy.blackhole()
    assert type(running.failure(result)) is StoreUnavailable


def test_small_tasks_still_run(running):
    """While the store is unavailable, tasks without references still run."""
    running.proxy.refuse()
    result = running.task("size").delay("small")
    running.wait(result)
    assert result.get() == ["str", 5]


def test_a_result_that_cannot_be_stored(running):
    """A task whose large result can't be stored fails with a typed error that says so."""
    running.proxy.refuse()
    result = running.task("produce").delay(60_000 + next(UNIQUE))
    error = running.failure(result)
    assert type(error) is StoreUnavailable
    assert "task 'produce', result:" in str(error)


def test_a_store_that_was_restarted(running):
    """After a server restart, worker and publisher replace dead connections and exchange new
    values.
    """
    first = running.task("size").delay(big())
    running.wait(first)
    running.stored.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    result = running.task("size").delay(big())
    assert running.wait(result).get() == ["str", len(BIG) + 9]


# -- invalid references


def test_a_changed_reference(running, held):
    """A reference with one changed character fails the task with InvalidRef, is counted, and
    fetches nothing; an error callback with such an argument is refused, too, and never receives the
    reference as data.
    """
    result = running.task("size").apply_async(
        (big(),), link_error=running.task("note_error_with").s(BIG)
    )
    before = running.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]

    def change(body):
        for node in (body[0][0], body[2]["offload"]["errbacks"][0]["args"][0]):
            node["__offload__"] = node["__offload__"].replace("&n=6", "&n=7")

    held.resume(change)
    error = running.failure(result)
    assert type(error) is InvalidRef
    assert "task 'size', value: a reference has no valid signature" in str(error)
    assert running.entered(result) == []
    probe = running.task("size").delay("small")
    running.wait(probe)  # the worker is done with the callback
    assert running.errbacks(result) == []
    after = running.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]
    assert after == before


@pytest.mark.parametrize("what", ("message", "reference"))
def test_a_newer_version(running, held, what):
    """A message or reference of a newer version fails with UnsupportedVersion, which says what to
    upgrade; error callbacks don't receive a reference as data either.
    """
    result = running.task("size").apply_async(
        (big(),), link_error=running.task("note_error_with").s(BIG)
    )

    def change(body):
        if what == "message":
            body[2]["offload"]["v"] = NOTE_VERSION + 1
            body[2]["offload"]["refs"] = {"unknown": "form"}
        else:
            node = body[0][0]
            node["__offload__"] = node["__offload__"].replace("offload:1?", "offload:3?")

    held.resume(change)
    error = running.failure(result)
    assert type(error) is UnsupportedVersion
    assert "upgrade offload" in str(error)
    assert running.entered(result) == []
    probe = running.task("size").delay("small")
    running.wait(probe)
    assert "dict" not in running.errbacks(result)


@pytest.mark.parametrize(
    "change",
    (
        lambda note: note.update(refs=[["args", 7]]),
        lambda note: note.update(refs=[["args", "x"]]),
        lambda note: note.update(refs=5),
        lambda note: note.update(refs=[[]]),
        lambda note: note.update(refs=[["args", 0, "__offload__"]]),
        lambda note: note.update(v="1"),
        lambda note: note.update(v=None),
        lambda note: note.clear(),
        lambda note: note.update(attempt="many"),
    ),
    ids=range(9),
)
def test_a_broken_header(running, held, change):
    """Whatever the header about references contains, the task fails without running; the worker
    survives.
    """
    result = running.task("size").delay(big())
    held.resume(lambda body: change(body[2]["offload"]))
    running.failure(result)
    assert running.entered(result) == []


def test_a_serializer_that_is_not_accepted(running):
    """A reference to pickled content fails with SerializerNotAccepted if pickle isn't accepted, and
    fetches nothing.
    """
    app = running.publisher(conf={"accept_content": ["json", "pickle"]})
    before = running.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]
    result = running.task("size", app).delay([OnlyPickle(), BIG])
    error = running.failure(result)
    assert type(error) is SerializerNotAccepted
    assert "task 'size', value:" in str(error)
    assert "add it to accept_content or offload_accept" in str(error)
    after = running.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]
    assert after == before


class OnlyPickle:
    """A value that only pickle can serialize."""


def test_a_result_of_a_serializer_that_is_not_accepted(running):
    """For results, result_accept_content decides about the same reference."""
    app = running.publisher(conf={"accept_content": ["json", "pickle"]})
    ref = app.stowaway.put({OnlyPickle})
    result = running.task("take", app).delay("x")
    running.wait(result)
    app = running.publisher(
        conf={"accept_content": ["json", "pickle"], "result_accept_content": ["json"]}
    )
    store_result(running, result, ref.wire)
    again = app.AsyncResult(result.id)
    assert again.state == "SUCCESS"
    with pytest.raises(SerializerNotAccepted):
        again.get(timeout=10)


def store_result(setup, result, wire):
    """Write the reference *wire* as the stored result of *result*, bypassing the app."""
    import json

    key = f"celery-task-meta-{result.id}"
    meta = json.loads(setup.broker.get(key))
    meta["offload"] = wire
    setup.broker.set(key, json.dumps(meta))


@pytest.mark.parametrize("change", (("&n=6", "&n=7"), ("offload:1?", "offload:3?")))
def test_a_stored_result_that_was_changed(running, change):
    """A stored result shaped like a reference that was changed, or is newer, is refused when it is
    read, and never returned as data.
    """
    app = running.publisher()
    result = running.task("produce", app).delay(60_000 + next(UNIQUE))
    running.wait(result)
    wire = running.wire()
    assert change[0] in wire
    store_result(running, result, wire.replace(*change))
    again = running.publisher().AsyncResult(result.id)
    assert again.state == "SUCCESS"
    with pytest.raises(InvalidRef):
        again.get(timeout=10)


def test_a_changed_result_is_passed_on_changed(running):
    """A result that on_success changes and passes on arrives as changed, not as stored."""
    result = running.task("change_afterwards").delay(1000)
    running.wait(result)
    wait_until(lambda: running.broker.get(f"next:{result.id}"), "the next task was sent", 20)
    following = running.app.AsyncResult(running.broker.get(f"next:{result.id}").decode())
    assert running.wait(following).get() == ["list", 1001]
    assert len(result.get()) == 1000


def test_an_emptied_store(running):
    """After the store was emptied, including the key, publisher and worker recover within about a
    second: a refused reference makes the worker read the key again.
    """
    with redis_client(running_store(running)) as client:
        client.flushall()
    fresh = running.publisher()  # creates a new key
    wait_until(
        lambda: running.wait(running.task("size", fresh).delay(big())).state == "SUCCESS",
        "the worker has the new key",
        10,
    )
    # Both can read what the worker stores now.
    result = running.task("produce", fresh).delay(60_000 + next(UNIQUE))
    assert len(running.wait(result).get()) > 60_000
    assert len(running.app.AsyncResult(result.id).get()) > 60_000


def running_store(running):
    class Address:
        ca = None
        host = "127.0.0.1"
        port = running.stored.connection_pool.connection_kwargs["port"]

    return Address
