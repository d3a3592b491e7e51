"""Errors: their tree, and their way through Celery's result backend."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from celery.exceptions import ImproperlyConfigured
from kombu import exceptions as kombu

from offload import errors
from offload.errors import OffloadError

KNOWN = {"task": "t", "argument": "a", "digest": "b3:1", "store": "memory://"}
ALL = [getattr(errors, name) for name in errors.__all__]


def test_the_documented_tree_is_correct():
    """The tree at the top of the file is correct, including kombu's classes."""
    drawn = {}
    stack: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.search(
            r"^ {4}(?P<lead>[ │├└─]*)(?P<name>[A-Z]\w+)(?: +\((?P<also>[\w., ]+)\))?", line
        )
        if not match or not (match["name"].endswith(tuple("rdfentsygey"))):
            continue
        if match["name"] not in errors.__all__:
            continue
        depth = len(match["lead"]) // 4
        del stack[depth:]
        drawn[match["name"]] = (stack[-1] if stack else "Exception", match["also"])
        stack.append(match["name"])
    assert set(drawn) == set(errors.__all__)
    for name, (parent, also) in drawn.items():
        bases = getattr(errors, name).__bases__
        assert bases[0].__name__ == parent, name
        names = [f"{base.__module__}.{base.__name__}" for base in bases[1:]]
        rest = [name.removeprefix("builtins.") for name in names]
        assert rest == (also.split(", ") if also else []), name


@pytest.mark.parametrize(
    ("ours", "theirs"),
    (
        (errors.ConfigurationError, ImproperlyConfigured),
        (errors.SerializationError, kombu.EncodeError),
        (errors.ValueTooLarge, kombu.EncodeError),
        (errors.DeserializationError, kombu.DecodeError),
        (errors.SerializerNotAccepted, kombu.ContentDisallowed),
        (errors.StoreUnavailable, kombu.OperationalError),
    ),
)
def test_handlers_of_celerys_errors_keep_working(ours, theirs):
    """Each error is also the error that Celery or kombu raises in the same case."""
    with pytest.raises(theirs):
        raise ours("x")


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
@pytest.mark.parametrize("known", ({}, {"digest": "b3:1"}, KNOWN))
def test_is_rebuilt_from_its_args(error, known):
    """Celery rebuilds an exception from a JSON backend as ``type(*args)``; nothing is lost."""
    raised = error("what", **known)
    again = error(*json.loads(json.dumps(raised.args)))
    assert str(again) == str(raised) == "what"
    assert {name: getattr(again, name) for name in KNOWN} == {**dict.fromkeys(KNOWN), **known}
    assert repr(again) == f"{error.__name__}('what')"
    assert error()


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_is_pickled_with_its_attributes(error):
    """Between processes of a pool, and in a pickle backend, nothing is lost."""
    raised = error("what", task="t", argument="a", digest="b3:1", store="memory://")
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is error
    assert str(again) == "what"
    assert vars(again) == vars(raised)


def test_one_clause_catches_all():
    """Every error is an OffloadError."""
    assert all(issubclass(error, OffloadError) for error in ALL)
