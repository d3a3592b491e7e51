"""Findings about mixed data: encrypted with several keys, or not at all."""

from __future__ import annotations

import base64

import pytest
from celery import Celery

from offload import Offload, reencrypt
from offload.doctor import app as checks
from offload.doctor import examine
from offload.encryption.keys import EncryptionKey
from offload.testing.store import unique

KEYS = [f"aes256:{base64.b64encode(bytes([n]) * 32).decode()}" for n in range(4)]
IDS = [EncryptionKey(bytes([n]) * 32).id for n in range(4)]


@pytest.fixture
def process():
    """Return a function that makes an app on one store, with the keys of these numbers."""
    url = f"memory://{unique().replace('/', '-')}"

    def make(*numbers, **settings):
        app = Celery("doctor", broker="memory://", set_as_current=False)
        keys = [KEYS[number] for number in numbers]
        return Offload(
            app, store=url, cache="off", secret="s" * 32, encryption_keys=keys, **settings
        )

    return make


def found(hook):
    """Return level and text of each finding about encryption."""
    return [
        (each.finding.level, each.finding.what)
        for each in examine(hook._runtime)
        if each.subject == "encryption"
    ]


def test_what_is_encrypted_with_the_first_key_is_fine(process):
    """Where all blobs are encrypted with the first key, that is the only finding."""
    hook = process(1)
    for number in range(3):
        hook.put("a value " * 1000 + str(number))
    assert found(hook) == [("ok", f"all of 3 blobs are encrypted with the first key, {IDS[1]}")]


def test_without_keys_nothing_is_read(process, monkeypatch):
    """An app without encryption keys has no such finding, and its blobs aren't examined."""
    monkeypatch.setattr(reencrypt, "count_by_key", None)
    assert found(process()) == []


def test_mixed_data_is_reported(process):
    """Blobs that aren't encrypted, or with another key, are counted, with what that means."""
    for numbers, count in (((), 1), ((1,), 2), ((2,), 3), ((3,), 4)):
        hook = process(*numbers)
        for number in range(count):
            hook.put(f"{numbers} {number}" * 1000)

    assert sorted(found(process(1, 2))) == [
        ("error", f"4 of 10 blobs are encrypted with {IDS[3]}, which this process doesn't have"),
        ("info", f"3 of 10 blobs are encrypted with {IDS[2]}, not the first key"),
        (
            "warning",
            (
                "1 of 10 blobs aren't encrypted: they were written before keys were set, or by a "
                "process without keys"
            ),
        ),
    ]
    strict = found(process(1, 2, encryption="required"))
    assert any(
        level == "error" and "encrypted, so they are refused" in text for level, text in strict
    )


def test_a_large_store_is_looked_at_in_part(process, monkeypatch):
    """No matter how many blobs a store has, a bounded number of them is examined."""
    monkeypatch.setattr(checks, "_MOST", 5)
    hook = process(1)
    for number in range(9):
        hook.put("a value " * 1000 + str(number))
    asked = []
    blobs = hook.store.blobs
    peek = blobs.peek
    monkeypatch.setattr(
        type(blobs), "peek", lambda _, digests, size: asked.extend(digests) or peek(digests, size)
    )
    [(level, text)] = found(process(1))
    assert level == "ok"
    assert "of 5 blobs examined" in text
    assert len(asked) == 5
