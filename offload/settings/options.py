"""Options that a task or a call may set for itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from offload.errors import ConfigurationError
from offload.settings.checks import (
    check_names,
    check_seconds,
    check_whole,
    refuse,
    unknown_name,
)

__all__ = ("TaskOptions",)


@dataclass(frozen=True)
class TaskOptions:
    """The options that a task or a call may set for itself; None means "as configured".

    Attributes:
        enabled: False keeps this task's values in its messages.
        inline: names of parameters whose values stay in the message, in addition to those that
            the task and the settings name; ``("*",)`` is all.
        results: whether large results are stored by reference.
        threshold: bytes from which a value is stored.
        retention: seconds that stored values are held.
    """

    enabled: bool | None = None
    inline: tuple[str, ...] | None = None
    results: bool | None = None
    threshold: int | None = None
    retention: float | None = None

    def __post_init__(self) -> None:
        where = "option offload"
        for name in ("enabled", "results"):
            if getattr(self, name) not in (None, True, False):
                refuse(where, getattr(self, name), f"{name!r} is True or False")
        if self.inline is not None:
            object.__setattr__(self, "inline", check_names(where, self.inline))
        if self.threshold is not None:
            check_whole(where, self.threshold, "'threshold' is a number of bytes from 0")
        if self.retention is not None:
            check_seconds(where, self.retention)

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
            refuse(where, value, "offload= takes a dict of options, True or False")
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
        """Raise ConfigurationError for an inline name that isn't a parameter of *function*."""
        if not self.inline or self.inline == ("*",):
            return
        parameters = inspect.signature(function).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        for name in self.inline:
            if name not in parameters:
                raise ConfigurationError(
                    unknown_name(f"task {task!r}: inline argument {name!r}", name, parameters),
                    task=task,
                    argument=name,
                )


_NO_OPTIONS = TaskOptions()
