"""Options in force for a task, call > task > app > default, and facts about its parameters.

The option ``save_as`` is a name in the catalog with fields in braces. Only text of a few harmless
characters replaces them: task ids come from the sender of a message, and must not choose another
object.
"""

from __future__ import annotations

import inspect
import re
import time
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from offload.catalog.names import check_name
from offload.errors import ConfigurationError
from offload.hooks.celery_internals import registered_tasks
from offload.ref import Ref
from offload.settings import Settings, TaskOptions

_REF = re.compile(r"\bRef\b")
_REFS = re.compile(r"((\w+\.)*Optional\[)?(\w+\.)*(list|tuple|Sequence|Iterable)\[", re.IGNORECASE)
_LISTS = (list, tuple, Sequence, Iterable)


def effective(call: TaskOptions, task: TaskOptions, settings: Settings) -> TaskOptions:
    """Return the options in force; only ``retention`` may be None: see `Runtime.retention`."""
    return call.over(task).over(settings.options())


@dataclass(frozen=True)
class TaskFacts:
    """Options and parameters of a task; empty for a task that isn't registered here.

    Attributes:
        options: its ``offload`` attribute.
        parameters: names of its positional parameters, in order.
        named: names of all parameters that can be passed by keyword.
        wants_ref: parameters annotated with Ref, which receive the reference itself.
        wants_refs: those of them that are annotated with a list of Refs.
        rest_wants_ref: whether ``*args`` is annotated with Ref.
        more_wants_ref: whether ``**kwargs`` is annotated with Ref.
    """

    options: TaskOptions = field(default_factory=TaskOptions)
    parameters: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()
    wants_ref: frozenset[str] = frozenset()
    wants_refs: frozenset[str] = frozenset()
    rest_wants_ref: bool = False
    more_wants_ref: bool = False

    @property
    def takes_refs(self) -> bool:
        """Whether any parameter is annotated with Ref."""
        return bool(self.wants_ref or self.rest_wants_ref or self.more_wants_ref)

    def asks_for_ref(self, key: int | str) -> bool:
        """Return whether the argument at this position, or of this name, stays a reference."""
        if isinstance(key, int):
            if key >= len(self.parameters):
                return self.rest_wants_ref
            return self.parameters[key] in self.wants_ref
        return key in self.wants_ref or (self.more_wants_ref and key not in self.named)

    def asks_for_refs(self, key: int | str) -> bool:
        """Return whether this argument is a list whose items stay references."""
        if isinstance(key, int):
            return key < len(self.parameters) and self.parameters[key] in self.wants_refs
        return key in self.wants_refs

    def asks_at(self, path: Sequence[int | str]) -> bool:
        """Return whether *path* in a message leads to a reference that isn't read."""
        if not self.takes_refs or len(path) < 2 or not self.asks_for_ref(path[1]):
            return False
        return len(path) > 2 or not self.asks_for_refs(path[1])

    def keeps(self, key: int | str, value: Any) -> bool:
        """Return whether the references in *value*, an argument, aren't read."""
        is_list = isinstance(value, Ref) and self.asks_for_refs(key)
        return self.asks_for_ref(key) and not is_list


_UNKNOWN = TaskFacts()


class Tasks:
    """The facts about an app's tasks, each read and checked once."""

    def __init__(self, app: Celery) -> None:
        self._tasks = registered_tasks(app)
        self._facts: dict[str, tuple[Any, TaskFacts]] = {}

    def __getitem__(self, name: str) -> TaskFacts:
        """Return the facts about task *name*.

        Raises ConfigurationError for an unknown or wrong option.
        """
        task = self._tasks.get(name)
        if task is None:
            return _UNKNOWN
        known = self._facts.get(name)
        if known is None or known[0] is not task:
            known = self._facts[name] = (task, _read(name, task))
        return known[1]

    def check_inline(self, name: str, options: TaskOptions) -> None:
        """Raise ConfigurationError for an inline name that isn't a parameter of task *name*."""
        task = self._tasks.get(name)
        if task is not None:
            options.check_parameters(task.run, name)


