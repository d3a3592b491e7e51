"""Faults while a worker gets a task's arguments: typed, reported, and never a wrong value."""

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
    """A large value that nothing has stored yet."""
    return f"{next(UNIQUE):09d}" + BIG


@pytest.fixture
def held(running):
    """What the test sends waits in the broker until `let_go`."""
    running.hold()
    return running


def only_blob(setup, before):
    (key,) = set(setup.blobs()) - set(before)
    return key


# -- the content is gone or altered


@pytest.mark.parametrize("name", ("size", "eager_to_retry", "carefully"))
@pytest.mark.parametrize("fault", ("gone", "altered", "replaced"))
def test_content_that_is_gone_or_altered(running, held, name, fault):
    """The task fails at once with an error naming task, argument, digest, store and age; it is
    not retried, not even by autoretry_for=(Exception,); its function and its before_start do
    not run; its error callback does.
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
    held.let_go()
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
    """Of several arguments the one concerned is named, wherever it stands."""
    before = running.blobs()
    bad = big()
    running.offload.put(bad)
    key = only_blob(running, before)
    result = running.task("take").delay(BIG, config=bad)
    running.stored.delete(key)
    held.let_go()
    assert "task 'take', config:" in str(running.failure(result))


def test_a_chord_with_such_a_part_fails(running, held):
    """A chord fails with a chord error rather than hanging; body and parts call errbacks."""
    before = running.blobs()
    take, total = running.task("take"), running.task("total")
    body = total.s().on_error(running.task("note_error").s())
    bad = big()
    result = chord([take.s(BIG), take.s(bad), take.s(BIG + "2")])(body)
    # The second part's message holds the reference of what is deleted.
    wire = running.offload.put(bad).digest
    running.stored.delete(f"offload:blob:{{{wire}}}")
    assert set(running.blobs()) - set(before)
    held.let_go()
    error = running.failure(result)
    assert type(error).__name__ == "ChordError"
    assert "BlobMissing" in str(error)
    assert running.entered(result) == []
    wait_until(lambda: running.errbacks(result), "the body's error callback ran", 20)


def test_a_chord_whose_stored_part_is_gone_fails(running):
    """A part whose result is gone when the body wants it fails the body, and says which."""
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


def test_a_result_that_is_gone(running):
    """Asking for a result whose content is gone is BlobMissing for who asks, and the state is
    told all the same.
    """
    before = running.blobs()
    result = running.task("produce").delay(60_000 + next(UNIQUE))
    running.wait(result)
    running.stored.delete(only_blob(running, before))
    assert result.state == "SUCCESS"
    with pytest.raises(BlobMissing, match=" s old"):
        result.get(timeout=10)


# -- the store does not answer


def test_an_absent_store_sends_the_task_again(running):
    """A task that cannot get its arguments is sent again until the store is back, then runs
    once, with its own count of retries untouched; and that is all that is seen of it.
    """
    result = running.task("retry_once").apply_async((big(),), countdown=1)
    running.proxy.refuse()
    wait_until(lambda: result.state == "RETRY", "the task is being sent again", 30)
    assert running.entered(result) == []
    running.proxy.restore()
    running.wait(result)
    # Its own retry, of which it has one, is all that it used.
    assert result.get() == [1, len(BIG) + 9]
    assert [seen[-1] for seen in running.entered(result)] == [0, 1]


def test_a_store_that_stays_away_fails_the_task(running):
    """In the end the task fails with StoreUnavailable, naming task and argument, its error
    callback runs, and it was never entered; autoretry has no part in it.
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
    """A store that takes connections and never answers is an absent store."""
    result = running.task("size").apply_async((big(),), countdown=1)
    running.proxy.blackhole()
    assert type(running.failure(result)) is StoreUnavailable


def test_small_tasks_go_on(running):
    """While the store is away, tasks without references run as ever."""
    running.proxy.refuse()
    result = running.task("size").delay("small")
    running.wait(result)
    assert result.get() == ["str", 5]


def test_a_result_that_cannot_be_stored(running):
    """A task whose large result cannot be stored fails with a typed error that says so."""
    running.proxy.refuse()
    result = running.task("produce").delay(60_000 + next(UNIQUE))
    error = running.failure(result)
    assert type(error) is StoreUnavailable
    assert "task 'produce', result:" in str(error)


