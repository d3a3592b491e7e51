"""Signing keys and verification keys."""

from __future__ import annotations

import base64
import sys
import traceback
from datetime import date, datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from offload.classes.keys import generate, own_key, signer, verify_keys
from offload.errors import ConfigurationError

HMAC = "hmac:correct horse battery"
UTC = timezone.utc


def only(given):
    [key] = verify_keys([given]).values()
    return key


def pem(private):
    form = serialization.PrivateFormat.PKCS8
    none = serialization.NoEncryption()
    return private.private_bytes(serialization.Encoding.PEM, form, none)


def public_pem(private):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(serialization.Encoding.PEM, form)


@pytest.fixture(params=("ed25519", "hmac", "pem"))
def pair(request, tmp_path):
    """Return a signing key and its verification key, of each kind."""
    if request.param == "ed25519":
        return generate()
    if request.param == "hmac":
        return HMAC, HMAC
    private = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "private.pem").write_bytes(pem(private))
    (tmp_path / "public.pem").write_bytes(public_pem(private))
    return str(tmp_path / "private.pem"), str(tmp_path / "public.pem")


def test_a_signature_is_valid_for_its_content_only(pair):
    """A signature is valid for its content and key only."""
    private, public = pair
    signing, key = signer(private), only(public)
    assert signing.id == key.id
    signature = signing.sign(b"content")
    assert key.verifier.verify(signature, b"content")
    assert not key.verifier.verify(signature, b"content.")
    assert not key.verifier.verify(signature[:-1], b"content")
    assert not key.verifier.verify(bytes([signature[0] ^ 1]) + signature[1:], b"content")
    assert not key.verifier.verify(b"", b"content")
    for other in (generate()[1], "hmac:another long secret"):
        assert not only(other).verifier.verify(signature, b"content")
        assert only(other).id != key.id


def test_text_and_file_are_the_same_key(tmp_path):
    """A key in a PEM file from ``openssl genpkey`` equals the key in text form."""
    private = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(pem(private))
    raw = base64.b64encode(private.private_bytes_raw()).decode()
    assert signer(str(tmp_path / "key.pem")).id == signer(f"ed25519:{raw}").id


def test_signatures_are_those_of_rfc_8032():
    """Signatures match the first test of RFC 8032, section 7.1, as other programs expect."""
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signing = signer("ed25519:" + base64.b64encode(secret).decode())
    assert signing.public == "ed25519:" + base64.b64encode(public).decode()
    assert signing.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb882159"
        "0a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_own_signatures_are_accepted(pair):
    """A signer accepts its own signatures; an HMAC secret signs and verifies."""
    private, public = pair
    [own] = own_key(private)
    assert only(own).id == only(public).id
    assert own_key(None) == ()


@pytest.mark.parametrize(
    ("until", "moment"),
    (
        (None, None),
        ("2027-06-30", datetime(2027, 7, 1, tzinfo=UTC) - timedelta(microseconds=1)),
        (date(2027, 6, 30), datetime(2027, 7, 1, tzinfo=UTC) - timedelta(microseconds=1)),
        ("2027-06-30T12:00:00", datetime(2027, 6, 30, 12, tzinfo=UTC)),
        ("2027-06-30T12:00:00+02:00", datetime(2027, 6, 30, 10, tzinfo=UTC)),
        (datetime(2027, 6, 30, 12), datetime(2027, 6, 30, 12, tzinfo=UTC)),
        (1e9, datetime.fromtimestamp(1e9, UTC)),
        (0, datetime.fromtimestamp(0, UTC)),
    ),
)
def test_the_expiry_of_a_key(until, moment):
    """A date includes the whole day, and a time without a zone is UTC; at the end itself the key
    has expired.
    """
    key = only({"key": HMAC, "until": until})
    if moment is None:
        assert not key.is_expired(1e18)
        return
    assert key.until == moment.timestamp()
    assert not key.is_expired(key.until - 0.001)
    assert key.is_expired(key.until)


