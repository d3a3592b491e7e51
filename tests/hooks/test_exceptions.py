"""Exceptions of shipped classes in a result backend: what is stored, and who can read it."""

from __future__ import annotations

import threading
import uuid

import pytest
from celery import Celery

from offload import Offload


class Unknown(KeyError):
    """Stands for a class that no other process can import."""

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
def test_only_readers_that_load_code_get_the_class(serializer):
    """Readers that may not load code, and readers of an altered reference, get Celery's fallback
    exception.
    """
    store = f"memory://{uuid.uuid4()}"
    writer = backend(serializer, store, code="trusted")
    exc = Unknown("k", 2)
    prepared = writer.prepare_exception(exc)
    assert not vars(exc)  # nothing remains on the user's exception
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
def test_without_shipping_celerys_form_is_stored(serializer, options, caplog):
    """A process that may not ship code stores exceptions as Celery does, also of local classes, and
    logs nothing.
    """

    class Local(KeyError):
        pass

    stored = [
        each.prepare_exception(Local("k"))
        for each in (backend(serializer), backend(serializer, **options))
    ]
    assert same(*stored)
    assert not caplog.records


def test_unserializable_arguments_become_text():
    """Exception arguments that can't be serialized become text, as in Celery; the class stays."""
    writer = backend(code="trusted")
    found = writer.exception_to_python(writer.prepare_exception(Unknown("k", threading.Lock())))
    assert type(found) is Unknown
    assert found.args[0] == "k"
    assert "lock" in found.args[1]
