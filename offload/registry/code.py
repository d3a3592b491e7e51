"""What a code object does, whatever it is called by and wherever it stands.

Bytecode names constants and globals by their place in tables, and those places move with things
that decide nothing: a docstring is a constant, too. So instructions are taken with what they load
in place of where it stands. Left out are file names, line numbers and positions, the qualified
name, whether a function was written within another one, and docstrings unless they are asked for.

Names of local variables do count: `locals` shows them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

from offload.registry.flow import followed
from offload.registry.opcodes import (
    BUILD_SET,
    GLOBALS,
    HANDLER,
    JOIN,
    JUMPS,
    LOAD_CONST,
    LOAD_NAME,
    LOADS,
    MAKE_FUNCTION,
    NAMES,
    SMALL_INT,
    STORE_NAME,
    STORES_NAME,
    one_of,
)
from offload.registry.plain import ATOMS, begin, tagged, text

__all__ = ("Code", "forget", "names_in", "written")

_DOC = "__doc__"
_WHERE = frozenset({"__qualname__", "__firstlineno__", "__static_attributes__"})
"""What the body of a class sets and that says where it stands, or is derived."""
_READS_DOCS = frozenset({_DOC, "getdoc"})
_HELP = "help"
_FLAGS = 0xFFFF & ~0x50
"""Those of ``co_flags`` that say how it runs. 0x10 says that it stands within another function,
0x40 is derived, the higher ones are of the compiler and the file."""
_NONE: frozenset[int] = frozenset()
_SHOWN = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
"""Types whose values have a repr that no other value has."""
_MOST_BITS = 4096  # Python shows no integers that are much larger
_MOST = 4096
_OF_INTEREST = one_of({*LOADS, *NAMES, SMALL_INT, BUILD_SET, MAKE_FUNCTION})
_BRANCHES = one_of({*JUMPS, JOIN, HANDLER})


class Code(NamedTuple):
    """What a code object, and the code within it, does.

    Attributes:
        content: no two that do different things have the same.
        globals: the names of the globals that it uses, sorted.
        reads_docs: whether it asks for docstrings.
    """

    content: bytes
    globals: tuple[str, ...]
    reads_docs: bool


_written: dict[tuple[int, bool], tuple[CodeType, Code]] = {}


def written(code: CodeType, *, docs: bool = False) -> Code:
    """Return what *code* does; with *docs*, docstrings are part of that."""
    # By identity: code objects that are equal may differ in what decides here.
    found = _written.get((id(code), docs))
    if found is None or found[0] is not code:
        if len(_written) >= _MOST:
            _written.clear()
        found = _written[id(code), docs] = (code, _write(code, docs))
    return found[1]


def forget() -> None:
    """Forget all code that was met."""
    _written.clear()
    _body.cache_clear()


def names_in(code: CodeType) -> set[str]:
    """Return all names that *code* and what is within it use, also as texts."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= names_in(constant)
        elif isinstance(constant, str):
            found.add(constant)
    return found


def _write(code: CodeType, docs: bool) -> Code:
    all_names, all_constants = code.co_names, code.co_consts
    unnamed = _NONE
    if not code.co_flags & 1:  # the body of a class
        left_out = _WHERE if docs else _WHERE | {_DOC}
        unnamed = frozenset(at for at, name in enumerate(all_names) if name in left_out)
    body = _body(code.co_code, getattr(code, "co_exceptiontable", b""), unnamed)
    names = [all_names[at] for at in body.names]
    used = {all_names[at] for at in body.globals}
    reads_docs = _HELP in used or not _READS_DOCS.isdisjoint([all_names[at] for at in body.reads])
    values = [all_constants[at] if type(at) is int else at.value for at in body.constants]
    reads_docs = reads_docs or _DOC in values
    contents = []
    for first, last in body.sets:
        items = values[first:last]
        if len(set(items)) == len(items):  # of 1 and True the first one stays
            contents.append(b"%d set " % first + b"".join(sorted(map(_constant, items))))
            values[first:last] = [_ELSEWHERE] * len(items)
    for at, value in enumerate(values):
        kind = type(value)
        if kind is CodeType:
            inner = written(value, docs=docs)
            contents.append(b"%d " % at + inner.content)
            used.update(inner.globals)
            reads_docs = reads_docs or inner.reads_docs
        elif value is _ELSEWHERE:
            continue
        elif kind not in _SHOWN or (kind is int and value.bit_length() > _MOST_BITS):
            contents.append(b"%d " % at + _constant(value))
        else:
            continue
        values[at] = _ELSEWHERE
    doc = all_constants[0] if docs and code.co_flags & 1 and all_constants else None
    content = b"".join(
        (
            _shape(code),
            text(b"doc", doc) if isinstance(doc, str) else b"",
            body.steps,
            text(b"names", "\0".join(names)),
            text(b"constants", repr(values)),
            begin(b"others", len(contents)),
            *contents,
        )
    )
    return Code(tagged(b"code", content), tuple(sorted(used)), reads_docs)


