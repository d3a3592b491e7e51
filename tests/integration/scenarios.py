"""Uses of Celery, each run once: ``python -m tests.integration.scenarios OUTPUT``.

Run every scenario against a running worker and write its outcome. The tests compare the outcomes
with plain Celery and with offload.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import celery
import celery.result
from celery import chain, chord, group, signature
from celery.canvas import StampingVisitor
from celery.result import GroupResult

from tests.integration import app as a
from tests.integration.values import big, typed

app = a.app
TIMEOUT = 20.0
SCENARIOS: dict[str, Callable[[], Any]] = {}
NEEDS: dict[str, frozenset[str]] = {}


def scenario(*needs: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a scenario; *needs* are features that some combinations lack."""

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        SCENARIOS[function.__name__] = function
        NEEDS[function.__name__] = frozenset(needs)
        return function

    return register


def get(result: Any) -> Any:
    return result.get(timeout=TIMEOUT)


def seen(key: str, count: int) -> list[Any]:
    """Return what was recorded for *key*, in a fixed order, once there are *count* records."""
    deadline = time.monotonic() + TIMEOUT
    while (found := a.notes.llen(f"seen:{key}")) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{found} of {count} were recorded for {key}")
        time.sleep(0.01)
    return sorted((pickle.loads(entry) for entry in a.notes.lrange(f"seen:{key}", 0, -1)), key=repr)


def members(signatures: Iterable[Any]) -> Iterable[Any]:
    """Return a group's signatures: as a generator, if Celery keeps the order of its results."""
    return signatures if celery.VERSION >= (5, 3, 4) else list(signatures)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + TIMEOUT
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)
    return result


# -- calls


@scenario()
def delay_positional():
    return get(a.echo.delay(big("positional")))


@scenario()
def delay_keyword():
    return get(a.everything.delay(big("one"), 2, named=big("named"), other=[1, big("inner")]))


@scenario()
def no_arguments():
    return [get(a.echo.delay()), get(a.everything.delay()), get(a.everything.delay(*()))]


@scenario()
def values_of_many_types():
    values = [None, True, 0, -1, 2**40, 0.5, "", "text", "é😀", [], {}, [[]], {"a": None}]
    return [get(a.echo.delay(value)) for value in values]


@scenario()
def keys_that_look_special():
    odd = [{"": 1}, {"1": [1]}, {"__offload__": 1}, {"offload": {"v": 1}}, {"args": [], "task": 1}]
    return [get(a.everything.delay(one, named=one)) for one in odd]


@scenario()
def many_arguments():
    return get(a.everything.delay(*[big(str(i), 3) for i in range(30)]))


@scenario()
def results_of_every_kind():
    out = []
    for value in (None, False, 0, "", [], {}, "x" * 5000, [None] * 500, {"k": [1, {"l": None}]}):
        result = a.echo.delay(value)
        out.append([get(result), result.result, result.successful(), result.state])
    return out


@scenario()
def by_name():
    return get(app.send_task("by.name.only", (big("by name"),), {"n": 3}))


@scenario()
def by_name_unknown_here():
    """Call a task that isn't registered in the publisher."""
    known = app._tasks.pop("by.name.only")
    try:
        return get(app.send_task("by.name.only", args=[big("unknown")], kwargs={"n": 4}))
    finally:
        app._tasks["by.name.only"] = known


@scenario()
def by_name_signature():
    return get(signature("by.name.only", args=(big("sig"),), app=app).apply_async())


@scenario()
def shared_task():
    return [get(a.shared.delay(big("shared"))), get(app.tasks["shared"].delay(big("again")))]


@scenario()
def class_based():
    task = app.tasks["class_based"]
    return [get(task.delay(big("class"))), get(task.s(big("sig"), n=2).apply_async())]


@scenario()
def own_serializer():
    return get(a.own_serializer.delay(big("own")))


@scenario()
def serializer_of_the_call():
    return get(a.echo.apply_async((big("call"),), serializer="json"))


@scenario()
def compressed_message():
    return get(a.echo.apply_async((big("compressed"),), compression="gzip"))


@scenario()
def request_arguments():
    return get(a.request_seen.delay(big("request"), 1, named=big("named")))


@scenario()
def countdown():
    return get(a.echo.apply_async((big("countdown"),), countdown=0.1))


