"""A message that is published: store its large values, and replace them with references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from offload.content.holds import Hold
from offload.content.small import Stored
from offload.errors import BlobMissing, OffloadError, SerializationError
from offload.hooks.message import described
from offload.hooks.paths import Path, replace_each
from offload.hooks.runtime import Runtime
from offload.hooks.usercode import KnownRefs, group_dedup
from offload.metrics.counters import about_now
from offload.ref import Ref
from offload.serializers.base import Payload
from offload.text import type_name

WORTH = 400  # bytes; a reference in place of a smaller value saves too little


@dataclass
class Slot:
    """A place in the message for a reference.

    Attributes:
        keep: whether the reference stays unresolved when the message arrives.
        signature: the path of the outermost signature that the place is in.
        held: whether the value is held already.
        placed: whether the reference is put there; False for a Ref that is pickled within a
            shared structure, and stays where it is.
        ref, value, payload: the reference, or the value to be stored and its serialized form.
        optional: whether the value is below its threshold, so that it may stay in the message.
        otherwise: what takes an optional slot's place if its value stays; None: nothing.
    """

    path: Path
    task: str
    argument: str
    keep: bool
    hold: Hold
    signature: tuple[Any, ...] | None = None
    held: bool = False
    placed: bool = True
    ref: Ref[Any] | None = None
    value: Any = None
    payload: Payload | None = None
    optional: bool = False
    otherwise: Slot | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether it is in a signature within the message."""
        return self.keep or self.signature is not None

    @property
    def is_stored(self) -> bool:
        """Whether the value is, or will be, in the store instead of the message."""
        return self.payload is not None or (self.ref is not None and self.ref.digest is not None)


