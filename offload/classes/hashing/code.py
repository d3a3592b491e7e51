"""Encode plain values and bytecode, with different encodings for different values.

Each encoding starts with a tag and the length or count of what follows.

Bytecode is normalized, so that comments, whitespace, and positions don't change its hash. It refers
to constants and names by index, and a docstring shifts these indexes. So constants and names are
written in the order of their use, and jump targets as instruction numbers. File names, line
numbers, qualified names, and (unless requested) docstrings are omitted. Reformatting that makes the
compiler emit other instructions does change the result.
"""

from __future__ import annotations

import dis
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType
from typing import Any, NamedTuple

_POSITION = frozenset({"__qualname__", "__firstlineno__", "__static_attributes__"})
"""Names set by a class body that depend only on its position or on its methods."""
_DOC_READERS = frozenset({"__doc__", "getdoc"})
_FLAGS = 0xFFFF & ~0x50
"""Flags of ``co_flags`` that affect how code runs: not 0x10 (nested), 0x40 (derived), nor the
compiler's own, from 0x10000."""
_MAX_CACHED = 4096

HEADER = b"%b[%d]\0"
"""Format of the header before several values: a tag and their count."""
TAGGED = b"%b %d\0%b"
"""Format of a byte string: a tag, its length, and the bytes."""

_OPS = dis.opmap
_NONE = -1
_CACHE = 0  # inline caches, since Python 3.11; unused before
_LOAD_CONST, _LOAD_NAME, _STORE_NAME = _OPS["LOAD_CONST"], _OPS["LOAD_NAME"], _OPS["STORE_NAME"]
_SMALL_INT = _OPS.get("LOAD_SMALL_INT", _NONE)  # Python 3.14
_NAMED_FUNCTION = _OPS["MAKE_FUNCTION"] if sys.version_info < (3, 11) else _NONE
"""Opcode that takes the function's qualified name from the stack."""
_CONSTANTS = frozenset(dis.hasconst)
_GLOBALS = frozenset(
    _OPS[name]
    for name in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
    if name in _OPS
)
_STORES = frozenset(
    _OPS[f"{verb}_{kind}"] for verb in ("STORE", "DELETE") for kind in ("NAME", "ATTR", "GLOBAL")
)
_NAME_SHIFTS = dict.fromkeys(dis.hasname, 0)
"""Number of bits by which the argument is shifted, for instructions that take a name."""
if sys.version_info >= (3, 11):
    _NAME_SHIFTS[_OPS["LOAD_GLOBAL"]] = 1
if sys.version_info >= (3, 12):
    _NAME_SHIFTS[_OPS["LOAD_ATTR"]] = 1
    _NAME_SHIFTS[_OPS["LOAD_SUPER_ATTR"]] = 2
_JUMPS = frozenset({*dis.hasjabs, *dis.hasjrel})
_ABSOLUTE_JUMPS = frozenset(dis.hasjabs)
_BACKWARD_JUMPS = frozenset(op for op in _JUMPS if "BACKWARD" in dis.opname[op])


def tagged(tag: bytes, content: bytes) -> bytes:
    return TAGGED % (tag, len(content), content)


def text(tag: bytes, content: str) -> bytes:
    written = content.encode("utf-8", "surrogatepass")
    return TAGGED % (tag, len(written), written)