@scenario()
def eta():
    when = datetime.now(timezone.utc) + timedelta(seconds=0.2)
    return get(a.echo.apply_async((big("eta"),), eta=when))


@scenario()
def expires_later():
    return get(a.echo.apply_async((big("expires"),), expires=60))


@scenario()
def expired():
    result = a.echo.apply_async((big("expired"),), expires=-1)
    until(result.ready)
    return [result.state, type(result.result).__name__]


@scenario()
def the_callers_objects_stay():
    """Publishing changes none of the caller's objects."""
    value = big("caller")
    before = copy.deepcopy(value)
    args, kwargs, link = [value], {"named": value}, a.pair.s(value)
    steps = chain(a.pair.s(value, [value]), a.pair.s(value))
    both = group(a.echo.s(value), a.pair.s(value)) | a.pair.s(value)
    written = [json.dumps(s) for s in (link, steps, both)]
    get(a.everything.apply_async(args, kwargs, link=link))
    get(steps())
    get(steps())
    first = args[0] is value and kwargs["named"] is value and value == before
    return [first, [json.dumps(s) for s in (link, steps)] == written[:2]]


@scenario()
def changed_in_place():
    """A result is what the task returned, not the argument that it changed."""
    same = big("change")
    steps = a.change.s(same) | a.change.s() | a.change.s()
    return [get(a.change.delay(same)), get(steps()), get(a.change.delay(same)), same]


@scenario()
def ignore_result():
    result = a.ignored.delay(big("ignored"), key="ignored")
    return [seen("ignored", 1), result.get(timeout=10) if result.ignored else "kept"]


@scenario()
def ignore_result_of_the_call():
    result = a.remember.apply_async((big(),), {"key": "ignored call"}, ignore_result=True)
    return [seen("ignored call", 1), result.get(timeout=10)]


@scenario()
def track_started():
    return get(a.started.delay(big("started")))


@scenario()
def acks_late():
    return get(a.late.delay(big("late")))


# -- canvas


@scenario()
def chain_of_three():
    result = chain(a.pair.s(big("1"), 2), a.pair.s(big("3")), a.pair.s(big("4")))()
    return [get(result), get(result.parent), get(result.parent.parent)]


@scenario()
def chain_by_pipes():
    return get((a.echo.s(big()) | a.echo.s() | a.echo.s() | a.pair.s("end"))())


@scenario()
def chain_with_immutable():
    return get(chain(a.echo.s(big("lost")), a.echo.si(big("kept")), a.pair.s(second=big("kw")))())


@scenario()
def chain_in_chain():
    inner = chain(a.pair.s(big("i")), a.pair.s("j"))
    return get(chain(a.echo.s(big("0")), inner, a.pair.s("k"))())


@scenario("group")
def group_of_several():
    return get(group(a.pair.s(big(str(i)), i) for i in range(5))())


@scenario("group")
def group_with_shared_argument():
    value = big("shared by all")
    return get(group(a.pair.s(value, i) for i in range(5))())


@scenario("group")
def group_called_with_partial():
    return get(group(a.pair.s(i) for i in range(3)).apply_async((big("partial"),)))


@scenario("group")
def group_iterated():
    result = group(a.pair.s(big(str(i)), i) for i in range(3))()
    return [[get(one) for one in result], result.join(timeout=TIMEOUT)]


@scenario("native")
def group_natively():
    result = group(a.pair.s(big(str(i)), i) for i in range(3))()
    metas = {i: m["result"] for i, m in result.iter_native(timeout=TIMEOUT)}
    again = group(a.pair.s(big(str(i)), i) for i in range(3))()
    joined = again.join_native(timeout=TIMEOUT)
    return [
        [metas[r.id] for r in result.results],
        joined,
        metas[result.results[0].id]["first"]
        if isinstance(metas[result.results[0].id], dict)
        else None,
    ]


@scenario("saves", "restored groups")
def group_saved_and_restored():
    result = group(a.pair.s(big(str(i)), i) for i in range(3))()
    result.save()
    restored = GroupResult.restore(result.id, app=app)
    return [restored.get(timeout=TIMEOUT), restored.successful(), restored.completed_count()]


