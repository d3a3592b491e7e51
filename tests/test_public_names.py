"""The names that users may rely on."""

from __future__ import annotations

import pytest
from celery import Celery

import offload
from offload import Offload
from offload.hooks.runtime import Runtime

OFFLOAD = {
    "aapply_async",
    "adelay",
    "aget",
    "app",
    "aput",
    "catalog",
    "classes",
    "counters",
    "get",
    "init_app",
    "lock",
    "memo",
    "memoize",
    "pin",
    "pinned",
    "put",
    "read_event",
    "settings",
    "stats",
    "store",
    "unpin",
}


def test_offload_has_these_public_attributes_and_no_others():
    """An Offload exposes what is documented, whether or not it has an app; no internals."""
    bare = Offload()
    app = Celery("names", broker="memory://", backend="cache+memory://", set_as_current=False)
    used = Offload(app, store="memory://names")
    _ = used.put("value")
    for each in (bare, used):
        assert {name for name in dir(each) if not name.startswith("_")} == OFFLOAD


@pytest.mark.parametrize("name", sorted({n for n in dir(Runtime) if n[0] != "_"} - OFFLOAD))
def test_offload_gives_no_access_to_internals(name):
    """What the hooks share isn't reachable by a public name."""
    with pytest.raises(AttributeError, match=name):
        getattr(Offload(), name)


def test_public_attributes_have_docstrings():
    """Every public attribute of an Offload says what it does."""
    assert [name for name in OFFLOAD if not getattr(Offload, name).__doc__] == []


def test_the_package_exports_what_it_lists():
    """Every listed name can be imported, and `dir` shows it."""
    assert set(offload.__all__) <= set(dir(offload))
    assert [name for name in offload.__all__ if not hasattr(offload, name)] == []
