"""A broker, a worker, and a store within this process; messages really become bytes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from celery.app.trace import trace_task_ret

from offload import Offload
from offload.hooks.message import own_name

_number = itertools.count()


@dataclass
class Wire:
    """An app that queues its messages, and a worker that executes them in `work`.

    Attributes:
        sent: headers and body of every message so far, as published.
        calls: names of the store's methods that were called.
    """

    app: Any
    hook: Any
    sent: list[tuple[Any, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def work(self) -> None:
        """Execute messages until there are none."""
        while message := self.take():
            self.execute(message)

    def take(self) -> Any:
        """Return the next message from the queue, or None."""
        with self.app.connection_for_read() as connection:
            queue = self.app.amqp.queues[self.app.conf.task_default_queue]
            message = queue(connection.default_channel).get()
            if message is not None:
                message.ack()
            return message

    def execute(self, message: Any, delivery_info: Any = None) -> Any:
        """Execute one message, as often as this is called.

        Return what the pool receives: whether the task failed, its result as text or its exception,
        and its duration in seconds.
        """
        headers = dict(message.headers)
        headers["task"] = own_name(headers) or headers["task"]
        came_by = delivery_info or {"exchange": ""}
        request = {**headers, "delivery_info": came_by, "hostname": "here"}
        for name in ("reply_to", "correlation_id"):
            request[name] = message.properties.get(name)
        return trace_task_ret(
            headers["task"],
            headers["id"],
            request,
            message.body,
            message.content_type,
            message.content_encoding,
            app=self.app,
        )

    def get(self, result: Any) -> Any:
        """Execute all messages, then return the result of a task that was sent."""
        self.work()
        return result.get(timeout=10)

    def run(self, task: Any, *args: Any, **kwargs: Any) -> Any:
        return self.get(task.delay(*args, **kwargs))

    def body(self, task: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the body of the message that a call makes."""
        task.delay(*args, **kwargs)
        return self.sent[-1][1]


def make_wire(
    *,
    watch: bool = True,
    conf: dict[str, Any] | None = None,
    broker: str = "memory://",
    **settings: Any,
) -> Wire:
    """Return a Wire with an app of its own and, unless *settings* say otherwise, a store."""
    number = next(_number)
    app = Celery(f"wire{number}", broker=broker, backend="cache+memory://", set_as_current=False)
    app.conf.update(
        {
            "task_default_queue": f"wire{number}",
            "accept_content": ["json", "pickle"],
            **(conf or {}),
        }
    )
    settings = {"store": f"memory://wire{number}", "threshold": 1000, **settings}
    hook = Offload(app, **settings)
    wire = Wire(app, hook)

    build = app.amqp.as_task_v2

    def as_task_v2(task_id: str, *args: Any, **options: Any) -> Any:
        message = build(task_id, *args, **options)
        wire.sent.append((message.headers, message.body))
        return message

    app.amqp.__dict__["create_task_message"] = as_task_v2
    if watch and settings["store"]:
        record_calls(wire)
    return wire


def record_calls(wire: Wire) -> None:
    store = wire.hook.store
    for part in ("blobs", "pointers"):
        for name in ("put", "get", "hold", "release", "read", "swap"):
            method = getattr(getattr(store, part), name, None)
            if method is None:
                continue

            def recorded(
                *args: Any, _method: Any = method, _name: str = name, **kwargs: Any
            ) -> Any:
                wire.calls.append(_name)
                return _method(*args, **kwargs)

            object.__setattr__(getattr(store, part), name, recorded)