@scenario("group")
def chain_of_groups():
    first = group(members(a.pair.s(big("g1"), i) for i in range(2)))
    second = group(members(a.pair.s(i) for i in range(2)))
    return get(chain(first, second)())


@scenario("chord")
def group_then_task():
    head = group(members(a.pair.s(big("up"), i) for i in range(3)))
    return get((head | a.pair.s(big("body")))())


@scenario("chord")
def task_group_task():
    middle = group(members(a.pair.s(i) for i in range(3)))
    steps = a.echo.s(big("head")) | middle | a.pair.s("end")
    return get(steps())


@scenario("chord")
def chord_of_five():
    return get(chord([a.pair.s(big(str(i)), i) for i in range(5)])(a.pair.s(big("body"))))


@scenario("chord")
def chord_from_generator():
    return get(chord(members(a.pair.s(big(str(i)), i) for i in range(3)))(a.echo.s()))


@scenario("chord")
def chord_of_one():
    return get(chord([a.echo.s(big("one"))])(a.pair.s("body")))


@scenario("chord")
def chord_with_immutable_body():
    return get(chord([a.echo.s(big("x")), a.echo.s(big("y"))])(a.echo.si(big("body"))))


@scenario("chord")
def chord_with_chain_body():
    body = a.pair.s("b1") | a.pair.s(big("b2"))
    return get(chord([a.echo.s(big("x")), a.echo.s(big("y"))])(body))


@scenario("chord")
def chord_of_chains():
    header = [chain(a.echo.s(big(str(i))), a.pair.s(i)) for i in range(3)]
    return get(chord(header)(a.echo.s()))


@scenario("chord")
def nested_chord():
    inner = chord([a.echo.s(big("i0")), a.echo.s(big("i1"))], a.pair.s("inner"))
    return get(chord([inner, a.echo.s(big("o"))])(a.pair.s("outer")))


@scenario("chord")
def chord_of_chords():
    parts = [chord([a.echo.s(big(f"{i}{j}")) for j in range(2)], a.pair.s(i)) for i in range(2)]
    return get(chord(parts)(a.pair.s("all")))


@scenario("chord")
def chord_in_chain():
    middle = chord([a.pair.s(1), a.pair.s(2)], a.pair.s("body"))
    return get((a.echo.s(big("first")) | middle | a.pair.s(big("last")))())


@scenario("chord")
def chord_with_small_and_large():
    return get(chord([a.echo.s(1), a.echo.s(None), a.echo.s(big("l"))])(a.echo.s()))


@scenario("chord")
def chord_with_failing_part():
    body = a.echo.s().on_error(a.old_errback.s(extra=big("extra"), key="chord error"))
    result = chord([a.echo.s(big("fine")), a.fail.s(big("bad"))])(body)
    until(result.ready)
    return [result.state, type(result.result).__name__, seen("chord error", 1)]


@scenario("chord")
def chord_with_failing_part_new_style():
    body = a.echo.s().on_error(a.new_errback.s(big("extra"), key="chord error new"))
    result = chord([a.echo.s(big("fine")), a.fail.s(big("bad"))])(body)
    until(result.ready)
    found = seen("chord error new", 1)
    return [result.state, len(found)]


@scenario()
def mapped():
    return get(a.echo.map([big(str(i)) for i in range(3)]).apply_async())


@scenario()
def starmapped():
    return get(a.pair.starmap([(big(str(i)), i) for i in range(3)]).apply_async())


@scenario("group")
def chunked():
    return get(a.pair.chunks([(big(str(i)), i) for i in range(5)], 2).apply_async())


@scenario("group")
def chunked_as_group():
    return get(a.pair.chunks([(big(str(i)), i) for i in range(5)], 2).group().apply_async())


@scenario()
def mapped_in_chain():
    steps = a.echo.s(big("lost")) | a.echo.map([big(str(i)) for i in range(3)]).set(immutable=True)
    return get((steps | a.pair.s("end"))())


@scenario("group")
def chunked_in_chain():
    chunks = a.remember.chunks([(big(str(i)), "chunked in chain") for i in range(5)], 2)
    (a.echo.s(big("lost")) | chunks)()
    return seen("chunked in chain", 5)


@scenario("chord")
def chord_embedded_with_generators():
    parts = group(a.pair.s(big(str(i))) for i in range(3))
    return get((a.echo.s(big("first")) | parts | a.pair.s(big("x")) | parts | a.pair.s("y"))())


