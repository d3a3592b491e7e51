"""The instructions of a code object, in a form that its formatting does not change.

The compiler lets line numbers decide small things: where an instruction that does nothing is
kept, whether a jump to a jump goes straight to its end, whether two instructions become one,
whether a swap is done at once, whether the end of a function is there twice. So instructions are
followed from the first one, as they would run, and written in the order in which they are met;
what was met before is only named, except for short ends, which are always written.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, compress

from offload.registry.opcodes import (
    CACHE,
    CONDITIONS,
    ENDS,
    EXTENDED,
    HANDLER,
    JOIN,
    JUMPS,
    LOAD_CONST,
    NOP,
    OR_POP,
    PAIRS,
    POP_TOP,
    QUIET,
    STORE_FAST,
    STORE_NAME,
    SWAP,
    SWAPPABLE,
    UNCONDITIONAL,
    is_backward,
    one_of,
)

__all__ = ("followed",)

_IS_STEP = bytes(op not in (CACHE, NOP, EXTENDED) for op in range(256))
_SPECIAL = frozenset({EXTENDED, *PAIRS})
_CUTS = one_of({*JUMPS, *ENDS})
_LOST = re.compile(
    b"(?=%b%b*%b)" % tuple(re.escape(bytes([op])) for op in (STORE_FAST, POP_TOP, STORE_FAST)),
    re.DOTALL,
)
"""Something is stored, and then something else, maybe in the same variable."""
_PASSED = frozenset({NOP, *UNCONDITIONAL})
_LONG = 10
"""The compiler writes ends of up to four instructions twice, each of which may stand for two."""


def followed(raw: bytes, table: bytes, unnamed: frozenset[int]) -> tuple[list[int], bytes]:
    """Return the instructions of a code object, and their opcodes alone.

    An instruction is its opcode and, from bit 8 on, its argument; that is 0 for jumps.

    Args:
        raw: its ``co_code``.
        table: its ``co_exceptiontable``; empty where Python has none.
        unnamed: numbers of names that the body of a class may set to a constant; that is left
            out.
    """
    flow = _Flow(raw, table)
    if unnamed:
        flow.leave_out(unnamed)
    return flow.followed()


class _Flow:
    """The instructions of a code object by number, and where they go on."""

    def __init__(self, code: bytes, table: bytes) -> None:
        units = raw = _units(code)
        opcodes = code[::2]
        places: Sequence[int]
        origins: Sequence[int]
        places = origins = range(len(raw) + 1)
        if not _SPECIAL.isdisjoint(opcodes):
            units, opcodes, places, origins = _spread(raw)
        is_step = opcodes.translate(_IS_STEP)
        self.steps = list(compress(units, is_step))
        self.ops = bytearray(compress(opcodes, is_step))
        jumps = list(_jumps(units, opcodes, raw, origins))
        self.is_straight = not jumps and not table
        number = [] if self.is_straight else list(accumulate(is_step, initial=0))
        self.targets = {number[at]: number[places[target]] for at, target in jumps}
        self.handlers = [
            (number[places[begin]], number[places[end]], number[places[target]], how)
            for begin, end, target, how in _table(table)
        ]
        if SWAP in self.ops:
            self._swap()
        self._lose()

    def leave_out(self, names: frozenset[int]) -> None:
        """Leave out where a constant gets one of *names*."""
        for at, op in enumerate(self.ops):
            stores = op == STORE_NAME and self.steps[at] >> 8 in names
            if stores and self.ops[at - 1] == LOAD_CONST:
                self.ops[at - 1] = self.ops[at] = NOP

    def _lose(self) -> None:
        """Pop what is stored in a variable in which something else is stored next."""
        for match in _LOST.finditer(self.ops):
            at = match.start()
            after = at + 1
            while self.ops[after] == POP_TOP:
                after += 1
            if self.steps[at] == self.steps[after]:
                self.ops[at] = self.steps[at] = POP_TOP

    def _swap(self) -> None:
        """Do swaps at once where that is the same, as the compiler does within one line."""
        entered = {*self.targets.values(), *(each[2] for each in self.handlers)}
        for at in range(len(self.ops) - 1, -1, -1):
            count = self.steps[at] >> 8
            places = range(at + 1, at + 1 + count)
            if (
                self.ops[at] == SWAP
                and all(self.ops[each] in SWAPPABLE for each in places)
                and entered.isdisjoint(places)
                and self._may_swap(places)
            ):
                for all_of in (self.steps, self.ops):
                    a, b = places[0], places[-1]
                    all_of[a], all_of[b] = all_of[b], all_of[a]
                self.ops[at] = NOP

    def _may_swap(self, places: range) -> bool:
        """Return whether the first and the last of some stores may change places."""
        stores = [None if self.ops[at] == POP_TOP else self.steps[at] >> 8 for at in places]
        first, *between, last = stores
        return not ({first, last} - {None}).intersection(between) and (
            first is None or first != last
        )

    def _goes_on(self, at: int) -> int:
        """Return the first instruction that does something when it goes on at *at*."""
        seen = set()
        while at not in seen:
            op = self.ops[at]
            if op == NOP:
                at += 1
            elif op in UNCONDITIONAL:
                seen.add(at)
                at = self.targets[at]
            else:
                break
        return at

    def _jump(self, at: int) -> tuple[int, int, int]:
        """Return what is to be written for a jump, where it goes on if it does not jump, and
        where if it does.
        """
        op = self.ops[at]
        after, target = self._goes_on(at + 1), self._goes_on(self.targets[at])
        if op in OR_POP:
            op, target = self._decided(op, target)
        if op in CONDITIONS:
            op, turned = CONDITIONS[op]
            if turned:
                after, target = target, after
        return op, after, target

    def _decided(self, op: int, target: int) -> tuple[int, int]:
        """Return what a jump and its target are if that is another jump that decides by the
        same: that one is decided, too.
        """
        seen = set()
        while self.ops[target] == op and target not in seen:
            seen.add(target)
            target = self._goes_on(self.targets[target])
        other, popping = self.ops[target], OR_POP[op]
        if other in OR_POP and other != op:
            return popping, self._goes_on(target + 1)
        if other in CONDITIONS and CONDITIONS[other][0] == CONDITIONS[popping][0]:
            jumps = CONDITIONS[other] == CONDITIONS[popping]
            return popping, self._goes_on(self.targets[target] if jumps else target + 1)
        return op, target

    def _is_short(self, at: int) -> bool:
        """Return whether few instructions, and no jumps, lead from here to the end."""
        for _ in range(_LONG):
            if self.ops[at] in ENDS:
                return True
            if at in self.targets:
                return False
            at = self._goes_on(at + 1)
        return False

    def followed(self) -> tuple[list[int], bytes]:
        """Return the instructions in the order in which they are met."""
        if self.is_straight and NOP not in self.ops:
            end = _CUTS.search(self.ops).end()  # type: ignore[union-attr]
            return self.steps[:end], bytes(self.ops[:end])
        found: list[int] = []
        opcodes = bytearray()
        number: dict[int, int] = {}
        cuts = self._cuts()
        handling = _Handling(self.handlers)
        waiting = [0]
        steps, ops, targets = self.steps, self.ops, self.targets
        while waiting or handling.waiting:
            at = waiting.pop() if waiting else handling.waiting.pop(0)
            handling.at = None
            while True:
                if ops[at] in _PASSED:
                    at = self._goes_on(at)
                if at in number and not self._is_short(at):
                    found.append(number[at] << 8 | JOIN)
                    opcodes.append(JOIN)
                    break
                number.setdefault(at, len(found))
                end = cuts[bisect_right(cuts, at)]
                if handling.ranges and handling.of(at) != handling.at:
                    while at < end and ops[at] in QUIET:
                        found.append(steps[at])
                        opcodes.append(ops[at])
                        at += 1
                    if at == end:
                        continue
                    for step in handling.change(at):
                        found.append(step)
                        opcodes.append(HANDLER)
                last = end - 1
                if last not in targets:
                    found += steps[at:end]
                    opcodes += ops[at:end]
                    if ops[last] in ENDS:
                        break
                    at = end
                    continue
                found += steps[at:last]
                opcodes += ops[at:last]
                if ops[last] in UNCONDITIONAL:
                    if last == at and self._goes_on(at) == at:  # to itself
                        found.append(len(found) << 8 | JOIN)
                        opcodes.append(JOIN)
                        break
                    at = targets[last]
                    continue
                op, at, target = self._jump(last)
                waiting.append(target)
                found.append(op)
                opcodes.append(op)
        return found, bytes(opcodes)

    def _cuts(self) -> list[int]:
        """Return where something else than the next instruction may follow or come before."""
        cuts = {match.end() for match in _CUTS.finditer(self.ops)}
        cuts.update(self.targets.values())
        for begin, end, target, _ in self.handlers:
            cuts.update((begin, end, target))
        for at, op in enumerate(self.ops if NOP in self.ops else b""):
            if op == NOP:
                cuts.update((at, at + 1))
        return sorted(cuts)


class _Handling:
    """By what exceptions are handled.

    Attributes:
        at: what handles them where it is now.
        waiting: handlers that were met, and are still to be followed.
    """

    def __init__(self, ranges: list[tuple[int, int, int, int]]) -> None:
        self.ranges = ranges
        self.at: tuple[int, int] | None = None
        self.waiting: list[int] = []
        self._numbers: dict[tuple[int, int] | None, int] = {None: 0}

    def of(self, at: int) -> tuple[int, int] | None:
        for begin, end, target, how in self.ranges:
            if begin <= at < end:
                return target, how
        return None

    def change(self, at: int) -> Iterator[int]:
        """Yield what is to be written at *at*, where it changes."""
        found = self.at = self.of(at)
        if found not in self._numbers:
            self._numbers[found] = len(self._numbers)
            assert found is not None  # noqa: S101 (for the type checker)
            self.waiting.append(found[0])
            yield found[1] << 24 | HANDLER
        yield self._numbers[found] << 8 | HANDLER


def _units(raw: bytes) -> list[int]:
    if sys.byteorder == "little":
        return memoryview(raw).cast("H").tolist()
    return [op | argument << 8 for op, argument in zip(raw[::2], raw[1::2], strict=True)]


def _spread(units: list[int]) -> tuple[list[int], bytes, Sequence[int], Sequence[int]]:
    """Return instructions with whole arguments, none of which stands for two, and their opcodes;
    the place that each unit has among them, and the unit that each of them was.
    """
    found: list[int] = []
    places, origins = [], []
    extended = 0
    for at, unit in enumerate(units):
        places.append(len(found))
        op = unit & 255
        argument = extended | unit >> 8
        extended = 0
        if op == EXTENDED:
            extended = argument << 8
            continue
        if op in PAIRS:
            first, op = PAIRS[op]
            found.append(first | argument >> 4 << 8)
            origins.append(at)
            argument &= 15
        found.append(op | argument << 8)
        origins.append(at)
    places.append(len(found))
    return found, bytes(unit & 255 for unit in found), places, origins


def _jumps(
    units: list[int], opcodes: bytes, raw: list[int], origins: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield the places of jumps, and the units of *raw* that they go to."""
    for match in _ONLY_JUMPS.finditer(opcodes):
        at = match.start()
        op = opcodes[at]
        target = units[at] >> 8
        if JUMPS[op]:
            after = origins[at] + 1
            while after < len(raw) and raw[after] == CACHE:
                after += 1
            target = after - target if is_backward(op) else after + target
        yield at, target


_ONLY_JUMPS = one_of(JUMPS)


def _table(table: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield begin, end and handler of each range of an exception table, and how it is handled.

    The form is described in CPython's ``InternalDocs/exception_handling.md``.
    """
    values = _numbers(table)
    for begin in values:
        length, target, how = next(values), next(values), next(values)
        yield begin, begin + length, target, how


def _numbers(table: bytes) -> Iterator[int]:
    value = 0
    for byte in table:
        value = value << 6 | byte & 63
        if not byte & 64:
            yield value
            value = 0