def _int(value: int) -> bytes:
    return tagged(b"int", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


_SINGLETONS = {
    None: b"none\0",
    True: b"true\0",
    False: b"false\0",
    ...: b"ellipsis\0",
    NotImplemented: b"not implemented\0",
}
ATOMS: dict[type, Callable[[Any], bytes]] = {
    **dict.fromkeys(map(type, _SINGLETONS), _SINGLETONS.__getitem__),
    int: _int,
    float: lambda value: b"float\0" + struct.pack(">d", value),
    complex: lambda value: b"complex\0" + struct.pack(">dd", value.real, value.imag),
    str: partial(text, b"text"),
    bytes: partial(tagged, b"bytes"),
}
"""Encoders for values without parts."""


class Code(NamedTuple):
    """The normal form of a code object, including nested code.

    Attributes:
        content: the encoding; it differs for code that behaves differently.
        globals: names of the globals it uses, sorted.
        reads_docs: whether it reads docstrings.
    """

    content: bytes
    globals: tuple[str, ...]
    reads_docs: bool


_normalized: dict[tuple[int, bool], tuple[CodeType, Code]] = {}


def normalize(code: CodeType, *, docs: bool = False) -> Code:
    """Return the normal form of *code*; with *docs*, docstrings are part of it."""
    # Cache by identity: code objects that compare equal may still differ here.
    found = _normalized.get((id(code), docs))
    if found is None or found[0] is not code:
        if len(_normalized) >= _MAX_CACHED:
            _normalized.clear()
        found = _normalized[id(code), docs] = (code, _write(code, docs))
    return found[1]


def names_in(code: CodeType) -> set[str]:
    """Return all names that *code* and its nested code use, including string constants."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= names_in(constant)
        elif isinstance(constant, str):
            found.add(constant)
    return found


def _write(code: CodeType, docs: bool) -> Code:
    steps: list[int] = []
    constants: list[Any] = []
    names: dict[str, int] = {}
    used: set[str] = set()
    reads: set[str] = set()
    own: set[str] = set()  # names that a class body has certainly set
    instructions, numbers = _instructions(code, docs)
    branches = False
    for unit, op, argument in instructions:
        value = argument
        if op in _CONSTANTS:
            constants.append(code.co_consts[argument])
            value = 0
        elif op in _NAME_SHIFTS:
            shift = _NAME_SHIFTS[op]
            name = code.co_names[argument >> shift]
            value = names.setdefault(name, len(names)) << shift | argument & ((1 << shift) - 1)
            if op in _GLOBALS or (op == _LOAD_NAME and name not in own):
                used.add(name)
            if op not in _STORES:
                reads.add(name)
            elif op == _STORE_NAME and not branches:
                own.add(name)
            else:
                own.discard(name)
        elif op in _JUMPS:
            branches = True
            value = numbers[_target(code.co_code, unit, op, argument)]
        elif op == _NAMED_FUNCTION:
            constants[-1] = None
        steps.append(value << 8 | op)
    contents = []
    reads_docs = "help" in used or not _DOC_READERS.isdisjoint(reads) or "__doc__" in constants
    for constant in constants:
        if isinstance(constant, CodeType):
            inner = normalize(constant, docs=docs)
            used.update(inner.globals)
            reads_docs = reads_docs or inner.reads_docs
            contents.append(inner.content)
        else:
            contents.append(_constant(constant))
    table = getattr(code, "co_exceptiontable", b"")
    for start, length, handler, depth in _handlers(table):
        steps += (numbers[start], numbers[start + length], numbers[handler], depth)
    doc = code.co_consts[0] if docs and code.co_flags & 1 and code.co_consts else None
    content = (
        _signature(code),
        text(b"doc", doc) if isinstance(doc, str) else b"",
        tagged(b"steps", struct.pack(f"<{len(steps)}Q", *steps)),
        text(b"names", "\0".join(names)),
        HEADER % (b"constants", len(contents)),
        *contents,
    )
    return Code(tagged(b"code", b"".join(content)), tuple(sorted(used)), reads_docs)


def _instructions(code: CodeType, docs: bool) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Return (unit, opcode, full argument) of each instruction, and instruction numbers by unit.

    A unit is two bytes. Omits inline caches, and the instructions of a class body that set
    `_POSITION` and docstrings.
    """
    left_out = frozenset[str]()
    if not code.co_flags & 1:  # the body of a class
        left_out = _POSITION if docs else _POSITION | {"__doc__"}
    found: list[tuple[int, int, int]] = []
    numbers: list[int] = []
    raw, extended = code.co_code, 0
    for unit in range(len(raw) // 2):
        op, argument = raw[2 * unit], raw[2 * unit + 1] | extended
        extended = argument << 8 if op == dis.EXTENDED_ARG else 0
        is_left_out = op == _STORE_NAME and code.co_names[argument] in left_out
        if is_left_out and found[-1][1] in (_LOAD_CONST, _SMALL_INT):
            found.pop()
            numbers.append(len(found))
            continue
        numbers.append(len(found))
        if op not in (_CACHE, dis.EXTENDED_ARG):
            # Python 3.10 leaves a meaningless argument in a NOP that replaced an instruction.
            found.append((unit, op, argument if op >= dis.HAVE_ARGUMENT else 0))
    return found, [*numbers, len(found)]


def _target(raw: bytes, unit: int, op: int, argument: int) -> int:
    """Return the unit that a jump targets."""
    if op in _ABSOLUTE_JUMPS:
        return argument
    after = unit + 1
    while after * 2 < len(raw) and raw[after * 2] == _CACHE:
        after += 1
    return after - argument if op in _BACKWARD_JUMPS else after + argument


def _handlers(table: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield start, length, and handler (in units) and stack depth of each exception table range.

    The format is documented in CPython's ``InternalDocs/exception_handling.md``.
    """
    values = []
    value = 0
    for byte in table:
        value = value << 6 | byte & 63
        if not byte & 64:
            values.append(value)
            value = 0
    for at in range(0, len(values), 4):
        start, length, handler, depth = values[at : at + 4]
        yield start, length, handler, depth


def _signature(code: CodeType) -> bytes:
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
    if isinstance(value, slice):  # Python 3.14
        return HEADER % (b"slice", 3) + b"".join(
            map(_constant, (value.start, value.stop, value.step))
        )
    contents = map(_constant, value)
    if isinstance(value, frozenset):  # its order depends on the process
        return HEADER % (b"frozenset", len(value)) + b"".join(sorted(contents))
    return HEADER % (b"tuple", len(value)) + b"".join(contents)