def test_names():
    """A key has the name it was given, or its id."""
    assert only({"key": HMAC, "name": "ci"}).name == "ci"
    assert only(HMAC).name == only(HMAC).id


@pytest.mark.parametrize("turned", (False, True))
def test_a_key_listed_twice_expires_early(turned):
    """A key listed twice, with and without an end (such as one's own), has that end."""
    given = [{"key": HMAC, "name": "ci", "until": 5}, *own_key(HMAC), {"key": HMAC, "until": 9}]
    [key] = verify_keys(given[::-1] if turned else given).values()
    assert key.until == 5
    assert turned or key.name == "ci"


@pytest.mark.parametrize(
    ("key", "message"),
    (
        ("ed25519:", "32 bytes"),
        ("ed25519:abc", "32 bytes"),
        ("ed25519:" + base64.b64encode(bytes(31)).decode(), "32 bytes"),
        ("ed25519:" + base64.b64encode(bytes(32)).decode() + "!", "32 bytes"),
        ("hmac:short", "16 characters"),
        ("/nowhere/key.pem", "readable PEM file: No such file"),
        ("", "readable PEM file"),
        ("\0", "readable PEM file: it isn't a path"),
    ),
)
def test_an_invalid_key(key, message):
    """An invalid key is refused with the name of the setting."""
    with pytest.raises(ConfigurationError, match=f"^offload_signing_key: .*{message}"):
        signer(key)
    with pytest.raises(ConfigurationError, match=f"^offload_verify_keys: .*{message}"):
        verify_keys([key])


@pytest.mark.parametrize(
    "given",
    (
        {"name": "ci"},
        {"key": 5},
        {"key": HMAC, "untill": "2027-01-01"},
        {"key": HMAC, "until": ""},
        {"key": HMAC, "until": "soon"},
        {"key": HMAC, "until": "2027-13-01"},
        {"key": HMAC, "until": True},
        {"key": HMAC, "until": float("nan")},
        {"key": HMAC, "until": float("inf")},
        {"key": HMAC, "until": []},
    ),
)
def test_an_invalid_expiry(given):
    """An end that is invalid or would never come is refused."""
    with pytest.raises(ConfigurationError, match="offload_verify_keys"):
        verify_keys([given])


def test_files_with_another_key(tmp_path):
    """A key of another kind, or the other half of a pair, is refused."""
    (tmp_path / "ec.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    (tmp_path / "private.pem").write_bytes(pem(ed25519.Ed25519PrivateKey.generate()))
    (tmp_path / "public.pem").write_bytes(public_pem(ed25519.Ed25519PrivateKey.generate()))
    (tmp_path / "text.pem").write_text("nothing")
    for name in ("ec", "public", "text"):
        with pytest.raises(ConfigurationError, match="offload_signing_key: "):
            signer(str(tmp_path / f"{name}.pem"))
    for name in ("ec", "private", "text"):
        with pytest.raises(ConfigurationError, match="offload_verify_keys: "):
            verify_keys([str(tmp_path / f"{name}.pem")])


@pytest.mark.parametrize("key", ("ed25519=secretsecret", "hmac:secret", "ed25519:secret", "secret"))
def test_a_misspelt_key_is_not_shown(key):
    """Neither the error nor its cause shows an invalid key."""
    for refuse in (lambda: signer(key), lambda: verify_keys([key])):
        with pytest.raises(ConfigurationError) as caught:
            refuse()
        shown = "".join(traceback.format_exception_only(caught.type, caught.value))
        cause = caught.value
        while cause is not None:
            assert "secret" not in str(cause).replace("hmac: secret", "")
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        assert "secret" not in shown.replace("hmac: secret", "")


def test_without_cryptography(monkeypatch):
    """Without the cryptography package, the error says what to install; HMAC works."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(ConfigurationError, match=r"pip install \"offload\[signing\]\""):
        generate()
    with pytest.raises(ConfigurationError, match=r"offload\[signing\]"):
        verify_keys(["ed25519:" + base64.b64encode(bytes(32)).decode()])
    assert only(HMAC).verifier.verify(signer(HMAC).sign(b"x"), b"x")
