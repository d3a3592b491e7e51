from __future__ import annotations

import typing
from typing import List, Optional, Union  # noqa: UP035

import pytest
from celery import Celery

from offload import ConfigurationError, Ref, Settings, TaskOptions
from offload.hooks.options import Tasks, effective


def test_call_over_task_over_app():
    """Each option separately comes from the call, else the task, else the app."""
    settings = Settings(threshold=1, inline=("app",), retention=10)
    task = TaskOptions(threshold=2, results=False)
    call = TaskOptions(threshold=3)
    found = effective(call, task, settings)
    assert (found.threshold, found.results, found.inline) == (3, False, ("app",))
    assert (found.enabled, found.retention) == (True, 10)


def test_mode_off_is_not_enabled():
    """Mode off disables every task without its own mode."""
    assert effective(TaskOptions(), TaskOptions(), Settings(mode="off")).enabled is False


def facts_of(function, **options):
    app = Celery("options", broker="memory://", set_as_current=False)
    app.task(name="it", shared=False, **options)(function)
    app.finalize()
    return Tasks(app)["it"]


def annotated(
    bare: Ref,
    of: Ref[list],
    text: Ref[DataFrame],  # noqa: F821
    optional: Optional[Ref],  # noqa: UP045
    union: Union[Ref[int], None],
    several: list[Ref],
    old: List[Ref[int]],  # noqa: UP006
    modern: Ref | None,
    items: Optional[typing.Sequence[Ref]],  # noqa: UP045
    either: Union[Ref, list[Ref]],
    quoted: typing.List[Ref[DataFrame]],  # noqa: F821, UP006
    plain: list,
    other: Reference,  # noqa: F821
    *more: int,
    named: Ref,
) -> None:
    pass


def test_parameters_that_want_references():
    """Parameters annotated Ref are found in every spelling, also in annotations that can't be
    evaluated.
    """
    facts = facts_of(annotated)
    wanted = {"bare", "of", "text", "optional", "union", "several", "old", "modern", "named"}
    assert facts.wants_ref == wanted | {"items", "either", "quoted"}
    assert facts.wants_refs == {"several", "old", "items", "quoted"}
    assert facts.parameters[:2] == ("bare", "of")
    assert "more" not in facts.parameters
    assert typing.get_origin(annotated) is None


def test_the_rest_of_the_arguments_can_want_references():
    """``*args: Ref`` and ``**kwargs: Ref`` apply to all arguments without a named parameter."""

    def task(first, *rest: Ref, named=None, **more: Ref[list]):
        pass

    facts = facts_of(task)
    assert [facts.asks_for_ref(key) for key in (0, 1, 2, "first", "named", "other")] == [
        *(False, True, True),
        *(False, False, True),
    ]


def test_bound_tasks_and_classes():
    """``self`` is not a parameter of bound tasks and classes."""

    def bound(self, value: Ref) -> None:
        pass

    assert facts_of(bound, bind=True).parameters == ("value",)


def test_a_task_that_is_not_here():
    """A task that isn't registered has no known options, and that is no error."""
    app = Celery("options", set_as_current=False)
    assert Tasks(app)["elsewhere"].parameters == ()


@pytest.mark.parametrize(
    ("offload", "message"),
    (
        ({"inline": ["fram"]}, r"'it'.*'fram' is unknown; did you mean 'frame'"),
        ({"inlines": []}, r"'it'.*'inlines' is unknown; did you mean 'inline'"),
        ({"threshold": "much"}, r"'it'.*bytes"),
        ({"inline": "frame"}, r"'it'.*list of names"),
        ({"results": 1.5}, r"'it'.*True or False"),
        (3, r"'it'.*dict"),
    ),
)
def test_wrong_options_are_refused(offload, message):
    """A wrong option raises ConfigurationError naming the task and what exists."""

    def task(frame):
        pass

    with pytest.raises(ConfigurationError, match=message):
        facts_of(task, offload=offload)


def test_any_name_where_there_is_kwargs():
    """A task with ``**kwargs`` may name any parameter inline."""

    def task(**more):
        pass

    assert facts_of(task, offload={"inline": ["anything"]}).options.inline == ("anything",)