@scenario()
def linked_one():
    link = a.remember.s(key="link one")
    return [get(a.pair.apply_async((big("l"), 1), link=link)), seen("link one", 1)]


@scenario()
def linked_several():
    links = [a.remember.s(key="link several"), a.pair.s(big()) | a.remember.s(key="link several")]
    return [get(a.pair.apply_async((big("l"), 1), link=links)), seen("link several", 2)]


@scenario()
def linked_group():
    links = group(a.remember.s(key="link group"), a.remember.s(key="link group"))
    return [get(a.echo.apply_async((big("l"),), link=links)), seen("link group", 2)]


@scenario()
def linked_with_own_arguments():
    link = a.pair.s(big("own")) | a.remember.s(key="link own")
    return [get(a.echo.apply_async((big("l"),), link=link)), seen("link own", 1)]


@scenario()
def link_error_old():
    error = a.old_errback.s(extra=big("extra"), key="old errback")
    result = a.fail.apply_async((big("f"),), link_error=error)
    until(result.ready)
    return [result.state, result.result, seen("old errback", 1)]


@scenario("bound errbacks")
def link_error_old_positional():
    """Call an error callback that takes only the task's id once its signature has the others."""
    error = a.old_errback_positional.s(big("extra"), key="old positional")
    result = a.fail.apply_async((big("f"),), link_error=error)
    until(result.ready)
    return [result.state, result.result, seen("old positional", 1)]


@scenario()
def link_error_new():
    error = a.new_errback.s(big("extra"), key="new errback")
    result = a.fail.apply_async((big("f"),), link_error=error)
    until(result.ready)
    return [result.state, result.result, seen("new errback", 1)]


@scenario()
def link_error_of_chain():
    error = a.new_errback.s(extra=big("extra"), key="chain errback")
    result = chain(a.echo.s(big("1")), a.fail.s(), a.echo.s()).apply_async(link_error=error)
    until(result.ready)
    return [result.state, result.parent.state, seen("chain errback", 1)]


@scenario()
def replaced_by_task():
    return get(a.replaced.delay(big("r"), "task"))


@scenario()
def replaced_by_chain():
    return get(a.replaced.delay(big("r"), "chain"))


@scenario("chord")
def replaced_by_group():
    return get(a.replaced.delay(big("r"), "group"))


@scenario("chord")
def replaced_by_chord():
    return get(a.replaced.delay(big("r"), "chord"))


@scenario()
def replaced_in_chain():
    return get((a.replaced.s(big("r"), "chain") | a.pair.s(big("after")))())


@scenario("chord")
def replaced_in_chord():
    parts = [a.replaced.s(big("r"), "task"), a.replaced.s(big("s"), "chain"), a.echo.s(big("t"))]
    return get(chord(parts)(a.pair.s("body")))


@scenario("chord")
def added_to_chord():
    return sorted(map(repr, get(chord([a.adds_to_chord.s(big("add"))])(a.echo.s()))))


@scenario()
def stamped():
    class Stamps(StampingVisitor):
        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            return {"mark": "stamp", "stamped_headers": ["mark"]}

    steps = a.pair.s(big("1"), 1) | a.pair.s(big("2"))
    steps.stamp(Stamps())
    return get(steps.apply_async())


@scenario()
def partials_and_clones():
    partial = a.everything.s(big("last"), named=big("n"))
    clone = partial.clone(args=(big("first"),), kwargs={"more": big("m")})
    with_more = partial.apply_async((), {"more": big("k")})
    return [get(result) for result in (clone.delay(), partial.delay(1), with_more)]


@scenario()
def signature_as_dict():
    """A signature that went through JSON is still a signature."""
    sig = json.loads(json.dumps(a.pair.s(big("1"), 2) | a.pair.s(big("3"))))
    return get(signature(sig, app=app).apply_async())


@scenario()
def signature_as_argument():
    """A task receives a signature, calls it, and passes it on to another task that does."""
    call = a.remember.s(big("inner"), key="launched")
    return [get(a.launch.delay([call], call, times=2)), seen("launched", 4)]


@scenario()
def spawned_in_a_task():
    return [get(a.spawn.delay(big("spawn"), key="spawned")), seen("spawned", 2)]


