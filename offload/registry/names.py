"""What versions are called: by people, and in a store.

In a store, under pointers' names::

    plugins/<Name>/<hash>.pkl       a version; never changed
    plugins/<Name>/latest.json      the version that is meant where none is said
    plugins/<Name>/tags/<tag>.json  the one that is meant by a tag
    plugins/<Name>/<hash>.<begin of its digest>.<number>.pkl
                                    where a long one goes on

``<Name>`` is the module and qualified name, as ``shop.models.Filter``. What a pointer's name
cannot hold is written as ``-`` and two hexadecimal digits for each byte of UTF-8; a name that is
too long is cut, and ends in ``--`` and 16 digits of its SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from offload.errors import NotShippable

__all__ = ("FOLDER", "TAG", "Names", "check_hash", "name_of", "tags_in", "versions_in")

FOLDER = "plugins/"
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_.]", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_VERSION = re.compile(r".*/([0-9a-f]{64})\.pkl", re.ASCII)
_TAGGED = re.compile(rf".*/tags/({TAG.pattern})\.json", re.ASCII)
_LONGEST = 100


def name_of(obj: Any) -> str:
    """Return the name that a class or function is shipped under: its module and qualified name."""
    qualname = getattr(obj, "__qualname__", None)
    if not isinstance(qualname, str):
        raise NotShippable(f"a class or function is wanted, this is a {type(obj).__name__}")
    return f"{obj.__module__ or '__main__'}.{qualname}"


def check_hash(code_hash: str) -> str:
    """Return *code_hash*; raises ValueError if it does not have the form of one."""
    if not isinstance(code_hash, str) or not _HASH.fullmatch(code_hash):
        raise ValueError(f"not the hash of a class: {code_hash!r:.100}")
    return code_hash


def versions_in(pointers: Iterable[str]) -> list[str]:
    """Return the hashes of the versions that are among the pointers of a class."""
    return [match[1] for pointer in pointers if (match := _VERSION.fullmatch(pointer))]


def tags_in(pointers: Iterable[str]) -> list[str]:
    """Return the tags that are among the pointers of a class."""
    return [match[1] for pointer in pointers if (match := _TAGGED.fullmatch(pointer))]


class Names:
    """The pointers of one class."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = f"{FOLDER}{_written(name)}/"
        self.latest = f"{self.folder}latest.json"

    def version(self, code_hash: str) -> str:
        return f"{self.folder}{check_hash(code_hash)}.pkl"

    def more(self, code_hash: str, digest: str, count: int) -> list[str]:
        """Return the names of what follows the first part of a long version."""
        begin = f"{self.folder}{check_hash(code_hash)}.{digest.partition(':')[2][:16]}"
        return [f"{begin}.{number}.pkl" for number in range(1, count)]

    def tag(self, tag: str) -> str:
        """Return the name of a tag; raises ValueError if it cannot be one."""
        if not isinstance(tag, str) or not TAG.fullmatch(tag) or tag == "latest":
            raise ValueError(
                f"not a tag: {tag!r:.60}; a tag is 1 to 40 of A-Z a-z 0-9 . _ -, and not 'latest'"
            )
        return f"{self.folder}tags/{tag}.json"


def _written(name: str) -> str:
    written = "".join(
        c if _PLAIN.match(c) else "".join(f"-{b:02x}" for b in c.encode("utf-8", "surrogatepass"))
        for c in name
    )
    if written in ("", ".", ".."):
        written = written.replace(".", "-2e") or "-"
    if len(written) > _LONGEST:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        written = f"{written[: _LONGEST - 18]}--{digest}"
    return written
