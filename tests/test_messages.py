"""The likeliest mistakes of a first day are answered by messages that say what to do: these."""

from __future__ import annotations

import os
import re
import sys
from types import ModuleType

import pytest
import redis
from botocore.exceptions import ClientError
from celery import Celery

from offload import (
    BlobMissing,
    ConfigurationError,
    DeserializationError,
    InvalidRef,
    Offload,
    SerializationError,
    SerializerNotAccepted,
    StoreUnavailable,
    ValueTooLarge,
)
from offload.hooks.message import REFUSAL
from offload.hooks.startup import summary
from offload.stores.redis import driver_errors as redis_errors
from offload.stores.s3 import driver_errors as s3_errors

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
        ("redsi://localhost", "no store handles URLs with redsi://; did you mean redis://?"),
        (
            "localhost:6379",
            (
                "a store's URL has no scheme: write it as redis://localhost:6379/2 or "
                "file:///var/lib/offload"
            ),
        ),
        (
            "redis://:secret@localhost:port",
            "store redis://…: the text after a host and ':' isn't a port number such as 6379",
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
        "a rotation, list the old and the new secret in both places; the store here is "
        "memory://messages"
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


@pytest.mark.parametrize(
    ("given", "says"),
    (
        (
            {"threshold": "64q"},
            (
                "offload_threshold: '64q' is invalid; expected a number of bytes, at least 0, or "
                "a string such as '64k', '64 KiB', or '1.5MB'"
            ),
        ),
        (
            {"retention": "7"},
            (
                "offload_retention: '7' is invalid; expected a number of seconds, above 0, or a "
                "string such as '90s', '1h30m', or '7d'"
            ),
        ),
        (
            {"mode": "observ"},
            "offload_mode: 'observ' is invalid; expected 'on', 'observe', or 'off'",
        ),
    ),
)
def test_an_invalid_value_of_a_setting(given, says):
    """11. An invalid value is quoted, with what is valid."""
    assert text(ConfigurationError, lambda: Offload(**given)) == says


def test_a_value_that_no_serializer_supports():
    """12. The error names task, argument, type, and what to do; it doesn't show the value."""
    app = connected(threshold=10).app

    class Order:
        pass

    @app.task(name="score", shared=False)
    def score(frame): ...

    kind = Order.__qualname__
    assert text(SerializationError, score.delay, Order()) == (
        f"task 'score', frame: cannot serialize {kind}: no accepted serializer supports values "
        f"of type {kind}; send plain data; or, if all senders are trusted, add 'pickle' to "
        "accept_content or offload_accept"
    )


def test_a_class_that_the_worker_lacks(monkeypatch):
    """13. The error names the missing module, and the two ways to provide it."""
    module = ModuleType("shop_models")
    module.Order = type("Order", (), {"__module__": "shop_models"})
    monkeypatch.setitem(sys.modules, "shop_models", module)
    offload = connected(accept=["pickle"])
    ref = offload.put([module.Order()])
    monkeypatch.delitem(sys.modules, "shop_models")
    assert text(DeserializationError, offload.get, ref) == (
        "pickle cannot read the value: ModuleNotFoundError: No module named 'shop_models'; install "
        "it here, or ship the class from the sender (docs/how-to/classes.md)"
    )


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """14. A worker's banner says that its node cache is off, and names the folder."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may always write
    for folder in (tmp_path, tmp_path / "new"):
        runtime = connected(store="redis://localhost:1", cache=str(folder))._runtime
        assert f"cache off ({folder} isn't writable), " in summary(runtime)


def test_a_redis_that_is_full():
    """15. The error says what is full, what to change, and what the server said."""
    full = redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
    assert str(redis_errors.translate(full, "redis://localhost/2")) == (
        "redis://localhost/2 temporarily refuses requests: its memory is full: raise maxmemory, or "
        "lower offload_retention (command not allowed when used memory > 'maxmemory'.)"
    )


def test_a_wrong_password():
    """16. The error quotes the server, and says what to check."""
    denied = redis.exceptions.AuthenticationError("invalid username-password pair")
    assert str(redis_errors.translate(denied, "redis://localhost/2")) == (
        "redis://localhost/2 refuses this client (invalid username-password pair): check user "
        "name, password, and permissions (ACL)"
    )


@pytest.mark.parametrize(
    ("code", "says"),
    (
        ("NoSuchBucket", "the bucket doesn't exist: create it, or correct the store's URL"),
        (
            "AccessDenied",
            (
                "access is denied: the credentials need s3:GetObject, s3:PutObject, "
                "s3:DeleteObject, and s3:ListBucket on the bucket and prefix"
            ),
        ),
        ("RequestTimeTooSkewed", "this machine's clock is wrong: set it (NTP)"),
    ),
)
def test_a_bucket_that_refuses(code, says):
    """17 to 19. Without bucket, rights, or the right time, S3's code is explained."""
    refused = ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject")
    assert str(s3_errors.translate(refused, "s3://bucket/prefix")) == (
        f"s3://bucket/prefix: {says} (PutObject: {code} no)"
    )