# -- retries


@scenario()
def retried():
    return get(a.flaky.delay(big("retry"), 2))


@scenario()
def retried_with_changed_arguments():
    return get(a.flaky_changed.delay(big("changed"), times=2))


@scenario()
def retried_in_chain():
    return get((a.flaky.s(big("retry"), 1) | a.pair.s(big("after")))())


@scenario("chord")
def retried_in_chord():
    return get(chord([a.flaky.s(big("c"), 1), a.echo.s(big("d"))])(a.pair.s("body")))


@scenario()
def retried_in_vain():
    result = a.never.delay(big("never"))
    until(result.ready)
    return [result.state, result.result]


@scenario()
def retried_in_vain_by_itself():
    result = a.never_by_itself.delay(big("never"))
    until(result.ready)
    return [result.state, type(result.result).__name__]


@scenario()
def autoretried():
    return get(a.autoretried.delay(big("auto"), 2))


@scenario()
def autoretried_in_vain():
    result = a.autoretried.delay(big("auto"), 99)
    until(result.ready)
    return [result.state, result.result]


@scenario("time limit")
def link_error_of_a_killed_task():
    """Call error callbacks from the worker's main process, not the task's.

    Celery does so at the time limit and once more when the process has exited; how much is recorded
    by then varies.
    """
    error = a.old_errback.s(extra=big("extra"), key="killed")
    result = a.endless.apply_async((big("endless"),), link_error=error)
    until(result.ready)
    return [result.state, type(result.result).__name__, seen("killed", 1)[0]]


# -- hooks and signals


@scenario()
def hooks_see_values():
    return [get(a.watched.delay(big("watched"), key="watched")), seen("watched", 7)]


@scenario()
def hooks_see_values_of_failures():
    result = a.watched_failure.delay(big("watched"), key="watched failure")
    until(result.ready)
    return [result.state, result.result, seen("watched failure", 7)]


@scenario()
def hooks_see_values_of_retries():
    result = a.watched.delay(big("watched"), key="watched retry", retries=1)
    return [get(result), seen("watched retry", 11)]


# -- results


@scenario("any reader")
def result_made_anywhere():
    result = a.echo.delay(big("anywhere"))
    get(result)
    made = celery.result.AsyncResult(result.id)
    own = app.AsyncResult(result.id)
    return [made.get(timeout=TIMEOUT), made.result, own.info, own.get(timeout=TIMEOUT), made.state]


@scenario("any reader")
def metadata_of_a_result():
    result = a.echo.delay(big("meta"))
    get(result)
    meta = app.backend.get_task_meta(result.id)
    found = [meta["result"], meta.get("result"), dict(meta.items())["result"], meta["status"]]
    return [*found, meta.copy()["result"], list(meta.values()).count(meta["result"])]


@scenario("extended")
def extended_result():
    result = a.pair.delay(big("ext"), second=2)
    get(result)
    again = celery.result.AsyncResult(result.id)
    args, kwargs = again.args, again.kwargs  # with offload, references that can be read
    if a.CONFIG["offload"]:
        args, kwargs = [ref.get() for ref in args], {key: kwargs[key].get() for key in kwargs}
    return [again.name, args, kwargs, again.retries, again.queue]


@scenario("any reader")
def forgotten():
    result = a.echo.delay(big("forget"))
    get(result)
    result.forget()
    return [app.AsyncResult(result.id).state, app.AsyncResult(result.id).result]


@scenario("any reader")
def states_and_metadata():
    result = a.progress.delay(big("progress"), key="progress")
    return [get(result), seen("progress", 2)]


@scenario()
def failure_with_value():
    result = a.fail.delay(big("failure"))
    try:
        get(result)
    except ValueError as exc:
        return [exc, result.state, result.failed(), "on purpose" in result.traceback]


def failure(result):
    """Return what a reader learns about a task that failed."""
    error = result.get(timeout=TIMEOUT, propagate=False)
    kind = type(error)
    names = (kind.__module__, kind.__qualname__, kind.__mro__[1].__name__)
    return [result.state, names, error, result.info is error, result.traceback]


@scenario()
def large_failures():
    kinds = ("message", "cause", "refused", "unknown")
    results = [a.fail_largely.delay(kind) for kind in kinds]
    return [failure(result) for result in results]