def _shape(code: CodeType) -> bytes:
    local, cells, free = code.co_varnames, code.co_cellvars, code.co_freevars
    names = "\0".join((code.co_name, *local, *cells, *free))
    counts = (
        f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount} "
        f"{code.co_flags & _FLAGS} {len(local)} {len(cells)} {len(free)}"
    )
    return text(b"shape", f"{counts}\0{names}")


def _constant(value: Any) -> bytes:
    atom = ATOMS.get(type(value))
    if atom is not None:
        return atom(value)
    contents: Iterator[bytes] | list[bytes] = map(_constant, value)
    if isinstance(value, frozenset):
        contents = sorted(contents)
        return begin(b"frozenset", len(value)) + b"".join(contents)
    return begin(b"tuple", len(value)) + b"".join(contents)


class _Elsewhere:
    """Stands for a constant that is written apart."""

    def __repr__(self) -> str:
        return "<>"


_ELSEWHERE = _Elsewhere()


class _Given(NamedTuple):
    """A constant that is not among those of the code."""

    value: Any


class _Body(NamedTuple):
    """Instructions, with names and constants by their number, in the order of their use.

    Attributes:
        steps: the instructions, as bytes.
        names: all names.
        globals: those of globals.
        reads: those that are not only set.
        constants: what is loaded.
        sets: begins and ends of those constants that become a set.
    """

    steps: bytes
    names: list[int]
    globals: list[int]
    reads: list[int]
    constants: list[Any]
    sets: list[tuple[int, int]]


@lru_cache(maxsize=_MOST)
def _body(raw: bytes, table: bytes, unnamed: frozenset[int]) -> _Body:
    """Return what of a code object its constants and names do not decide.

    See `offload.registry.flow.followed` for what is given.
    """
    steps, opcodes = followed(raw, table, unnamed)
    names: dict[int, int] = {}
    used: set[int] = set()
    reads: set[int] = set()
    own: set[int] = set()  # names that a class has certainly set
    constants: list[Any] = []
    sets: list[tuple[int, int]] = []
    row, last = 0, -1
    branch = _BRANCHES.search(opcodes)
    straight = branch.start() if branch else len(opcodes)
    for match in _OF_INTEREST.finditer(opcodes):
        at = match.start()
        op, argument = opcodes[at], steps[at] >> 8
        if op in NAMES:
            shift = NAMES[op]
            name = argument >> shift
            number = names.setdefault(name, len(names))
            steps[at] = (number << shift | argument & ((1 << shift) - 1)) << 8 | op
            if op in GLOBALS or (op == LOAD_NAME and name not in own):
                used.add(name)
            if op not in STORES_NAME:
                reads.add(name)
            elif op == STORE_NAME and at < straight:
                own.add(name)
            else:
                own.discard(name)
        elif op in LOADS or op == SMALL_INT:
            constants.append(_Given(argument) if op == SMALL_INT else argument)
            steps[at] = LOAD_CONST if op == SMALL_INT else op
            row = row + 1 if last == at - 1 else 1
            last = at
        elif op == MAKE_FUNCTION:
            constants[-1] = _Given(None)  # its qualified name
        elif row >= argument > 1 and last == at - 1:
            sets.append((len(constants) - argument, len(constants)))
    packed = tagged(b"steps", struct.pack(f"<{len(steps)}Q", *steps))
    return _Body(packed, list(names), list(used), list(reads), constants, sets)
