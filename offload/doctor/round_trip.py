"""Send a value through broker, store, and a worker, and back: see `round_trip`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from celery.backends.base import DisabledBackend
from celery.exceptions import NotRegistered, TaskRevokedError
from celery.exceptions import TimeoutError as ResultTimeoutError
from kombu.serialization import registry

from offload.doctor.examination import Examined
from offload.errors import ConfigurationError, OffloadError, StoreUnavailable
from offload.hooks.control import CHECK_TASK, read_receipt
from offload.hooks.message import REFUSAL
from offload.hooks.runtime import Runtime, results_as_refs
from offload.inspect import Finding
from offload.inspect.config_drift import config_drift
from offload.inspect.workers import Workers, ask_workers, connected, this_process
from offload.ref import Ref
from offload.text import human_latency, human_size, some

_POLL = 0.05  # seconds between two polls for the receipt
_LATE = 60.0  # seconds after the timeout at which the message expires
_ASK = 1.0  # seconds to wait for workers' replies to a ping
_UNKNOWN = "an unknown worker"


@dataclass
class Measured:
    """The measurements of a round trip; None, 0, or "" until they are taken.

    Attributes:
        size: bytes of the value.
        message: bytes of the message's headers and body, as sent to the broker.
        uploaded, fetched: bytes of values that this process wrote to and read from the store.
        publish: seconds to store the value and send the message.
        wait: seconds from then until the result arrived.
        read: seconds to read the result's value.
        worker, version: the worker's name, and its version of offload.
    """

    size: int
    message: int = 0
    uploaded: int = 0
    fetched: int = 0
    publish: float | None = None
    wait: float | None = None
    read: float | None = None
    worker: str = ""
    version: str = ""

    @property
    def total(self) -> float | None:
        """Seconds in total; None unless the value came back."""
        if self.publish is None or self.wait is None or self.read is None:
            return None
        return self.publish + self.wait + self.read


def round_trip(
    runtime: Runtime, measured: Measured, *, timeout: float = 10.0, queue: str | None = None
) -> Iterator[Examined]:
    """Send a random value of ``measured.size`` bytes to a worker and back, and yield findings.

    Stops at the first error, which is then the last finding.

    Args:
        measured: filled in with the measurements.
        timeout: seconds to wait for the worker.
        queue: name of the queue to send the message to; by default, the app's router decides.
    """
    try:
        _check_settings(runtime)
    except ConfigurationError as exc:
        yield Examined("settings", Finding("error", str(exc)))
        return
    trip = _Trip(runtime, measured, timeout, queue)
    for step in (trip.publish, trip.wait, trip.read):
        found = list(_bounded(step))
        yield from found
        if any(each.finding.level == "error" for each in found):
            return


def _check_settings(runtime: Runtime) -> None:
    mode, conf = runtime.settings.mode, runtime.app.conf
    if mode != "on":
        raise ConfigurationError(
            f"offload_mode is {mode!r}, so nothing is stored: set it to 'on' at least for this "
            "command"
        )
    if conf.task_always_eager:
        raise ConfigurationError(
            "task_always_eager is on, so tasks run in the calling process, without a worker: "
            "remove it to check broker and workers"
        )
    if runtime.app.connection_for_write().transport.driver_type == "memory":
        raise ConfigurationError(
            "the broker is in this process's memory, where no worker can reach it: set broker_url "
            "to the broker that workers use"
        )
    _ = runtime.store


def _bounded(step: Callable[[], Iterator[Examined]]) -> Iterator[Examined]:
    try:
        yield from step()
    except StoreUnavailable as exc:
        remedy = "start the store's server, or correct offload_store"
        yield Examined("store", Finding("error", str(exc), remedy), unavailable=True)
    except OffloadError as exc:
        yield Examined("store", Finding("error", str(exc)))


@dataclass
class _Trip:
    runtime: Runtime
    measured: Measured
    timeout: float
    queue: str | None
    value: bytes = b""
    result: Any = None
    answer: Any = None
    sent: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.value = os.urandom(self.measured.size)
        self.by_receipt = isinstance(self.runtime.app.backend, DisabledBackend)

    def publish(self) -> Iterator[Examined]:
        app, measured = self.runtime.app, self.measured
        began, before = time.perf_counter(), self.runtime.counters.snapshot()
        options = {} if self.queue is None else {"queue": self.queue}
        try:
            with connected(app) as connection:
                url = connection.as_uri().replace("//:**@", "//")
                producer = _Measuring(app.amqp.Producer(connection, auto_declare=False))
                self.result = app.send_task(
                    CHECK_TASK,
                    (self.value,),
                    {"by_receipt": True} if self.by_receipt else {},
                    producer=producer,
                    retry=False,
                    expires=self.timeout + _LATE,
                    **options,
                )
        except OffloadError:
            raise
        except Exception as exc:  # transports and result backends raise errors of their own
            what = f"the message can't be sent to the broker: {type(exc).__name__}: {exc}"
            remedy = "start the broker, or correct broker_url"
            yield Examined("broker", Finding("error", what, remedy), unavailable=True)
            return
        self.sent = time.perf_counter()
        measured.publish = self.sent - began
        measured.message = producer.size
        after = self.runtime.counters.snapshot()
        measured.uploaded = after["bytes_uploaded"] - before["bytes_uploaded"]
        if after["values_offloaded"] == before["values_offloaded"]:
            what = f"{human_size(measured.size)} stayed in the message, not in the store"
            remedy = "remove 'value' and '*' from offload_inline, and routers that change arguments"
            yield Examined("store", Finding("warning", what, remedy))
        else:
            what = f"{human_size(measured.uploaded)} uploaded"
            yield Examined(self.runtime.store.url, Finding("ok", what))
        what = f"{human_size(measured.message)} sent, {human_latency(measured.publish)} in total"
        yield Examined(url, Finding("ok", what))

    def wait(self) -> Iterator[Examined]:
        measured = self.measured
        try:
            answer = self._wait_for_receipt() if self.by_receipt else self._wait_for_result()
        except ResultTimeoutError:
            yield from self._describe_silence()
            return
        except OffloadError as exc:  # raised in the worker, with advice
            unavailable = isinstance(exc, StoreUnavailable)
            yield Examined("workers", Finding("error", str(exc)), unavailable=unavailable)
            yield from self._describe_workers()
            return
        except TaskRevokedError:
            what = "the worker discarded the message, because it had expired"
            remedy = "set the clocks of both machines: they differ by a minute or more"
            yield Examined("workers", Finding("error", what, remedy))
            return
        except Exception as exc:  # raised by the task or by the result backend
            if isinstance(exc, NotRegistered) or REFUSAL in str(exc):
                what = "a worker without offload, or with an older version, got the task"
                remedy = "install this version there, and call Offload(app) in its app"
            else:
                what = f"the task failed, or its result can't be read: {type(exc).__name__}: {exc}"
                remedy = "read the worker's log, and compare its result_backend with this process's"
            yield Examined("workers", Finding("error", what, remedy))
            yield from self._describe_workers()
            return
        measured.wait = time.perf_counter() - self.sent
        self.answer = answer
        yield from ()

    def _wait_for_result(self) -> Any:
        with results_as_refs():
            return self.result.get(timeout=self.timeout, disable_sync_subtasks=False)

    def _wait_for_receipt(self) -> Any:
        pointers = self.runtime.store.pointers
        while (receipt := read_receipt(pointers, self.result.id)) is None:
            if time.perf_counter() > self.sent + self.timeout:
                raise ResultTimeoutError
            time.sleep(_POLL)
        return self.runtime.content.open(receipt.ref)

    def read(self) -> Iterator[Examined]:
        measured, runtime = self.measured, self.runtime
        began, before = time.perf_counter(), runtime.counters.snapshot()
        answer = self.answer
        by_ref = isinstance(answer, Ref)
        value = runtime.get(answer) if by_ref else answer
        measured.read = time.perf_counter() - began
        after = runtime.counters.snapshot()
        measured.fetched = sum(
            after[name] - before[name] for name in ("bytes_fetched", "cache_bytes")
        )
        receipt = read_receipt(runtime.store.pointers, self.result.id)
        if receipt is not None:
            measured.worker, measured.version = receipt.worker, receipt.version
        what = f"{measured.worker or _UNKNOWN} (offload {measured.version or '?'}) ran the task; "
        what += f"its result was there after {human_latency(measured.wait)}"
        yield Examined("workers", Finding("ok", what))
        if value != self.value[::-1]:
            what = "the value that came back isn't the expected one"
            remedy = "report this with the versions that `celery report` prints"
            yield Examined("result", Finding("error", what, remedy))
            return
        where = "through the store" if by_ref else "in the result itself"
        what = f"{human_size(measured.size)} came back {where}, read in "
        yield Examined("result", Finding("ok", what + human_latency(measured.read)))
        if not self.by_receipt:
            with suppress(NotImplementedError):  # of Celery's rpc backend before Celery 5.7
                self.result.forget()

    def _describe_silence(self) -> Iterator[Examined]:
        """Yield findings that may explain why there is no result."""
        waited = f"{self.timeout:g} s"
        receipt = read_receipt(self.runtime.store.pointers, self.result.id)
        if receipt is not None:
            what = f"{receipt.worker or _UNKNOWN} ran the task, but its result didn't "
            what += f"arrive within {waited}"
            remedy = (
                "set result_backend to the same URL in workers and publishers, one that both can "
                "reach"
            )
            yield Examined("result", Finding("error", what, remedy))
            return
        found = ask_workers(self.runtime.app, timeout=_ASK)
        what = f"no worker ran the task within {waited}"
        yield Examined("workers", Finding("error", what, self._advice(found)), unavailable=True)
        yield from self._describe_workers(found)

    def _advice(self, found: Workers) -> str:
        if not found.workers:
            start = f"start one: celery -A {self.runtime.app.main or 'proj'} worker"
            return start if found.note.startswith("no worker") else f"{start} ({found.note})"
        names = some([worker.name for worker in found.workers])
        sent_to = self.queue or self.runtime.app.conf.task_default_queue
        served = [queue for each in found.workers for queue in each.reply.get("queues") or ()]
        if served and sent_to not in served and self.queue is not None:
            return (
                f"start a worker with -Q {sent_to}, or choose a queue that is served by --queue "
                f"({some(sorted({*served}))})"
            )
        return (
            f"{names} replied to a ping: wait for their running tasks (--timeout), choose a queue "
            "that they serve (--queue), or read their logs"
        )

    def _describe_workers(self, found: Workers | None = None) -> Iterator[Examined]:
        """Yield differences between workers and this process, which may be the reason."""
        if found is None:
            found = ask_workers(self.runtime.app, timeout=_ASK)
        for finding in config_drift(this_process(self.runtime), found):
            if finding.level in ("warning", "error"):
                yield Examined("workers", finding)


class _Measuring:
    """A kombu producer that measures what it publishes.

    Attributes:
        size: bytes of the last message's body and headers.
    """

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self.size = 0

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        texts = [body, {name: str(each) for name, each in (options.get("headers") or {}).items()}]
        kinds = (options.get("serializer") or "json", "json")
        parts = [registry.dumps(each, kind)[2] for each, kind in zip(texts, kinds, strict=True)]
        self.size = sum(map(len, parts))
        return self._producer.publish(body, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)