def test_a_store_that_was_restarted(running):
    """Connections that died with the server's restart are made anew, in worker and publisher:
    content stored after it is fetched.
    """
    first = running.task("size").delay(big())
    running.wait(first)
    running.stored.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    result = running.task("size").delay(big())
    assert running.wait(result).get() == ["str", len(BIG) + 9]


# -- references that are not to be opened


def test_a_changed_reference(running, held):
    """A reference with one character changed in the broker fails the task as InvalidRef; it is
    counted and nothing is fetched; an error callback's own large argument is refused with it,
    and never handed over as the data of a reference.
    """
    result = running.task("size").apply_async(
        (big(),), link_error=running.task("note_error_with").s(BIG)
    )
    before = running.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]

    def change(body):
        for node in (body[0][0], body[2]["offload"]["errbacks"][0]["args"][0]):
            node["__offload__"] = node["__offload__"].replace("&n=6", "&n=7")

    held.let_go(change)
    error = running.failure(result)
    assert type(error) is InvalidRef
    assert "task 'size', value: a reference has no valid signature" in str(error)
    assert running.entered(result) == []
    probe = running.task("size").delay("small")
    running.wait(probe)  # the worker has been through with the callback
    assert running.errbacks(result) == []
    after = running.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]
    assert after == before


@pytest.mark.parametrize("what", ("message", "reference"))
def test_a_newer_version(running, held, what):
    """A message or a reference by a newer version fails with UnsupportedVersion that says what
    to upgrade; its error callbacks get no reference for data either.
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
            node["__offload__"] = node["__offload__"].replace("offload:1?", "offload:2?")

    held.let_go(change)
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
def test_a_broken_note(running, held, change):
    """Whatever the note on references says, the task fails and is not entered; the worker lives."""
    result = running.task("size").delay(big())
    held.let_go(lambda body: change(body[2]["offload"]))
    running.failure(result)
    assert running.entered(result) == []


def test_a_serializer_that_is_not_accepted(running):
    """A reference to pickled content fails with SerializerNotAccepted where pickle is not
    accepted, and nothing is fetched.
    """
    app = running.publisher(conf={"accept_content": ["json", "pickle"]})
    before = running.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]
    result = running.task("size", app).delay([UncalledFor(), BIG])
    error = running.failure(result)
    assert type(error) is SerializerNotAccepted
    assert "task 'size', value:" in str(error)
    assert "add it to accept_content or offload_accept" in str(error)
    after = running.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]
    assert after == before


class UncalledFor:
    """Something that only pickle carries."""


def test_a_result_of_a_serializer_that_is_not_accepted(running):
    """For results result_accept_content counts: the same reference is refused there."""
    app = running.publisher(conf={"accept_content": ["json", "pickle"]})
    ref = app.stowaway.put({UncalledFor})
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
    """Write the reference *wire* as the stored result of *result*, behind everything's back."""
    import json

    key = f"celery-task-meta-{result.id}"
    meta = json.loads(setup.broker.get(key))
    meta["offload"] = wire
    setup.broker.set(key, json.dumps(meta))


@pytest.mark.parametrize("change", (("&n=6", "&n=7"), ("offload:1?", "offload:2?")))
def test_a_stored_result_that_was_changed(running, change):
    """A stored result that has a reference's form but was changed, or is newer, is refused for
    who asks for it, never handed out as data.
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
    """What on_success changes in a result and passes on arrives as changed, not as stored."""
    result = running.task("change_afterwards").delay(1000)
    running.wait(result)
    wait_until(lambda: running.broker.get(f"next:{result.id}"), "the next task was sent", 20)
    following = running.app.AsyncResult(running.broker.get(f"next:{result.id}").decode())
    assert running.wait(following).get() == ["list", 1001]
    assert len(result.get()) == 1000


def test_an_emptied_store(running):
    """After the store was emptied, key and all, publisher and worker go on by themselves, in
    about a second: a refused reference makes the worker look at the key again.
    """
    with redis_client(running_store(running)) as client:
        client.flushall()
    fresh = running.publisher()  # it makes a new key
    wait_until(
        lambda: running.wait(running.task("size", fresh).delay(big())).state == "SUCCESS",
        "the worker has the new key",
        10,
    )
    # What the worker stores now is read by both.
    result = running.task("produce", fresh).delay(60_000 + next(UNIQUE))
    assert len(running.wait(result).get()) > 60_000
    assert len(running.app.AsyncResult(result.id).get()) > 60_000


def running_store(running):
    class Address:
        ca = None
        host = "127.0.0.1"
        port = running.stored.connection_pool.connection_kwargs["port"]

    return Address
