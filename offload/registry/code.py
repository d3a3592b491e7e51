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
from dataclasses import dataclass
from types import CodeType
from typing import Any

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
_FLAGS = 0xFFFF & ~0x50
"""Those of ``co_flags`` that say how it runs. 0x10 says that it stands within another function,
0x40 is derived, the higher ones are of the compiler and the file."""
_NONE: frozenset[int] = frozenset()
_MOST = 4096
_OF_INTEREST = one_of({*LOADS, *NAMES, SMALL_INT, BUILD_SET, MAKE_FUNCTION})
_BRANCHES = one_of({*JUMPS, JOIN, HANDLER})


@dataclass(frozen=True)
class Code:
    """What a code object, and the code within it, does.

    Attributes:
        content: no two that do different things have the same.
        globals: the names of the globals that it uses.
        reads_docs: whether it asks for docstrings.
    """

    content: bytes
    globals: frozenset[str]
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
    followed.cache_clear()


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
    body = _Body(code, docs)
    out = [_shape(code)]
    if docs and code.co_flags & 1 and code.co_consts and isinstance(code.co_consts[0], str):
        out.append(text(b"doc", code.co_consts[0]))
    out.append(tagged(b"steps", struct.pack(f"<{len(body.steps)}Q", *body.steps)))
    out.append(tagged(b"names", "\0".join(body.names).encode("utf-8", "surrogatepass")))
    used, reads_docs = body.globals, body.reads_docs
    contents = []
    for value in body.constants:
        if isinstance(value, CodeType):
            inner = written(value, docs=docs)
            contents.append(inner.content)
            used |= inner.globals
            reads_docs = reads_docs or inner.reads_docs
        else:
            contents.append(_constant(value))
    for first, last in body.sets():
        contents[first:last] = sorted(contents[first:last])
    out += (begin(b"constants", len(contents)), *contents)
    return Code(tagged(b"code", b"".join(out)), frozenset(used), reads_docs)


def _shape(code: CodeType) -> bytes:
    shape = (
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags & _FLAGS,
        code.co_name,
        code.co_varnames,
        code.co_cellvars,
        code.co_freevars,
    )
    return text(b"shape", repr(shape))


def _constant(value: Any) -> bytes:
    atom = ATOMS.get(type(value))
    if atom is not None:
        return atom(value)
    contents: Iterator[bytes] | list[bytes] = map(_constant, value)
    if isinstance(value, frozenset):
        contents = sorted(contents)
        return begin(b"frozenset", len(value)) + b"".join(contents)
    return begin(b"tuple", len(value)) + b"".join(contents)


class _Body:
    """The instructions of a code object, with names and constants in the order of their use."""

    def __init__(self, code: CodeType, docs: bool) -> None:
        self.code = code
        is_class = not code.co_flags & 1
        unnamed = (
            frozenset(
                number
                for number, name in enumerate(code.co_names)
                if name in _WHERE or (name == _DOC and not docs)
            )
            if is_class
            else _NONE
        )
        steps, opcodes = followed(code.co_code, getattr(code, "co_exceptiontable", b""), unnamed)
        self.steps = list(steps)
        self.names: dict[str, int] = {}
        self.constants: list[Any] = []
        self.globals: set[str] = set()
        self.reads_docs = False
        self._own: set[str] = set()  # names that a class has certainly set
        branch = _BRANCHES.search(opcodes) if is_class else None
        self._straight = branch.start() if branch else len(opcodes)
        self._sets: list[tuple[int, int]] = []
        self._take(opcodes)

    def _take(self, opcodes: bytes) -> None:
        steps = self.steps
        row, last = 0, -1
        for match in _OF_INTEREST.finditer(opcodes):
            at = match.start()
            op, argument = opcodes[at], steps[at] >> 8
            if op in NAMES:
                steps[at] = self._named(op, argument, at) << 8 | op
            elif op in LOADS or op == SMALL_INT:
                self._load(argument if op == SMALL_INT else self.code.co_consts[argument])
                steps[at] = LOAD_CONST if op == SMALL_INT else op
                row = row + 1 if last == at - 1 else 1
                last = at
            elif op == MAKE_FUNCTION:
                self.constants[-1] = None  # its qualified name
            elif row >= argument > 1 and last == at - 1:
                self._sets.append((len(self.constants) - argument, len(self.constants)))

    def _load(self, value: Any) -> None:
        self.constants.append(value)
        if type(value) is str and value == _DOC:
            self.reads_docs = True

    def _named(self, op: int, argument: int, at: int) -> int:
        shift = NAMES[op]
        name = self.code.co_names[argument >> shift]
        number = self.names.setdefault(name, len(self.names))
        if op in GLOBALS or (op == LOAD_NAME and name not in self._own):
            self.globals.add(name)
            self.reads_docs = self.reads_docs or name == "help"
        elif op == STORE_NAME and at < self._straight:
            self._own.add(name)
        elif op in STORES_NAME:
            self._own.discard(name)
        if name in _READS_DOCS and op not in STORES_NAME:
            self.reads_docs = True
        return number << shift | argument & ((1 << shift) - 1)

    def sets(self) -> Iterator[tuple[int, int]]:
        """Yield begin and end of constants that become a set, whose order decides nothing."""
        for first, last in self._sets:
            values = self.constants[first:last]
            if len(set(values)) == len(values):  # of 1 and True the first one stays
                yield first, last