@scenario()
def large_failure_and_errbacks():
    errbacks = [a.new_errback.s(key="large new"), a.old_errback.s(key="large old")]
    result = a.fail_largely.apply_async(("refused",), link_error=errbacks)
    return [failure(result), seen("large new", 1), len(seen("large old", 1))]


@scenario("chord")
def large_failure_in_chord():
    result = chord([a.echo.s(1), a.fail_largely.s("message")])(a.echo.s())
    *found, _ = failure(result)  # how the chord's traceback looks depends on who joined the parts
    return without_ids(found, result)


def without_ids(found, result):
    text = repr(found)
    for part in result.parent.results:
        text = text.replace(part.id, "<part>")
    return text


@scenario()
def large_failure_in_chain():
    result = chain(a.fail_largely.s("refused"), a.echo.s()).apply_async()
    return [failure(result.parent), failure(result)]


@scenario("any reader")
def large_retry():
    result = a.fail_largely.delay("retry")
    until(lambda: result.state == "RETRY")
    waiting = [result.info, result.traceback]
    return [waiting, failure(result)]


@scenario("any reader")
def large_progress():
    result = a.progress_largely.delay("large progress")
    return [get(result), seen("large progress", 3)]


@scenario("any reader")
def result_stored_by_hand():
    """Results that no task returned are stored as in plain Celery."""
    app.backend.store_result("by-hand", big("hand"), "SUCCESS")
    return [app.AsyncResult("by-hand").result, app.AsyncResult("by-hand").state]


@scenario()
def on_ready_promise():
    result = a.echo.delay(big("then"))
    found: list[Any] = []
    if not hasattr(app.backend, "result_consumer"):
        return None
    get(result)
    result.then(lambda r: found.append(r.result))
    return found


@scenario()
def collected():
    return [value for _, value in (a.echo.s(big("collect")) | a.pair.s(1))().collect()]


# -- eager


@contextmanager
def eager(**conf: Any) -> Any:
    before = {key: app.conf[key] for key in ("task_always_eager", *conf)}
    app.conf.update(task_always_eager=True, **conf)
    try:
        yield
    finally:
        app.conf.update(before)


@scenario()
def applied():
    return [
        get(a.pair.apply((big("apply"), 1))),
        get(a.pair.s(big("s"), 2).apply()),
        get((a.pair.s(big("c"), 3) | a.pair.s(4)).apply()),
        get(a.request_seen.apply((big("r"),), {"k": 1})),
        get(a.flaky.apply((big("f"), 2))),
        a.pair(big("direct"), 1),
    ]


@scenario()
def always_eager():
    with eager():
        return [
            get(a.echo.delay(big("eager"))),
            get(chain(a.pair.s(big("1"), 2), a.pair.s(3))()),
            get(group(a.pair.s(big(str(i)), i) for i in range(2))()),
            get(a.echo.map([big("m")]).apply_async()),
            get(a.watched.delay(big("w"), key="eager")),
            len(seen("eager", 7)),
            a.fail.delay(big("f")).state,
        ]


@scenario("any reader")
def eager_results_stored():
    a.echo.store_eager_result = True
    try:
        with eager():
            result = a.echo.delay(big("stored"))
    finally:
        a.echo.store_eager_result = False
    return [celery.result.AsyncResult(result.id, app=app).get(timeout=TIMEOUT)]


def main() -> None:
    lacking = set(a.CONFIG["lacking"])
    only = a.CONFIG.get("only")
    outcomes: dict[str, Any] = {}
    if celery.VERSION < (5, 7):
        gc.disable()  # one that finalizes a result can wait forever for a lock of redis-py 5
    for name, function in SCENARIOS.items():
        if lacking & NEEDS[name] or (only and name not in only) or name in a.CONFIG["without"]:
            continue
        start = time.monotonic()
        try:
            outcomes[name] = typed(function())
        except Exception as exc:
            traceback.print_exc()
            outcomes[name] = ("scenario raised", type(exc).__name__, str(exc))
        print(f"{time.monotonic() - start:6.2f} s  {name}", flush=True)
    Path(sys.argv[1]).write_bytes(pickle.dumps(outcomes))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # results that are still waited for log errors at a regular exit


if __name__ == "__main__":
    main()
