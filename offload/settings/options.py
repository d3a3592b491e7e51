"""Options that a task or a call may set for itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from offload.errors import ConfigurationError
from offload.settings.checks import (
    as_seconds,
    as_size,
    check_choice,
    check_names,
    refuse,
    unknown_name,
)

OF_TASK = ("version", "memo_ignore", "memo_key", "memo_lease", "save_as")
"""Options that only a task can have."""


@dataclass(frozen=True)
class TaskOptions:
    """The options that a task or a call may set for itself; None means "as configured".

    Attributes:
        enabled: False keeps this task's values in its messages.
        inline: names of parameters whose values stay in the message, in addition to those that
            the task and the settings name; ``("*",)`` is all.
        results: whether large results are stored by reference.
        threshold: smallest size, in bytes, at which a value is stored.
        retention: seconds that stored values are held.
        memo: seconds for which a result is returned to equal calls; True: as long as stored results
            live; False: never.
        version: the version of the task's code, for memo; default: a hash of the code.
        memo_ignore: names of parameters that don't identify a call for memo, in addition to
            ``inline``.
        memo_key: a function that takes a dict of arguments and returns what identifies the call for
            memo instead of them. Values that were sent by reference are Refs there.
        memo_scope: only calls in one scope share results; ``"app"`` is the app's own.
        memo_lease: seconds after which an equal call takes over from a worker that died.
        wait: how a call waits for an equal one: ``"requeue"`` sends its message back,
            ``"block"`` occupies the worker.
        save_as: name under which the task's results are saved in the catalog, with fields such as
            ``{task_id}``; only a task can have it.
    """

    enabled: bool | None = None
    inline: tuple[str, ...] | None = None
    results: bool | None = None
    threshold: int | None = None
    retention: float | None = None
    memo: float | bool | None = None
    version: str | None = None
    memo_ignore: tuple[str, ...] | None = None
    memo_key: Callable[[dict[str, Any]], Any] | None = None
    memo_scope: str | None = None
    memo_lease: float | None = None
    wait: str | None = None
    save_as: str | None = None

    def __post_init__(self) -> None:
        for name in ("enabled", "results"):
            if getattr(self, name) not in (None, True, False):
                refuse(f"option {name!r}", getattr(self, name), "True or False")
        if self.inline is not None:
            object.__setattr__(self, "inline", check_names("option 'inline'", self.inline))
        if self.threshold is not None:
            size = as_size("option 'threshold'", self.threshold)
            object.__setattr__(self, "threshold", size)
        for name in ("retention", "memo", "memo_lease"):
            given = getattr(self, name)
            if given is not None and not (name == "memo" and isinstance(given, bool)):
                choice = "True, False, " if name == "memo" else ""
                seconds = as_seconds(f"option {name!r}", given, choice)
                object.__setattr__(self, name, seconds)
        self._check_memo()

    def _check_memo(self) -> None:
        for name in ("version", "memo_scope"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                refuse(f"option {name!r}", value, "text that isn't empty")
        if self.memo_ignore is not None:
            names = check_names("option 'memo_ignore'", self.memo_ignore)
            object.__setattr__(self, "memo_ignore", names)
        if self.memo_key is not None and not callable(self.memo_key):
            refuse("option 'memo_key'", self.memo_key, "a function of a dict of arguments")
        if self.wait is not None:
            check_choice("option 'wait'", self.wait, ("requeue", "block"))
        if self.save_as is not None and not (isinstance(self.save_as, str) and self.save_as):
            refuse("option 'save_as'", self.save_as, "a name for the catalog")

    def check_call(self, where: str) -> None:
        """Raise ConfigurationError for an option that only a task can have."""
        for name in OF_TASK:
            if getattr(self, name) is not None:
                raise ConfigurationError(
                    f"{where}: a call can't have the option {name!r}: set it for the task"
                )

    @classmethod
    def read(cls, value: Any, where: str) -> TaskOptions:
        """Return *value* (a mapping, a bool, None, or TaskOptions) as options.

        *where* names the task or call in a ConfigurationError.
        """
        if value is None:
            return _NO_OPTIONS
        if isinstance(value, TaskOptions):
            return value
        if isinstance(value, bool):
            return cls(enabled=value)
        if not isinstance(value, Mapping):
            refuse(f"{where}: offload", value, "a dict of options, True, or False")
        known = [f.name for f in fields(cls)]
        for name in value:
            if name not in known:
                raise ConfigurationError(unknown_name(f"{where}: option {name!r}", name, known))
        try:
            return cls(**value)
        except ConfigurationError as exc:
            raise ConfigurationError(f"{where}: {exc}") from None

    def over(self, other: TaskOptions) -> TaskOptions:
        """Return these options, with those that are None taken from *other*.

        Names of inline parameters add up.
        """
        if other is _NO_OPTIONS:
            return self
        if self is _NO_OPTIONS:
            return other
        own = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if self.inline and other.inline:
            own["inline"] = tuple(dict.fromkeys((*other.inline, *self.inline)))
        return replace(other, **own)

    def check_parameters(self, function: Callable[..., Any], task: str) -> None:
        """Raise ConfigurationError for a name, in ``inline`` or ``memo_ignore``, that isn't a
        parameter of *function*.
        """
        inline = self.inline if self.inline != ("*",) else ()
        named = {"inline": inline or (), "memo_ignore": self.memo_ignore or ()}
        if not any(named.values()):
            return
        parameters = inspect.signature(function).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        for kind, names in named.items():
            for name in names:
                if name not in parameters:
                    raise ConfigurationError(
                        unknown_name(f"task {task!r}: {kind} argument {name!r}", name, parameters),
                        task=task,
                        argument=name,
                    )


_NO_OPTIONS = TaskOptions()
