"""What an operator asks about: a digest or its begin, or a reference."""

from __future__ import annotations

import re
from itertools import islice

from offload.digest import Digest, parse_digest
from offload.errors import BlobMissing, InvalidRef
from offload.stores.capabilities import blob_inspection_of
from offload.stores.protocols import Store

__all__ = ("digest_begin", "digest_part", "find", "is_ref", "short")

_DIGEST = re.compile(r"(?:b3[:-])?(?P<digits>[0-9a-f]{8,64})…?", re.ASCII)
_PART = re.compile(r"(?:b3[:-])?(?P<digits>[0-9a-f]{0,64})…?", re.ASCII)
_WHOLE = len("b3:") + 64
_SHOWN = 3  # of several that are meant


def is_ref(text: str) -> bool:
    return text.startswith("offload:")


def digest_begin(text: str) -> str | None:
    """Return how the digest begins that is meant, ``b3:`` and digits; None if none is.

    It may be written as people are shown it: without ``b3:``, and cut.
    """
    match = _DIGEST.fullmatch(text)
    return None if match is None else f"b3:{match['digits']}"


def digest_part(text: str) -> str | None:
    """Return how digests begin that are searched for, as `digest_begin` does, but of any number of
    digits, also none.
    """
    match = _PART.fullmatch(text)
    return None if match is None else f"b3:{match['digits']}"


def find(store: Store, begin: str) -> Digest:
    """Return the digest in *store* that begins so; a whole one is not looked for.

    Raises BlobMissing if there is none, InvalidRef if there are several.
    """
    if len(begin) == _WHOLE:
        return parse_digest(begin)
    found = list(islice(dict.fromkeys(blob_inspection_of(store).find(begin)), _SHOWN + 1))
    if not found:
        raise BlobMissing(
            f"{store.url} has no blob whose digest begins with {begin}",
            digest=begin,
            store=store.url,
        )
    if len(found) > 1:
        listed = ", ".join(found[:_SHOWN]) + (" …" if len(found) > _SHOWN else "")
        raise InvalidRef(f"{begin} may be each of {listed}: say which", store=store.url)
    return found[0]


def short(digest: str) -> str:
    """Return the begin of a digest that people are shown, and that commands understand."""
    return digest[:15]
