"""Reading results: what it costs and what it doesn't."""

from __future__ import annotations

import copy
import pickle
import uuid

import pytest
from celery import Celery, _state, states
from celery.backends.base import Backend, KeyValueStoreBackend
from celery.result import AsyncResult, GroupResult

from offload import Offload
from offload.errors import BlobMissing
from offload.hooks.celery_internals import RESULT_META
from offload.hooks.results import hook_backend
from offload.hooks.runtime import results_as_refs
from offload.ref import Keys

VALUE = list(range(20_000))


@pytest.fixture
def app():
    app = Celery("results", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.offload = Offload(app, store=f"memory://{uuid.uuid4()}")
    return app


def stored(app, value=VALUE) -> str:
    """Return the id of a task whose large result is stored."""
    ref = app.offload.put(value)
    task_id = str(uuid.uuid4())
    meta = {
        "status": states.SUCCESS,
        "result": ref.__json__(),
        "traceback": None,
        "children": [],
        "task_id": task_id,
    }
    backend = app.backend
    backend.set(backend.get_key_for_task(task_id), backend.encode(meta))
    return task_id


def fetched(app) -> int:
    return app.offload.counters.snapshot()["values_fetched"]


def test_a_chains_result_does_not_fetch_its_parents(app):
    """get() asks the parents whether they failed without fetching their values."""
    parent = app.AsyncResult(stored(app))
    result = app.AsyncResult(stored(app), parent=parent)
    assert result.get(timeout=5) == VALUE
    assert fetched(app) == 1


def test_the_state_is_known_without_the_value(app):
    """Polling a state fetches nothing, however the result object was created."""
    result = AsyncResult(stored(app), app=app)
    assert result.state == states.SUCCESS
    assert result.ready()
    assert result.successful()
    assert fetched(app) == 0


def test_a_value_is_fetched_once_for_one_result_object(app):
    """One result object returns one value object, as in plain Celery."""
    result = AsyncResult(stored(app), app=app)
    assert result.get(timeout=5) is result.result
    assert fetched(app) == 1


def test_all_of_a_results_metadata_has_the_value(app):
    """Metadata contains the value, never the wire text of its reference."""
    meta = AsyncResult(stored(app), app=app)._get_task_meta()
    for copied in (dict(meta), {**meta}, meta.copy(), dict(meta.items())):
        assert copied["result"] == VALUE
    assert fetched(app) == 1


# -- how cost grows


@pytest.fixture
def opened(monkeypatch):
    """Return the wire texts of all references that are opened."""
    texts = []
    original = Keys.open

    def counting(self, wire, *args):
        texts.append(wire)
        return original(self, wire, *args)

    monkeypatch.setattr(Keys, "open", counting)
    return texts


@pytest.fixture
def reads(app, monkeypatch):
    """Return the number of blobs in each read of the store."""
    counts = []
    blobs = app.offload.store.blobs
    original = blobs.get

    def counting(digests, limit):
        counts.append(len(digests))
        return original(digests, limit)

    monkeypatch.setattr(blobs, "get", counting)
    return counts


def group_of(app, *, values):
    """Return a group's result whose parts are stored."""
    return GroupResult(
        "group", [AsyncResult(stored(app, value), app=app) for value in values], app=app
    )


def test_asking_parents_for_errors_opens_no_reference(app, opened):
    """However often a chord's get() checks its parts, it doesn't verify their references again."""
    parts = group_of(app, values=[[n] * 20_000 for n in range(20)])
    body = AsyncResult(stored(app), app=app, parent=parts)
    opened.clear()
    for _ in range(50):
        body._maybe_reraise_parent_error()
    assert opened == []
    assert body.get(timeout=5) == VALUE
    assert len(opened) == 1


def test_a_result_object_opens_its_reference_once(app, opened):
    """However often it is read, as a reference or as a value, its reference is verified once."""
    result = AsyncResult(stored(app), app=app)
    opened.clear()
    with results_as_refs():
        assert result.result is result.result
    assert result.get(timeout=5) == VALUE
    assert len(opened) == 1


def test_a_failed_part_is_raised_by_the_chords_result(app):
    """An error of any part is raised, also among parts that succeeded and in nested groups."""
    failed = app.AsyncResult("failed")
    app.backend.mark_as_failure(failed.id, ValueError("no"))
    nested = GroupResult("outer", [group_of(app, values=[1]), GroupResult("in", [failed])], app=app)
    body = AsyncResult("pending", app=app, parent=nested)
    with pytest.raises(ValueError, match="no"):
        body.get(timeout=5)


@pytest.mark.parametrize("method", ("get", "join", "join_native"))
def test_a_groups_values_are_fetched_together(app, opened, reads, method):
    """A group's get() reads small values in a bounded number of round trips, and in order."""
    values = [[n] * 20_000 for n in range(40)]
    parts = group_of(app, values=values)
    opened.clear()
    reads.clear()
    assert getattr(parts, method)(timeout=5) == values
    assert reads == [40]
    assert len(opened) == 40


def test_a_groups_results_keep_their_values(app, reads):
    """join() leaves its value in each part's result object, as in plain Celery."""
    parts = group_of(app, values=[[n] * 20_000 for n in range(3)])
    joined = parts.join(timeout=5)
    assert all(part.result is value for part, value in zip(parts.results, joined, strict=True))
    assert reads == [3]


def test_values_of_nested_groups_and_small_ones_keep_their_places(app):
    """References in nested results are resolved in place, and data is unchanged."""
    small = AsyncResult("small", app=app)
    app.backend.store_result(small.id, {"a": 1}, states.SUCCESS)
    nested = group_of(app, values=[VALUE, [7] * 20_000])
    both = GroupResult("both", [small, nested, AsyncResult(stored(app), app=app)], app=app)
    assert both.join(timeout=5) == [{"a": 1}, [VALUE, [7] * 20_000], VALUE]


def test_a_callback_gets_each_value(app):
    """get(callback=…) passes values, as in plain Celery."""
    seen = {}
    parts = group_of(app, values=[VALUE, [7] * 20_000])
    parts.join(timeout=5, callback=seen.__setitem__)
    assert list(seen.values()) == [VALUE, [7] * 20_000]


@pytest.mark.parametrize("method", ("get", "join"))
def test_a_callback_reads_values_while_a_group_waits(redis, method):
    """A callback of then() can read results."""
    app = Celery("then", broker="memory://", backend=redis.url, set_as_current=False)
    app.offload = Offload(app, store=f"memory://{uuid.uuid4()}")
    parts = group_of(app, values=[VALUE, [7] * 20_000])
    seen = []
    for part in parts.results:
        part.then(lambda result: seen.append((result.get(), result.result)))
    values = getattr(parts, method)(timeout=5)
    assert values == [VALUE, [7] * 20_000]
    assert [*map(type, seen)] == [tuple, tuple]
    assert sorted(seen) == [(each, each) for each in values]
    app.backend.result_consumer.stop()
    app.close()


def test_a_function_called_while_a_group_waits_reads_values(app):
    """An on_interval function can read other results."""
    pending, other = app.AsyncResult("comes later"), stored(app)
    seen = []

    def arrive():
        seen.append(AsyncResult(other, app=app).get())
        app.backend.store_result(pending.id, 1, states.SUCCESS)

    parts = GroupResult("both", [AsyncResult(stored(app), app=app), pending], app=app)
    assert parts.join(timeout=5, interval=0.01, on_interval=arrive) == [VALUE, 1]
    assert seen[0] == VALUE


def test_backends_with_columns_of_their_own_keep_results_as_successes(app):
    """A result by reference reads as an error without offload only if the backend stores all
    metadata.
    """
    wire = app.offload.put(VALUE).__json__()
    states_stored = {
        kind: getattr(hook_backend(app.offload._runtime, kind(app=app)), RESULT_META)(
            wire, states.SUCCESS, None, None
        )["status"]
        for kind in (Backend, KeyValueStoreBackend)
    }
    assert states_stored == {Backend: states.SUCCESS, KeyValueStoreBackend: states.FAILURE}


def test_a_lost_part_of_a_group_is_named(app):
    """A part whose value is missing is named with the setting to change, as by its own get()."""
    lost = AsyncResult(stored(app, [9] * 20_000), app=app)
    app.offload.store.blobs.delete([app.backend.get_task_meta(lost.id).ref.digest])
    parts = GroupResult("lost", [AsyncResult(stored(app), app=app), lost], app=app)
    for get in (lost.get, parts.get, parts.join):
        with pytest.raises(BlobMissing, match="result_expires") as caught:
            get(timeout=5)
        assert caught.value.task == lost.id
        assert caught.value.argument == "result"


@pytest.mark.parametrize(
    "take",
    (
        lambda meta: meta.pop("result"),
        lambda meta: meta.setdefault("result", 1),
        lambda meta: pickle.loads(pickle.dumps(meta))["result"],
        lambda meta: copy.deepcopy(meta)["result"],
        lambda meta: (meta | {})["result"],
    ),
)
def test_metadata_never_gives_a_reference_in_wire_form(app, take):
    """However a result's metadata is read, its result is the value."""
    assert take(app.backend.get_task_meta(stored(app))) == VALUE


@pytest.mark.parametrize(
    "put", (lambda m: m.update(result=5), lambda m: m.__setitem__("result", 5))
)
def test_metadata_keeps_a_result_that_is_set(app, put):
    """A result that is set in the metadata is returned from it, and nothing is fetched."""
    meta = app.backend.get_task_meta(stored(app))
    put(meta)
    assert meta["result"] == dict(meta)["result"] == 5
    assert meta.pop("nothing", 7) == 7
    assert fetched(app) == 0


@pytest.mark.parametrize("copied", (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))))
def test_a_pickled_result_gives_its_value(app, monkeypatch, copied):
    """A pickled result, such as `GroupResult.save` stores in a database, can read its value."""
    monkeypatch.setattr(_state._tls, "current_app", app)
    result = copied(AsyncResult(stored(app), app=app))
    assert result.get(timeout=5) == VALUE
    group = copied(group_of(app, values=[VALUE, [7] * 20_000]))
    assert group.get(timeout=5) == [VALUE, [7] * 20_000]


@pytest.mark.parametrize("name", ("get", "maybe_throw"))
def test_a_result_class_of_the_users_gets_values(app, name):
    """A subclass of the user that reads its result sees the value, also in a group's join()."""

    def read(self, *args, **options):
        return sum(getattr(super(kind, self), name)(*args, **options))

    kind = type("Summed", (AsyncResult,), {name: read})
    parts = [kind(stored(app), app=app) for _ in range(2)]
    assert GroupResult("summed", parts, app=app).join(timeout=5) == [sum(VALUE)] * 2


def test_a_failed_part_of_a_group_is_raised_before_anything_is_fetched(app):
    """An error among the parts is raised before any value is fetched, as in plain Celery."""
    failed = app.AsyncResult("failed one")
    app.backend.mark_as_failure(failed.id, ValueError("no"))
    parts = GroupResult("mixed", [AsyncResult(stored(app), app=app), failed], app=app)
    with pytest.raises(ValueError, match="no"):
        parts.join(timeout=5)
    assert fetched(app) == 0
    values = parts.join(timeout=5, propagate=False)
    assert values[0] == VALUE
    assert isinstance(values[1], ValueError)
