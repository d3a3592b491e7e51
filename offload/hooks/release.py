"""Release holds: a message's once its task has finished, a result's once it can't be read.

Holds are only released if that is certainly safe. A message that went to a dead letter queue, or
that other workers may have copies of, releases nothing: its values expire by their retention.

Redis and Memcached forget a result after ``result_expires``. A database row stays readable until
``celery.backend_cleanup`` deletes it, and forever if that never runs. So the hold of its value
doesn't expire: the cleanup releases it, as ``forget()`` does.

Celery's Redis backend collects a chord's parts under one key, whose expiry each returning part
extends. The parts' values are held for a quarter longer than that key, so a process that has
extended them needn't do so again for that time. Until a quarter of the expiry has passed since the
chord began, returning parts cost nothing.
"""

from __future__ import annotations

import logging
import queue
import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from celery import signals, states
from kombu.transport import virtual

from offload.content.holds import Hold, holder
from offload.content.manifest import SINGLE
from offload.errors import OffloadError
from offload.forks import start_thread
from offload.hooks.celery_internals import collected_parts, collects_parts, counts_parts
from offload.hooks.message import body_of, task_holder
from offload.hooks.runtime import Runtime
from offload.ref import Ref, has_wire_form, wire_text
from offload.settings import TaskOptions
from offload.stores.capabilities import chunk_size_of
from offload.stores.processes import PerProcess

logger = logging.getLogger(__name__)

UNIQUE = "u"
"""Start of the suffix of a state whose stored value nothing else shares."""
_BRIEFLY = 60.0

CLEANED_DAILY = 86400.0
"""Seconds between two cleanups of a result backend, by Celery's own schedule for beat."""

_FINAL = frozenset({states.SUCCESS, states.FAILURE, states.RETRY, states.IGNORED, states.REVOKED})
_FINISH_TIMEOUT = 5.0  # seconds for which the end of a worker's process waits for releases
_DEFERRED = 0.2  # seconds for which releases wait for a request that carries them
_RETRY = 10.0  # seconds until deferred releases are retried after a store error
_QUEUE_LIMIT = 10_000  # releases waiting for the thread; further ones expire by retention
_FOREVER = 10 * 365 * 86400.0  # for results that never expire
_CLEANUP_MARGIN = timedelta(minutes=1)  # results that expire just before a cleanup reads them
_PART_SHARE = 0.25
_CHORDS_REMEMBERED = 1000


# -- messages


def is_done(app: Any, task: Any, state: str, delivery_info: Mapping[str, Any] | None) -> bool:
    """Return whether the message of a task that ended in *state* can't be delivered again, here
    or to another consumer. May ask the broker.
    """
    return has_ended(task, state) and is_only_copy(app, delivery_info)


def has_ended(task: Any, state: str) -> bool:
    """Return whether a message that ended in *state* is neither requeued nor dead-lettered.

    A retry is another message with its own holds.
    """
    if state not in _FINAL:
        return False
    return not (state == states.FAILURE and task.acks_late and not _acks_failures(task))


def _acks_failures(task: Any) -> bool:
    names = ("acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout")
    return all(getattr(task, name, True) is not False for name in names)


def is_only_copy(app: Any, delivery_info: Mapping[str, Any] | None) -> bool:
    """Return whether a message certainly went to a single queue.

    The default exchange delivers to the queue it names. A named direct exchange delivers to
    every queue bound by the routing key, and other services may have bound theirs: only the
    broker knows. Fanout and topic exchanges are never certain.
    """
    if not isinstance(delivery_info, Mapping):  # a message may say anything
        return False
    exchange = delivery_info.get("exchange")
    if not exchange:
        return exchange == ""
    queues = list(app.amqp.queues.values())  # threads that publish may add some
    kinds = {
        bound.exchange.type
        for each in queues
        for bound in (each, *(each.bindings or ()))
        if bound.exchange is not None and bound.exchange.name == exchange
    }
    key = delivery_info.get("routing_key")
    return kinds == {"direct"} and _count_bound(app, exchange, key) == 1