@dataclass
class Outgoing:
    """A message that is being published.

    First everything is found and serialized, then everything is stored, so that a value that can't
    be serialized leaves nothing behind.

    Attributes:
        serializer: the message's Celery serializer.
        hold: the hold on the message's values.
        embedded_ttl: seconds for which the values in its callbacks and chain are needed.
        resending: whether the message is sent again because of a store outage.
        known: references of values that were resolved for user code, and of the task's result.
        slots: the places for references.
        inline: values that stay in the message by its options: task, argument, value.
        entered: ids of the containers that are being searched.
        first: the slots that a first search found, by path. A second one also finds values below
            their threshold.
        has_local: whether there are Refs to values in this process, which must be sent instead.
        stayed: whether a value is in the message because the store was unavailable.
        leads_to_chord: whether the task, or a later step of its chain, is a part of a chord.
        leasts: size in bytes from which values in signatures are inspected, by task.
    """

    runtime: Runtime
    serializer: str
    hold: Hold
    embedded_ttl: float
    resending: bool = False
    known: KnownRefs | None = None
    slots: list[Slot] = field(default_factory=list)
    inline: list[tuple[str, str, Any]] = field(default_factory=list)
    entered: set[int] = field(default_factory=set)
    first: Mapping[tuple[Any, ...], Slot] | None = None
    has_local: bool = False
    stayed: bool = False
    leads_to_chord: bool = False
    leasts: dict[str, int] = field(default_factory=dict)

    def store(self) -> None:
        """Store the values that were found, and fill all places with references."""
        if not self.slots:
            return
        if self.inline:
            self._check_inline()
        self._hold([slot for slot in self.slots if slot.ref is not None and not slot.held])
        new = [slot for slot in self.slots if slot.ref is None]
        for slot, stored in zip(new, self._store_small(new), strict=True):
            with self.counted(slot.task, slot.argument):
                self._put(slot, stored)
        self.slots = [slot for slot in self.slots if slot.ref is not None]

    @contextmanager
    def counted(self, task: str, argument: str) -> Iterator[None]:
        """Attribute counts and errors of this block to an argument."""
        token = about_now.set((task, argument))
        try:
            yield
        except OffloadError as exc:
            self.runtime.counters.failed(exc)
            raise described(exc, task, argument) from exc
        finally:
            about_now.reset(token)

    def _check_inline(self) -> None:
        """Raise SerializationError, before anything is stored, if a value can't stay inline."""
        serializers = self.runtime.content.serializers
        for task, argument, value in self.inline:
            if not serializers.leaves_to_celery(value, self.serializer):
                raise SerializationError(
                    f"task {task!r}, {argument}: {self.serializer} can't serialize a "
                    f"{type_name(value)}, which inline keeps in the message; remove it from "
                    "inline, or pass a Ref made by Offload.put",
                    task=task,
                    argument=argument,
                )

    @property
    def holds(self) -> bool:
        """Whether there are holds to release when the task has finished."""
        return any(slot.held for slot in self.slots)

    @property
    def refs(self) -> list[Ref[Any]]:
        """All references in the message."""
        return [slot.ref for slot in self.slots if slot.ref is not None]

    @property
    def embedded_refs(self) -> list[Ref[Any]]:
        """The references in signatures."""
        return [slot.ref for slot in self.slots if slot.ref is not None and slot.is_embedded]

    def place(self, root: Any) -> Any:
        """Return a copy of the message *root* with a reference in each place."""
        refs = {
            tuple(slot.path): slot.ref
            for slot in self.slots
            if slot.ref is not None and slot.placed
        }
        return replace_each(root, list(refs), lambda _old, path: refs[tuple(path)])

    def _hold(self, slots: Sequence[Slot]) -> None:
        """Hold values that are already stored, in one round trip for each time to live."""
        if self.resending:  # the first message holds them
            return
        longest: dict[str, Slot] = {}
        for slot in sorted(slots, key=lambda slot: slot.hold.ttl, reverse=True):
            if slot.ref is not None and slot.ref.digest is not None:
                longest.setdefault(slot.ref.digest, slot)
        by_ttl: dict[float, list[Slot]] = {}
        for slot in longest.values():
            by_ttl.setdefault(slot.hold.ttl, []).append(slot)
        for some in by_ttl.values():
            self._hold_for(some)

    def _hold_for(self, slots: Sequence[Slot]) -> None:
        first, *more = slots
        refs = [slot.ref for slot in slots if slot.ref is not None]
        try:
            first.held = self.runtime.content.holds.add(refs, first.hold)
        except BlobMissing as exc:
            for slot in slots if more else ():  # to find out which of them it is
                self._hold_for([slot])
            # Alone, a value that is believed to be held isn't checked: find it by its digest.
            lost = (s for s in slots if s.ref is not None and s.ref.digest == exc.digest)
            slot = next(lost, first)
            raise described(exc, slot.task, slot.argument) from exc
        except OffloadError as exc:
            raise described(exc, first.task, first.argument) from exc

    def _store_small(self, slots: Sequence[Slot]) -> Sequence[Stored | OffloadError | None]:
        """Store the small values at once; return what `put_or_inline` takes for each slot."""
        payloads = [slot.payload for slot in slots if slot.payload is not None]
        if not payloads:
            return []
        argument = slots[0].argument if len(slots) == 1 else ""
        with self.runtime.counters.about(slots[0].task, argument):
            writer = self.runtime.content.writer
            return writer.store_small(payloads, [slot.hold for slot in slots])

    def _put(self, slot: Slot, stored: Stored | OffloadError | None) -> None:
        payload = slot.payload
        assert payload is not None  # noqa: S101 (for the type checker: a slot has one or a ref)
        ref = self.runtime.content.writer.put_or_inline(
            payload,
            hold=slot.hold,
            value=slot.value,
            celery_serializer=self.serializer,
            stored=stored,
        )
        slot.ref = ref
        slot.held = ref is not None and ref.digest is not None
        self.stayed = self.stayed or not slot.held
        if ref is not None and (dedup := group_dedup.get()) is not None:
            dedup.remember(slot.value, self.serializer, ref)
