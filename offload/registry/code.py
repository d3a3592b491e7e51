"""What a code object does, whatever it is called by and wherever it stands.

Bytecode names constants and globals by their place in tables, and those places move with
things that decide nothing: a docstring is a constant, too. So instructions are taken with
what they load in place of where it stands. Left out are file names, line numbers and
positions, the qualified name, and whether a function was written within another one.

The opcodes are those of `dis`: https://docs.python.org/3/library/dis.html
"""

from __future__ import annotations

import dis
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

__all__ = ("Instructions", "instructions")

_EXTENDED = dis.EXTENDED_ARG
_LOAD_CONST = dis.opmap["LOAD_CONST"]
_SMALL_INT = dis.opmap.get("LOAD_SMALL_INT", -1)  # Python 3.14
_BUILD_SET = dis.opmap["BUILD_SET"]
_GLOBALS = {
    dis.opmap[name]: int(name == "LOAD_GLOBAL" and sys.version_info >= (3, 11))
    for name in (
        "LOAD_GLOBAL",
        "STORE_GLOBAL",
        "DELETE_GLOBAL",
        "LOAD_NAME",
        "LOAD_FROM_DICT_OR_GLOBALS",
    )
    if name in dis.opmap
}
"""Opcodes that take a global's name: by how many bits its number is shifted."""
_STORE_NAME = dis.opmap["STORE_NAME"]
_MAKE_FUNCTION = dis.opmap["MAKE_FUNCTION"] if sys.version_info < (3, 11) else -1
_OF_INTEREST = re.compile(
    b"[%b]"
    % re.escape(
        bytes(
            {*_GLOBALS, *dis.hasconst, _SMALL_INT, _BUILD_SET, _STORE_NAME, _MAKE_FUNCTION} - {-1}
        )
    ),
    re.DOTALL,
)
_WHERE = frozenset({"__doc__", "__qualname__", "__firstlineno__", "__static_attributes__"})
"""What the body of a class sets and that says where it stands, or is derived."""
_READS_DOCS = frozenset({"__doc__", "getdoc", "getcomments"})
_FLAGS = 0xFFFF & ~0x10
"""Those of ``co_flags`` that say how it runs; 0x10 says that it stands within another function,
and the higher ones are of the compiler and the file."""


@dataclass(frozen=True)
class Instructions:
    """What a code object does.

    Attributes:
        steps: its instructions, without what they load.
        constants: what they load, in the order in which they do.
        unordered: begins and ends of those of *constants* whose order decides nothing.
        globals: the names of the globals that it uses, sorted; those of code within it are
            not among them.
        shape: all else that decides how it runs.
        reads_docs: whether it asks for docstrings.
    """

    steps: bytes
    constants: tuple[Any, ...]
    unordered: tuple[tuple[int, int], ...]
    globals: tuple[str, ...]
    shape: bytes
    reads_docs: bool


@lru_cache(maxsize=4096)
def instructions(code: CodeType) -> Instructions:
    """Return what *code* does."""
    raw = code.co_code
    steps = bytearray(raw)
    names = code.co_names
    constants: list[Any] = []
    unordered: list[tuple[int, int]] = []
    used: set[str] = set()
    row, last = 0, -1
    sets_doc = False
    opcodes = raw[::2]
    for match in _OF_INTEREST.finditer(opcodes):
        i = match.start()
        op = opcodes[i]
        argument = raw[2 * i + 1]
        before, shift = i - 1, 8
        while before >= 0 and opcodes[before] == _EXTENDED:
            argument |= raw[2 * before + 1] << shift
            before, shift = before - 1, shift + 8
        if op in _GLOBALS:
            used.add(names[argument >> _GLOBALS[op]])
        elif op == _STORE_NAME:
            name = names[argument]
            if name in _WHERE and last == i - 1:
                constants[-1] = None
                sets_doc = sets_doc or name == "__doc__"
        elif op == _MAKE_FUNCTION:
            constants[-1] = None  # its qualified name
        elif op == _BUILD_SET:
            # The order in which a set's constants are written decides nothing.
            if row >= argument > 1 and last == i - 1:
                unordered.append((len(constants) - argument, len(constants)))
        else:
            constants.append(argument if op == _SMALL_INT else code.co_consts[argument])
            steps[2 * i] = _LOAD_CONST if op == _SMALL_INT else op
            steps[2 * i + 1] = 0
            row = row + 1 if last == i - 1 else 1
            last = i
    return Instructions(
        bytes(steps),
        tuple(constants),
        tuple(unordered),
        tuple(sorted(used)),
        repr(
            (
                code.co_argcount,
                code.co_posonlyargcount,
                code.co_kwonlyargcount,
                code.co_flags & _FLAGS,
                code.co_name,
                names,
                code.co_varnames,
                code.co_cellvars,
                code.co_freevars,
                getattr(code, "co_exceptiontable", b""),
            )
        ).encode("utf-8", "surrogatepass"),
        not _READS_DOCS.isdisjoint(names) and not sets_doc,
    )