def _count_bound(app: Any, exchange: str, key: Any) -> int | None:
    """Return how many queues the broker binds to *exchange* by *key*; None if unknown.

    AMQP can't be asked. Of kombu's virtual transports, those that share their bindings among
    processes can: Redis, the file system, and MongoDB.
    """
    try:
        with app.connection_or_acquire() as connection:
            connection.ensure_connection(max_retries=1)  # by default it retries forever
            channel = connection.default_channel
            read = getattr(type(channel), "get_table", None)
            if read is None or read is virtual.Channel.get_table:
                return None
            return len({queue for bound, _, queue in read(channel, exchange) if bound == key})
    except Exception as exc:
        logger.info("the broker doesn't say which queues are bound to %r: %r", exchange, exc)
        return None


def release(runtime: Runtime, refs: Iterable[Ref[Any]], name: str, *, later: bool = False) -> None:
    """Release the holds of *name*. Failures are counted; the holds then expire by retention.

    Never raises, not even for a time limit that is reached meanwhile: others know the outcome of
    the task by now, so this must not be reported as its failure.

    Args:
        later: in a worker, release along with the process's next request to the store, if it allows
            that. So a busy worker makes no request for this. Otherwise a thread makes one soon.
    """
    try:
        content = runtime.content
        opened = [*map(content.opened, refs)]
        grace, later = _grace_of(runtime, opened, name), later and runtime.is_worker
        if content.holds.release(opened, name, grace, later=later):
            runtime.part(Releaser).flush_soon()
    except Exception as exc:
        runtime.counters.add(releases_failed=1)
        expected = isinstance(exc, OffloadError)
        logger.log(
            logging.INFO if expected else logging.WARNING,
            "the values of %s aren't released, and stay until they expire: %r",
            name,
            exc,
            exc_info=not expected,
        )


def new_suffix(kind: str = "") -> str:
    """Return a new suffix for `progress_holder`.

    Each state's value has a holder of its own: two may share chunks, and one is released.

    Args:
        kind: `UNIQUE` or empty.
    """
    return kind + secrets.token_hex(4)


def progress_holder(task_id: str, suffix: str) -> str:
    """Return the holder of the value of a state that another one will replace."""
    return holder("progress", f"{task_id}+{suffix}")


def _grace_of(runtime: Runtime, refs: Sequence[Ref[Any]], name: str) -> float:
    """Return for how many seconds released values stay.

    A value that no message can have only needs to outlast readers that have just read its
    reference. A task may replace its progress many times a second.
    """
    kind, _, suffix = name.partition(":")
    if (
        kind == "progress"
        and suffix.rpartition("+")[2].startswith(UNIQUE)
        and chunk_size_of(runtime.store) is None  # chunks may be shared
        and all(ref.size < SINGLE for ref in refs)
    ):
        return min(runtime.grace, _BRIEFLY)
    return runtime.grace


_Release = tuple[list[str], str, Mapping[str, Any] | None]


class _Jobs(queue.Queue["_Release | threading.Event | None"]):
    """Releases, events to be set, and None to look at `flush_at` again, for the thread.

    Attributes:
        flush_at: when deferred releases are due, by the monotonic clock; None: there are none.
    """

    flush_at: float | None = None


