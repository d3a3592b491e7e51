"""Policies: which code a process may load."""

from __future__ import annotations

from dataclasses import replace

import pytest

from offload.classes.keys import generate, signer
from offload.classes.policy import Policy
from offload.classes.versions import Record, Signature
from offload.errors import CodeRefused, ConfigurationError

HASH = "0123456789abcdef" * 4
RECORD = Record("shop.Filter", HASH, "b3:" + HASH, 10, "cpython-311", "class", 1.0)
PRIVATE, PUBLIC = generate()
HMAC = "hmac:correct horse battery"


def signed(record=RECORD, key=PRIVATE):
    signing = signer(key)
    record = replace(record, signature=None)
    value = signing.sign(record.signed_bytes).hex()
    return replace(record, signature=Signature(signing.id, value))


def test_nothing_is_allowed_by_default():
    """Without settings nothing may be loaded, whoever signed it and whatever is allowed."""
    for policy in (Policy(), Policy("off", keys=[PUBLIC], allow=["*"])):
        with pytest.raises(
            CodeRefused, match=r"shop.Filter@0123.*offload_code is 'off'.*to change that, set"
        ):
            policy.check(signed())
        with pytest.raises(CodeRefused, match="offload_code"):
            policy.check_name("shop.Filter", None)


@pytest.mark.parametrize("keys", ((PRIVATE, PUBLIC), (HMAC, HMAC)))
def test_signed(keys):
    """Code signed with a listed key may be loaded, and the key is reported."""
    private, public = keys
    policy = Policy("signed", keys=[{"key": public, "name": "ci"}])
    assert policy.check(signed(key=private)) == "ci"


@pytest.mark.parametrize(
    ("record", "message"),
    (
        (RECORD, "version of shop.Filter@0123456789ab is not signed.*offload_signing_key"),
        (signed(key=generate()[0]), "is not among offload_verify_keys .*add it"),
        (signed(key=HMAC), "is not among offload_verify_keys"),
        (replace(signed(), size=11), "altered.*signature by key ci is wrong"),
        (replace(signed(), purpose="latest"), "latest of shop.Filter@.*wrong"),
        (replace(signed(), class_name="shop.Other"), "shop.Other.*wrong"),
        (replace(signed(), python="cpython-312"), "wrong"),
        (replace(signed(), needs=(("a", HASH),)), "wrong"),
        (replace(RECORD, signature=Signature(signer(PRIVATE).id, "")), "wrong"),
        (replace(RECORD, signature=Signature(signer(PRIVATE).id, "no hex")), "wrong"),
        (replace(RECORD, signature=Signature(signer(PRIVATE).id, "00" * 64)), "wrong"),
        (replace(RECORD, signature=Signature("", signed().signature.value)), "not among"),
    ),
)
def test_invalid_signatures(record, message):
    """Unsigned code, code signed by others, and code changed after signing are refused with a
    reason.
    """
    policy = Policy("signed", keys=[{"key": PUBLIC, "name": "ci"}])
    with pytest.raises(CodeRefused, match=message):
        policy.check(record)


def test_rotation():
    """While several keys are listed, code signed with any of them may be loaded."""
    old, new = generate(), generate()
    by_old, by_new = signed(key=old[0]), signed(key=new[0])
    both = Policy("signed", keys=[{"key": old[1], "name": "old"}, new[1]])
    assert both.check(by_old) == "old"
    both.check(by_new)
    with pytest.raises(CodeRefused, match="not among"):
        Policy("signed", keys=[new[1]]).check(by_old)


def test_a_key_expires():
    """After its expiry, nothing signed with a key is loaded, also what was signed before."""
    now = [99.0]
    keys = [{"key": PUBLIC, "name": "ci", "until": 100}]
    policy = Policy("signed", keys=keys, clock=lambda: now[0])
    assert policy.check(signed()) == "ci"
    policy.check_signer(signer(PRIVATE).id)
    now[0] = 100.0
    with pytest.raises(CodeRefused, match="key ci, which has expired: push"):
        policy.check(signed())
    with pytest.raises(ConfigurationError, match="offload_signing_key is ci, which has expired"):
        policy.check_signer(signer(PRIVATE).id)


def test_trusted():
    """In this mode, a signature is reported but not required."""
    policy = Policy("trusted", keys=[{"key": PUBLIC, "name": "ci"}])
    assert policy.check(RECORD) == ""
    assert policy.check(signed()) == "ci"
    assert policy.check(signed(key=HMAC)) == ""
    assert policy.check(replace(signed(), size=11)) == ""


@pytest.mark.parametrize(
    ("allow", "allowed"),
    (
        ((), True),
        (("shop.*",), True),
        (("*",), True),
        (("shop.Filter",), True),
        (("shop.Filte?",), True),
        (("a", "shop.Filter@0123456789ab"), True),
        (("shop.*@" + HASH,), True),
        (("shop",), False),
        (("Filter",), False),
        (("shop.filter",), False),
        (("shop.Filter.*",), False),
        (("shop.Filter@123456789abc",), False),
        (("shop.Filter@" + HASH[:-1] + "0",), False),
        (("shop.Other@" + HASH, "other.*"), False),
    ),
)
@pytest.mark.parametrize("mode", ("signed", "trusted"))
def test_patterns(mode, allow, allowed):
    """A name must match a pattern as a whole, case-sensitively; a pattern with a hash allows only
    that version; this also applies to signed code and in mode ``trusted``.
    """
    policy = Policy(mode, keys=[PUBLIC], allow=list(allow))
    if allowed:
        policy.check(signed())
    else:
        with pytest.raises(CodeRefused, match=r"no pattern of offload_code_allow.*add one"):
            policy.check(signed())


def test_a_pin_excludes_other_versions():
    """Before the version is known, a pinned name passes; after that, only its hash does."""
    policy = Policy("trusted", allow=["shop.Filter@" + HASH[:12]])
    policy.check_name("shop.Filter", None)
    policy.check_name("shop.Filter", HASH)
    with pytest.raises(CodeRefused):
        policy.check_name("shop.Filter", HASH[::-1])
    with pytest.raises(CodeRefused):
        policy.check_name("shop.Other", None)


@pytest.mark.parametrize(
    ("given", "message"),
    (
        ({"mode": "signde"}, "offload_code: 'signde'.*'off', 'signed', or 'trusted'"),
        ({"mode": None}, "offload_code: None"),
        ({"mode": "signed"}, "no key verifies"),
        ({"allow": "shop.*"}, "offload_code_allow: 'shop.*' is invalid; expected a list"),
        ({"allow": ["shop.A@"]}, "offload_code_allow: 'shop.A@'"),
        ({"allow": ["shop.A@zzzzzzzzzzzz"]}, "offload_code_allow"),
    ),
)
def test_wrong_settings_do_not_allow_more(given, message):
    """A wrong mode, text instead of a list, or a pin without a hash is refused at once."""
    with pytest.raises(ConfigurationError, match=message):
        Policy(**given)


def test_keys_are_read_when_they_are_needed():
    """An invalid key is a ConfigurationError when something is to be verified with it."""
    policy = Policy("signed", keys=["ed25519:no"])
    with pytest.raises(ConfigurationError, match="offload_verify_keys"):
        policy.check(signed())
