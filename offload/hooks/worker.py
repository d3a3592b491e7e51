"""Worker startup: check that tasks can read their values, and dispatch stand-in messages."""

from __future__ import annotations

import copy
from typing import Any

from celery.bootsteps import StartStopStep, Step

from offload.hooks import control, requests
from offload.hooks.execute import check_tracers, guard
from offload.hooks.message import STAND_IN, own_name

__all__ = ("CheckConfiguration", "CheckTracers")


class CheckConfiguration(Step):
    """Startup step that stops a worker that couldn't read the values of its tasks."""

    label = "offload"

    def __init__(self, parent: Any, **_options: Any) -> None:
        runtime = parent.app._offload  # noqa: SLF001 (ours)
        runtime.check_start()
        import celery.worker.request  # noqa: F401 (import it, so that it can be hooked)

        control.install()  # again, if the app was created before Celery's worker was imported
        requests.install()
        for task in list(parent.app.tasks.values()):  # before Celery builds their tracers
            runtime.check_task(task.name)
            guard(runtime, task)
        super().__init__(parent, **_options)


class CheckTracers(StartStopStep):
    """Startup step that stops a worker if a task could run without offload's tracer."""

    label = "offload tracers"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Check the tasks, whose tracers Celery has just built."""
        _dispatch_stand_in(parent)
        pool = getattr(parent, "pool", None)
        check_tracers(parent.app, f"pool {type(pool).__module__}.{type(pool).__qualname__}")


def _dispatch_stand_in(consumer: Any) -> None:
    """Dispatch each message that names `STAND_IN` to the task that it is meant for."""
    strategies = consumer.strategies
    own = strategies[STAND_IN]

    def handle(message: Any, *given: Any, **more: Any) -> Any:
        name = own_name(message.headers)
        if name is None:
            return own(message, *given, **more)
        message = copy.copy(message)  # so that a requeued message stays unchanged
        message.headers = {**message.headers, "task": name}
        strategy = strategies.get(name)
        if strategy is None:
            return consumer.on_unknown_task(None, message, KeyError(name))
        return strategy(message, *given, **more)

    strategies[STAND_IN] = handle