class Releaser:
    """Releases in a thread: for a worker's main process, which must not wait for the store; and for
    deferred releases that no request carried.

    Each process starts the thread when it is first needed, and waits for it when it ends.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._jobs = PerProcess(self._start)

    def submit(
        self, wires: Iterable[str], name: str, delivery_info: Mapping[str, Any] | None
    ) -> None:
        """Release the holds of *name* on these references soon, unless another queue may have a
        copy of the message.
        """
        try:
            self._jobs.get().put_nowait((list(wires), name, delivery_info))
        except (queue.Full, RuntimeError):  # or no more threads can be started
            self._runtime.counters.add(releases_failed=1)

    def flush_soon(self, seconds: float = _DEFERRED, *, postpone: bool = False) -> None:
        """Send deferred releases and results in *seconds*, unless other requests carry them first.

        Args:
            postpone: restart the wait: a request sent since the last call has carried what was
                deferred then.
        """
        try:
            jobs = self._jobs.get()
            due, before = time.monotonic() + seconds, jobs.flush_at
            if before is None or before > due:
                jobs.flush_at = due
                jobs.put_nowait(None)
            elif postpone:
                jobs.flush_at = due
        except queue.Full:  # the thread will see it after its next job
            pass
        except RuntimeError:
            self._flush()

    def finish(self, **_signal: Any) -> None:
        """Wait until what was submitted and deferred is released, at most 5 s; end the thread."""
        jobs = self._jobs.take()
        if jobs is None:
            return
        done, deadline = threading.Event(), time.monotonic() + _FINISH_TIMEOUT
        try:
            jobs.put(done, timeout=_FINISH_TIMEOUT)
        except queue.Full:
            return
        done.wait(deadline - time.monotonic())

    def _start(self) -> _Jobs:
        jobs = _Jobs(_QUEUE_LIMIT)
        # Before Celery 5.7, the methods of all instances would otherwise be one receiver.
        own = f"offload-release-{id(self)}"
        signals.worker_shutdown.connect(self.finish, dispatch_uid=own)
        signals.worker_process_shutdown.connect(self.finish, dispatch_uid=own)
        start_thread(self._run, "offload-release", jobs)
        return jobs

    def _run(self, jobs: _Jobs) -> None:
        while True:
            try:
                job = jobs.get(timeout=_seconds_left(jobs.flush_at))
            except queue.Empty:
                job = None
            if isinstance(job, threading.Event):
                self._flush()
                job.set()
                return
            if job is not None:
                wires, name, delivery_info = job
                if is_only_copy(self._runtime.app, delivery_info):
                    release(self._runtime, map(Ref.unbound, wires), name)
            if _seconds_left(jobs.flush_at) == 0.0:
                jobs.flush_at = None  # what is deferred from now on sets it again
                if not self._flush():
                    jobs.flush_at = time.monotonic() + _RETRY

    def _flush(self) -> bool:
        """Send what is deferred; return whether that succeeded."""
        try:
            failed = self._runtime.content.holds.release_deferred()
        except Exception as exc:
            logger.info("holds of finished tasks aren't released yet: %r", exc)
            return False
        if failed:
            self._runtime.counters.add(releases_failed=failed)
        return True


def _seconds_left(until: float | None) -> float | None:
    return None if until is None else max(until - time.monotonic(), 0.0)


# -- results


def result_ttl(runtime: Runtime, options: TaskOptions) -> float:
    """Return for how many seconds a stored result is needed. A retention that is set prolongs
    this; its default doesn't.
    """
    expires = runtime.result_expires
    if expires is not None and keeps_rows(runtime.app.backend):
        # Until a cleanup releases it; where nothing can be released, until the next one.
        expires = _FOREVER if runtime.store.blobs.tracks_holds else expires + CLEANED_DAILY
    return max(options.retention or 0.0, expires or _FOREVER)


def state_ttl(runtime: Runtime, options: TaskOptions) -> float:
    """Return for how many seconds a state that another one will replace is needed.

    If the task dies, nothing releases it. So it expires in every backend.
    """
    expires = runtime.result_expires
    if expires is not None and keeps_rows(runtime.app.backend):
        expires += CLEANED_DAILY
    return max(options.retention or 0.0, expires or _FOREVER)


def keeps_rows(backend: Any) -> bool:
    """Return whether *backend* keeps results until its cleanup and can list expired ones."""
    return _finder(backend) is not None


def cleanup_releasing(
    runtime: Runtime, backend: Any, find: Callable[[str], tuple[Ref[Any], str] | None]
) -> Callable[..., Any]:
    """Wrap the backend's ``cleanup`` to release the values of the results that it deletes.

    Expired results are released first, so that nothing leaks if the cleanup is interrupted; the
    values live for the grace period in any case.

    Args:
        find: returns the reference of a task's result, and its holder; None if it has none.
    """
    cleanup: Callable[..., Any] = backend.cleanup
    finder = _finder(backend)

    def offload_cleanup(*args: Any, **options: Any) -> Any:
        expires = runtime.result_expires
        if finder is None or expires is None or not runtime.store.blobs.tracks_holds:
            return cleanup(*args, **options)
        before = datetime.now(timezone.utc) - timedelta(seconds=expires)
        expired = set(finder(backend, before))
        about_to = {
            task_id: found
            for task_id in set(finder(backend, before + _CLEANUP_MARGIN)) - expired
            if (found := find(task_id)) is not None
        }
        for task_id in expired:
            if (found := find(task_id)) is not None:
                release(runtime, [found[0]], found[1])
        done = cleanup(*args, **options)
        for task_id, (ref, held_by) in about_to.items():
            if find(task_id) is None:
                release(runtime, [ref], held_by)
        return done

    return offload_cleanup


_Finder = Callable[[Any, datetime], Iterable[str]]


def _finder(backend: Any) -> _Finder | None:
    """Return a function that yields the ids of results to be cleaned up; None for an unknown
    backend, or one that needs no cleanup. Imports nothing.
    """
    for (module, name), finder in _FINDERS.items():
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(backend, kind):
            return finder
    return None


def _in_database(backend: Any, before: datetime) -> Iterator[str]:
    task = backend.task_cls
    session = backend.ResultSession()
    try:
        rows = session.query(task.task_id).filter(task.date_done < before).all()
    finally:
        session.close()
    return (row[0] for row in rows)


def _in_django(backend: Any, before: datetime) -> Iterator[str]:
    rows = backend.TaskModel.objects.filter(date_done__lt=before)
    return iter(list(rows.values_list("task_id", flat=True)))


def _in_files(backend: Any, before: datetime) -> Iterator[str]:
    prefix = _text(backend.task_keyprefix)
    for path in Path(_text(backend.path)).glob(f"{prefix}*"):
        if path.stat().st_mtime < before.timestamp():
            yield path.name[len(prefix) :]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


_FINDERS: dict[tuple[str, str], _Finder] = {
    ("celery.backends.database", "DatabaseBackend"): _in_database,
    ("django_celery_results.backends.database", "DatabaseBackend"): _in_django,
    ("celery.backends.filesystem", "FilesystemBackend"): _in_files,
}


# -- parts of chords


def part_ttl(backend: Any) -> float:
    """Return for how many seconds the result of a chord's part is held; 0 if the backend keeps it
    as any other result, or never forgets it.
    """
    if counts_parts(backend):  # nothing extends its parts
        return float(getattr(backend, "chord_expires", 0.0) or 0.0)
    return _parts_expire(backend) * (1 + _PART_SHARE)


def _parts_expire(backend: Any) -> float:
    if not collects_parts(backend):
        return 0.0
    return float(getattr(backend, "chord_expires", backend.expires) or 0.0)


class PartKeeper:
    """Extends the holds on results of earlier parts of long chords."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._extended: OrderedDict[str, float] = OrderedDict()

    def part_returns(self, backend: Any, request: Any, since: float | None) -> bool:
        """Extend the other parts of a chord that began at *since*, if that is due. Never raises.

        Returns whether parts may be held in the name of the chord's body from now on.
        """
        expires, now = _parts_expire(backend), self._runtime.clock()
        step = expires * _PART_SHARE
        if not expires or since is None or now - since < step:
            return False
        if now - self._extended.get(request.group, 0.0) < step:
            return True
        try:
            self._extend(backend, request)
        except Exception as exc:
            logger.warning("the values of a chord's parts aren't extended: %r", exc)
            return True
        self._extended[request.group] = now
        while len(self._extended) > _CHORDS_REMEMBERED:
            self._extended.popitem(last=False)
        return True

    def _extend(self, backend: Any, request: Any) -> None:
        content = self._runtime.content
        texts = (wire_text(result) for result in collected_parts(backend, request.group))
        refs = [Ref.unbound(text) for text in texts if text is not None and has_wire_form(text)]
        body = body_of(request)
        name = task_holder(body) if body else holder("result", request.group)
        content.holds.add(map(content.opened, refs), Hold(part_ttl(backend), name))