def _read(name: str, task: Any) -> TaskFacts:
    options = TaskOptions.read(getattr(task, "offload", None), f"task {name!r}")
    options.check_parameters(task.run, name)
    if options.save_as is not None:
        check_template(options.save_as, task)
    parameters = inspect.signature(task.run).parameters.values()
    annotations = {p.name: _annotation(task.run, p) for p in parameters}
    asking = {p.name: p.kind for p in parameters if _asks_for_ref(annotations[p.name])}
    rest, more = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return TaskFacts(
        options=options,
        parameters=tuple(
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ),
        named=frozenset(
            p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        ),
        wants_ref=frozenset(name for name, kind in asking.items() if kind not in (rest, more)),
        wants_refs=frozenset(
            name
            for name, kind in asking.items()
            if kind not in (rest, more) and _asks_for_refs(annotations[name])
        ),
        rest_wants_ref=rest in asking.values(),
        more_wants_ref=more in asking.values(),
    )


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        return typing.get_type_hints(function).get(parameter.name, parameter.annotation)
    except Exception:  # annotations may use names that exist for type checkers only
        return parameter.annotation


def _asks_for_ref(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return _REF.search(annotation) is not None
    if annotation is Ref or typing.get_origin(annotation) is Ref:
        return True
    return any(_asks_for_ref(part) for part in typing.get_args(annotation))


def _asks_for_refs(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return _REFS.match(annotation) is not None
    if typing.get_origin(annotation) in _LISTS:
        return True
    parts = typing.get_args(annotation)
    return any(map(_asks_for_refs, parts)) and Ref not in (*parts, *map(typing.get_origin, parts))


FIELDS = ("task", "task_id", "root_id", "date")
"""Fields of a template: the task's name, its id, the id of the first task of its workflow, and the
day it runs on, in UTC (``2026-01-31``)."""

_FIELD = re.compile(r"\{([^{}]*)\}")
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)
_EXAMPLE = "x"


def check_template(template: str, task: Any) -> None:
    """Raise ConfigurationError for a *template* that can't become a name, or an unfit *task*."""
    where = f"task {task.name!r}: save_as={template[:150]!r}"
    unknown = [field for field in _FIELD.findall(template) if field not in FIELDS]
    if unknown or not _FIELD.sub(_EXAMPLE, template).isascii() or _has_braces(template):
        raise ConfigurationError(
            f"{where}: write a name in ASCII with any of these fields: "
            + ", ".join(f"{{{field}}}" for field in FIELDS),
            task=task.name,
        )
    try:
        check_name(_FIELD.sub(_EXAMPLE, template))
    except ValueError as exc:
        raise ConfigurationError(f"{where}: {exc}", task=task.name) from None
    if inspect.iscoroutinefunction(task.run):
        raise ConfigurationError(
            f"{where}: the results of coroutine functions aren't saved: save the object in the "
            "task, by offload.catalog.save",
            task=task.name,
        )


def _has_braces(template: str) -> bool:
    return not {"{", "}"}.isdisjoint(_FIELD.sub(_EXAMPLE, template))


def saved_name(template: str, task: Any, now: float) -> str:
    """Return the name for the result of the call of *task* that runs.

    Raises ConfigurationError if the name would be invalid.
    """
    request = task.request
    known = {
        "task": task.name,
        "task_id": request.id,
        "root_id": request.root_id or request.id,
        "date": time.strftime("%Y-%m-%d", time.gmtime(now)),
    }

    def text(found: re.Match[str]) -> str:
        field = found[1]
        value = str(known[field])
        if not _HARMLESS.fullmatch(value):
            raise ConfigurationError(
                f"task {task.name!r}: its {field} can't be part of the name {template!r} "
                "(save_as): only A-Z a-z 0-9 . _ - can, up to 100 characters",
                task=task.name,
            )
        return value

    name = _FIELD.sub(text, template)
    try:
        return check_name(name)
    except ValueError as exc:
        raise ConfigurationError(f"task {task.name!r}, save_as: {exc}", task=task.name) from None
