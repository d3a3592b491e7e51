"""What the instructions of this Python do with what: https://docs.python.org/3/library/dis.html"""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Iterable

__all__ = (
    "BUILD_SET",
    "CACHE",
    "CONDITIONS",
    "ENDS",
    "EXTENDED",
    "GLOBALS",
    "HANDLER",
    "JOIN",
    "JUMPS",
    "LOADS",
    "LOAD_CONST",
    "LOAD_NAME",
    "MAKE_FUNCTION",
    "NAMES",
    "NOP",
    "OR_POP",
    "PAIRS",
    "POP_TOP",
    "QUIET",
    "SMALL_INT",
    "STORES_NAME",
    "STORE_FAST",
    "STORE_NAME",
    "SWAP",
    "SWAPPABLE",
    "UNCONDITIONAL",
    "is_backward",
    "one_of",
)

_OPS = dis.opmap


def _known(names: Iterable[str]) -> frozenset[int]:
    return frozenset(_OPS[name] for name in names if name in _OPS)


def one_of(ops: Iterable[int]) -> re.Pattern[bytes]:
    """Return what finds these opcodes in bytes. (Those from 256 on are of the compiler only.)"""
    found = bytes(sorted({op for op in ops if op < _NONE}))
    return re.compile(b"[%b]" % re.escape(found), re.DOTALL)


_NONE = 255  # no instruction has this number
NOP = _OPS["NOP"]
CACHE = 0  # from Python 3.11 on; nothing has this number before
EXTENDED = dis.EXTENDED_ARG
LOAD_CONST = _OPS["LOAD_CONST"]
LOAD_NAME = _OPS["LOAD_NAME"]
STORE_NAME = _OPS["STORE_NAME"]
STORE_FAST = _OPS["STORE_FAST"]
POP_TOP = _OPS["POP_TOP"]
BUILD_SET = _OPS["BUILD_SET"]
SWAP = _OPS.get("SWAP", _NONE)
SMALL_INT = _OPS.get("LOAD_SMALL_INT", _NONE)  # Python 3.14
MAKE_FUNCTION = _OPS["MAKE_FUNCTION"] if sys.version_info < (3, 11) else _NONE
"""It takes a qualified name from the stack."""

LOADS = frozenset(dis.hasconst)
GLOBALS = _known(["LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"])
STORES_NAME = _known(
    ["STORE_NAME", "DELETE_NAME", "STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL"]
)
ENDS = _known(["RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"])
SWAPPABLE = _known(["STORE_FAST", "STORE_FAST_MAYBE_NULL", "POP_TOP"])
QUIET = _known(["STORE_FAST", *(["LOAD_FAST"] if sys.version_info >= (3, 12) else [])])
"""Instructions that raise nothing. A local variable that may be unset is loaded by another one."""

NAMES = dict.fromkeys(dis.hasname, 0)
"""Instructions that take a name: by how many bits its number is shifted."""
if sys.version_info >= (3, 11):
    NAMES[_OPS["LOAD_GLOBAL"]] = 1
if sys.version_info >= (3, 12):
    NAMES[_OPS["LOAD_ATTR"]] = 1
    NAMES[_OPS["LOAD_SUPER_ATTR"]] = 2

JUMPS: dict[int, bool] = {
    **dict.fromkeys(dis.hasjabs, False),
    **dict.fromkeys(dis.hasjrel, True),
}
"""Instructions that may go on elsewhere: whether that is given relatively."""
UNCONDITIONAL = _known(
    ["JUMP_FORWARD", "JUMP_ABSOLUTE", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"]
)


def is_backward(op: int) -> bool:
    return "BACKWARD" in dis.opname[op]


def _conditions() -> dict[int, tuple[int, bool]]:
    """Return, of jumps that take what they decide by from the stack, the one that they are
    written as, and whether they jump where that one does not.
    """
    found = {}
    for name, op in _OPS.items():
        plain = name.replace("_FORWARD", "").replace("_BACKWARD", "")
        for end, other in (("IF_TRUE", "IF_FALSE"), ("IF_NOT_NONE", "IF_NONE")):
            if plain == f"POP_JUMP_{end}":
                found[op] = (_one(f"POP_JUMP_{other}", f"POP_JUMP_FORWARD_{other}"), True)
            elif plain == f"POP_JUMP_{other}":
                found[op] = (_one(f"POP_JUMP_{other}", f"POP_JUMP_FORWARD_{other}"), False)
    return found


def _one(*names: str) -> int:
    return next(_OPS[name] for name in names if name in _OPS)


CONDITIONS = _conditions()

OR_POP = {
    _OPS[name]: _one(f"POP_{name[:-7]}", f"POP_JUMP_FORWARD_{name[5:-7]}")
    for name in ("JUMP_IF_TRUE_OR_POP", "JUMP_IF_FALSE_OR_POP")
    if name in _OPS
}
"""Instructions that keep what they decided by where they jump (to Python 3.11), and those that
do not."""


def _pairs() -> dict[int, tuple[int, int]]:
    """Return the instructions that stand for two, which are of one line (Python 3.13)."""
    found = {}
    for first in ("LOAD_FAST", "STORE_FAST", "LOAD_FAST_BORROW"):
        for second in ("LOAD_FAST", "STORE_FAST", "LOAD_FAST_BORROW"):
            op = _OPS.get(f"{first}_{second}")
            if op is not None:
                found[op] = (_OPS[first], _OPS[second])
    return found


PAIRS = _pairs()

JOIN, HANDLER = CACHE, EXTENDED
"""Written in place of instructions: that it goes on where it was before, and by what exceptions
are handled from here on. No instruction that is written has these numbers."""
