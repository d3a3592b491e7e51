"""The ten likeliest mistakes are answered by texts that say what to do; these are the texts."""

from __future__ import annotations

import re
import sys

import pytest
from celery import Celery

from offload import (
    BlobMissing,
    ConfigurationError,
    InvalidRef,
    Offload,
    SerializerNotAccepted,
    StoreUnavailable,
    ValueTooLarge,
)
from offload.hooks.message import REFUSAL

BIG = "x" * 100_000


def connected(**settings):
    app = Celery("shop", broker="memory://", set_as_current=False)
    return Offload(app, **{"store": "memory://messages", "stats_interval": 0, **settings})


def text(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_no_store():
    """1. Without a Redis, the error says which setting to set, to what, and where."""
    app = Celery("shop", broker="amqp://localhost", set_as_current=False)
    Offload(app)
    assert text(ConfigurationError, app.finalize) == (
        "no store: neither the result backend nor the broker is Redis. Set offload_store (or "
        "Offload(app, store=…)) to a URL such as redis://localhost:6379/2 or "
        "file:///var/lib/offload"
    )


@pytest.mark.parametrize(
    ("url", "says"),
    (
        ("redsi://localhost", "no store is known for a URL with redsi://; did you mean redis://?"),
        (
            "redis://:secret@localhost:port",
            "store redis://…: what stands after a host and ':' is not a port number such as 6379",
        ),
    ),
)
def test_a_wrong_url(url, says):
    """2. A misspelled scheme is corrected, and no password is shown."""
    assert text(ConfigurationError, lambda: connected(store=url).store) == says


def test_a_wrong_secret():
    """3. A reference that another secret signed is refused, with what to set where."""
    ref = connected(secret="a secret of another app").put(BIG)
    assert text(InvalidRef, connected(secret="a secret of this app").get, ref) == (
        "a reference has no valid signature: it was made for another store or secret (theirs "
        "0d37e353, ours 8d31d86c); set the same offload_secret here and where it was made; during "
        "a rotation, list the old and the new secret in both places"
    )


def test_a_worker_without_the_library():
    """4. A worker without offload fails the task by Python's own error, which has this text."""
    with pytest.raises(TypeError, match="install offload on this worker, and call Offload"):
        (lambda: None)(**{REFUSAL: 2})
    assert REFUSAL == (
        "__offload__: this task's arguments are in a store; install offload on this worker, and "
        "call Offload(app)"
    )


def test_a_serializer_that_is_not_accepted():
    """5. A pickle is refused where pickle isn't accepted, with the settings that accept it."""
    ref = connected(accept=["pickle"]).put({1, 2, object})
    assert text(SerializerNotAccepted, connected().get, ref) == (
        "a value was serialized with pickle, which this app does not accept; if its senders are "
        "trusted, add it to accept_content or offload_accept"
    )


def test_a_missing_extra(monkeypatch):
    """6. A missing package is named with the command that installs it."""
    monkeypatch.delitem(sys.modules, "offload.stores.s3.client", raising=False)
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    assert text(ConfigurationError, lambda: connected(store="s3://bucket").store) == (
        'store s3://bucket: S3 needs boto3: pip install "offload[s3]"'
    )


def test_a_misspelled_option():
    """7. A misspelled setting or option is corrected."""
    assert text(ConfigurationError, Offload, treshold=1) == (
        "Offload(treshold=…) is unknown; did you mean 'threshold'?"
    )
    app = connected().app

    @app.task(name="score", offload={"treshold": 1}, shared=False)
    def score(frame): ...

    assert text(ConfigurationError, score.delay, 1) == (
        "task 'score': option 'treshold' is unknown; did you mean 'threshold'?"
    )


def test_a_store_that_is_unavailable():
    """8. The error names the store, quotes the driver, and says what to check."""
    away = connected(store="redis://:secret@localhost:1/0", retry={"max_retries": 0})
    said = text(StoreUnavailable, away.put, BIG)
    assert said.startswith("redis://localhost:1/0 is unavailable (")
    assert said.endswith("): check that it runs and can be reached from here")
    assert "secret" not in said


def test_a_value_that_has_expired():
    """9. The error names value, blob, and store, the possible causes, and what to do."""
    offload = connected()
    ref = offload.put(BIG)
    offload.store.blobs.delete([ref.digest])
    said = re.sub(r"is \d+ s old", "is 0 s old", text(BlobMissing, offload.get, ref))
    assert said == (
        f"{ref!r} (blob {ref.digest}) is not in the store memory://messages; the reference is 0 s "
        "old: it outlived offload_retention, or offload_grace after its task ended, or the store "
        "was emptied or evicts keys. Send it again; if it was needed for longer, raise "
        "offload_retention; celery offload doctor checks the store"
    )


def test_a_value_that_is_too_large():
    """10. The error names task, argument, size, and limit, and what to do."""
    app = connected(max_size="10k", threshold=10).app

    @app.task(name="score", shared=False)
    def score(frame): ...

    assert text(ValueTooLarge, score.delay, BIG) == (
        "task 'score', frame: a str of 100.0 kB is over offload_max_size (10.0 kB): send less, or "
        "raise it in publishers and workers"
    )
