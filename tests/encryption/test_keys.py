"""Keys: their forms, what is derived from them, and what happens if one can't be had."""

from __future__ import annotations

import base64
import threading

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from offload import ConfigurationError, IntegrityError, KeyUnavailable, StoreUnavailable
from offload.encryption.keys import EncryptionKey, Keyring
from offload.encryption.sealing import OVERHEAD, open_sealed, seal
from offload.settings import RetryPolicy, Settings

RAW, OTHER = bytes(range(32)), bytes(32)
TEXT = "aes256:" + base64.b64encode(RAW).decode()
OTHER_TEXT = "aes256:" + base64.b64encode(OTHER).decode()
ONE_RETRY = RetryPolicy(max_retries=1, interval_start=0)


def test_keys_are_derived_by_hkdf():
    """What a key yields is what RFC 5869's HKDF-SHA256 yields, by another implementation."""

    def hkdf(info: bytes) -> bytes:
        return HKDF(hashes.SHA256(), 32, b"offload encryption 1", info).derive(RAW)

    key = EncryptionKey(RAW)

    assert key.names == hkdf(b"names")
    assert key.contents == hkdf(b"contents")
    assert key.id == hkdf(b"id")[:8].hex()
    assert key.derive("refs") == hkdf(b"refs")
    assert EncryptionKey(OTHER).id != key.id


def test_a_key_is_text_a_file_or_a_callable(tmp_path):
    """All ways to give a key lead to the same key."""
    path = tmp_path / "a key"
    path.write_text(TEXT + "\n")
    sources = [TEXT, str(path), path.as_uri(), lambda: TEXT, lambda: RAW]

    found = {Keyring([source]).current.id for source in sources}

    assert found == {EncryptionKey(RAW).id}


@pytest.mark.parametrize(
    "given",
    (
        "aes256:c2hvcnQ=",
        "aes256:" + "!" * 44,
        base64.b64encode(RAW).decode(),
        "/no/such/file",
        lambda: b"short",
        lambda: 7,
    ),
)
def test_a_wrong_key_is_refused_without_showing_it(given):
    """A key that isn't one is refused by name of the setting, and its text isn't in the error."""
    with pytest.raises(ConfigurationError, match="offload_encryption_keys") as caught:
        Keyring([given]).load()

    if isinstance(given, str) and not given.startswith("/no"):
        assert given not in str(caught.value)
        assert given.partition(":")[2] not in str(caught.value) or ":" not in given


@pytest.mark.parametrize("second", (TEXT, lambda: RAW))
def test_two_keys_with_one_id_are_refused(second):
    """A key that is listed twice is an error at the start."""
    with pytest.raises(ConfigurationError, match="two keys have the id"):
        Keyring([TEXT, second]).load()


def test_a_failing_callable_is_called_a_few_times():
    """A callable that fails is retried as `offload_retry` says, then not for a while."""
    calls, now = [], [100.0]

    def fails() -> str:
        calls.append(1)
        raise OSError(TEXT)

    keyring = Keyring([fails], policy=ONE_RETRY, sleep=lambda _: None, clock=lambda: now[0])

    for _ in range(3):
        with pytest.raises(KeyUnavailable, match="raised OSError in 2 attempts") as caught:
            _ = keyring.keys
        assert TEXT not in str(caught.value)
    assert len(calls) == 2
    now[0] += 6
    with pytest.raises(StoreUnavailable):
        _ = keyring.keys
    assert len(calls) == 4


def test_a_slow_callable_is_waited_for_and_not_called_twice():
    """A callable that is too slow is an error; when it returns, its key is used."""
    calls, returns, now = [], threading.Event(), [0.0]

    def slow() -> str:
        calls.append(1)
        returns.wait(30)
        return TEXT

    keyring = Keyring(
        [slow], policy=ONE_RETRY, sleep=lambda _: None, clock=lambda: now[0], patience=0.01
    )
    with pytest.raises(KeyUnavailable, match="didn't return within"):
        _ = keyring.keys

    returns.set()
    next(iter(keyring._calls.values())).done.wait(30)
    now[0] += 6
    assert keyring.current.id == EncryptionKey(RAW).id
    assert len(calls) == 1


def test_an_unknown_key_is_looked_for_again(tmp_path):
    """A key that was added to a file later is found; keys known before still decrypt."""
    now, path = [0.0], tmp_path / "key"
    path.write_text(TEXT)
    keyring = Keyring([path], clock=lambda: now[0])
    first, second = keyring.current.id, EncryptionKey(OTHER).id

    path.write_text(OTHER_TEXT)
    with pytest.raises(KeyUnavailable, match=second) as caught:
        keyring.find(second)
    assert caught.value.key == second
    now[0] += 31

    assert keyring.find(second).id == keyring.current.id == second
    assert keyring.find(first).id == first


def test_sealed_records_open_only_where_they_were_sealed():
    """Equal records are equal when sealed; a moved, altered, or cut one is refused."""
    keyring = Keyring([OTHER_TEXT, TEXT])
    sealed = seal(b"record", keyring.keys[1], "memo", "memo/abc")

    assert sealed == seal(b"record", keyring.keys[1], "memo", "memo/abc")
    assert len(sealed) == len(b"record") + OVERHEAD
    assert open_sealed(sealed, keyring, "memo", "memo/abc") == b"record"
    assert sealed[10:22] != seal(b"recorf", keyring.keys[1], "memo", "memo/abc")[10:22]
    for purpose, name in (("memo", "memo/abd"), ("catalog", "memo/abc")):
        with pytest.raises(IntegrityError, match="altered, or moved"):
            open_sealed(sealed, keyring, purpose, name)
    for i in range(len(sealed) * 8):
        altered = bytearray(sealed)
        altered[i // 8] ^= 1 << i % 8
        try:
            found = open_sealed(bytes(altered), keyring, "memo", "memo/abc")
        except (IntegrityError, KeyUnavailable):
            continue
        assert i < 16  # without its mark, it is a record from before encryption
        assert found == bytes(altered)
    for size in range(2, len(sealed)):
        with pytest.raises((IntegrityError, KeyUnavailable)):
            open_sealed(sealed[:size], keyring, "memo", "memo/abc")


def test_records_that_are_not_sealed_are_refused_where_encryption_is_required():
    """A record from before encryption is read, unless encryption is required."""
    assert open_sealed(b"{}", Keyring([TEXT]), "memo", "x") == b"{}"
    with pytest.raises(IntegrityError, match="isn't encrypted"):
        open_sealed(b"{}", Keyring([TEXT], required=True), "memo", "x")


@pytest.mark.parametrize(
    ("given", "message"),
    (
        ({"encryption": "required"}, "there is no key"),
        ({"encryption": "yes"}, "expected 'optional' or 'required'"),
        (
            {"encryption": "required", "encryption_keys": TEXT, "on_outage": "inline"},
            "would send values unencrypted",
        ),
        ({"encryption_keys": 7}, "a list of keys"),
        ({"encryption_keys": [b"bytes"]}, "a list of keys"),
    ),
)
def test_wrong_settings_are_refused(given, message):
    """Settings that contradict each other are errors at the start."""
    with pytest.raises(ConfigurationError, match=message):
        Settings(**given)


def test_keys_are_a_list_or_one_key(tmp_path):
    """A single key needs no list; keys aren't shown in the settings' repr."""
    assert Settings(encryption_keys=TEXT).encryption_keys == (TEXT,)
    assert Settings(encryption_keys=tmp_path).encryption_keys == (str(tmp_path),)
    assert TEXT not in repr(Settings(encryption_keys=[TEXT]))
