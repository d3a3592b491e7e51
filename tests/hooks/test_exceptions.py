"""Exceptions of shipped classes in a result backend: what is stored, and who reads what."""

from __future__ import annotations

import threading
import uuid

import pytest
from celery import Celery

from offload import Offload


class Unknown(KeyError):
    """Stands for a class that nobody else can import."""

    __module__ = "__main__"


def backend(serializer="json", store="", **options):
    """Return the result backend of an app, with offload if it has options."""
    app = Celery("exceptions", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(result_serializer=serializer, accept_content=["json", "pickle"])
    if options:
        Offload(app, store=store or f"memory://{uuid.uuid4()}", **options)
    return app.backend


def same(one, other):
    return (type(one), repr(one)) == (type(other), repr(other))


@pytest.mark.parametrize("serializer", ("json", "pickle"))
def test_only_who_may_load_code_reads_the_class(serializer):
    """Others, and a reference that was changed, give what Celery makes of what it stored."""
    store = f"memory://{uuid.uuid4()}"
    writer = backend(serializer, store, code="trusted")
    exc = Unknown("k", 2)
    prepared = writer.prepare_exception(exc)
    assert not vars(exc)  # nothing is left on the user's own
    found = writer.exception_to_python(prepared)
    assert type(found) is Unknown
    assert found.args == ("k", 2)
    reader = backend(serializer, store, code="trusted", mode="off")  # stores nothing, reads all
    assert type(reader.exception_to_python(prepared)).__name__ == "Unknown"
    plain = backend(serializer)
    expected = plain.exception_to_python(prepared)
    assert type(expected) is KeyError
    assert same(backend(serializer, store, code="off").exception_to_python(prepared), expected)
    if serializer == "json":
        prepared["offload"] = prepared["offload"][:-1] + "x"
        assert same(writer.exception_to_python(prepared), expected)


@pytest.mark.parametrize("serializer", ("json", "pickle"))
@pytest.mark.parametrize(
    "options",
    ({"code": "off"}, {"code": "signed", "verify_keys": ["hmac:0123456789abcdef"]}),
    ids=("off", "no signing key"),
)
def test_who_may_not_ship_code_stores_what_celery_stores(serializer, options, caplog):
    """That goes for classes made within functions, too, and without a word in the log."""

    class Local(KeyError):
        pass

    stored = [
        each.prepare_exception(Local("k"))
        for each in (backend(serializer), backend(serializer, **options))
    ]
    assert same(*stored)
    assert not caplog.records


def test_what_no_serializer_carries_is_stored_as_its_repr():
    """Arguments of an exception become text, as with Celery, and its class stays."""
    writer = backend(code="trusted")
    found = writer.exception_to_python(writer.prepare_exception(Unknown("k", threading.Lock())))
    assert type(found) is Unknown
    assert found.args[0] == "k"
    assert "lock" in found.args[1]
