"""Celery's class with types for ``@app.task(offload={…})``, for type checkers and editors.

::

    from offload.typing import Celery

    app = Celery("shop")

    @app.task(offload={"treshold": 1})  # an error in mypy and pyright
    def score(frame): ...

When the program runs, it is `celery.Celery` itself. Type checkers see a subclass whose decorator
knows the option; the rest is typed by the package celery-types, if it is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import celery

from offload.settings.typed import CallDict, SettingsDict, TaskDict

__all__ = ("CallDict", "Celery", "SettingsDict", "TaskDict")

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

    from celery.app.task import Task

    from offload.settings.typed import TaskGiven

    P = ParamSpec("P")
    R = TypeVar("R")

    class Celery(celery.Celery):
        @overload  # type: ignore[override,unused-ignore]
        def task(self, fun: Callable[P, R], /) -> Task[P, R]: ...
        @overload
        def task(
            self, *, bind: Literal[True], offload: TaskGiven = ..., **options: Any
        ) -> Callable[[Callable[Concatenate[Task[P, R], P], R]], Task[P, R]]: ...
        @overload
        def task(
            self, *, bind: Literal[False] = ..., offload: TaskGiven = ..., **options: Any
        ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
        def task(self, *args: Any, **options: Any) -> Any: ...

else:
    Celery = celery.Celery
