"""How the files of statistics are called."""

from __future__ import annotations

import os
import re

__all__ = ("END", "SNAPSHOT", "is_fold", "is_part", "new_fold", "new_part")

END = ".end"
"""What follows a part's name in that of the file which says that it is over."""

SNAPSHOT = re.compile(r"part-[0-9a-f]{32}(\.end)?|fold-[0-9]{10}-[0-9a-f]{32}", re.ASCII)
"""All names of such files; others put what else lies beside them."""
_PART = re.compile(r"part-[0-9a-f]{32}", re.ASCII)
_FOLD = re.compile(r"fold-([0-9]{10})-[0-9a-f]{32}", re.ASCII)


def new_part() -> str:
    return f"part-{os.urandom(16).hex()}"


def new_fold(old: str | None) -> str:
    """Return a name for the fold that follows *old*."""
    match = _FOLD.fullmatch(old or "")
    number = int(match[1]) + 1 if match else 1
    return f"fold-{number:010}-{os.urandom(16).hex()}"


def is_part(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def is_fold(name: str) -> bool:
    return _FOLD.fullmatch(name) is not None
