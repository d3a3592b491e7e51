"""Make a message fit its broker's limit: store its largest values, or refuse it.

A message is measured only if it might be too large. It is then built as it would be sent, with
references of the right length in place of values that aren't stored yet. If it is too large, a
second search finds values below their threshold, and the largest are stored until the rest fits.
Nothing is stored before it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kombu.serialization import registry

from offload.content.holds import longest_ttl
from offload.digest import Digest
from offload.errors import OffloadError, StoreUnavailable, ValueTooLarge
from offload.hooks.limit import MessageLimit, Sizes
from offload.hooks.outgoing import Outgoing, Slot
from offload.hooks.paths import replace_each
from offload.hooks.short import key_of, shorten
from offload.ref import Keys
from offload.text import human_number

_REFERENCE = 2048  # maximum bytes of a reference with its path
_TYPICAL = 300  # bytes of a reference with its path
_WRAPPED = 24  # bytes around a reference's wire text
_NAMED = 3  # inline arguments named in an error
_TRIAL = Keys((bytes(32),))
_DIGEST = Digest("b3:" + "0" * 64)

Search = Callable[[Mapping[tuple[Any, ...], Slot]], Outgoing]
Finish = Callable[[Outgoing], Any]


def fit(
    out: Outgoing, limit: MessageLimit, call: Mapping[str, Any], search: Search, finish: Finish
) -> Outgoing:
    """Return *out*, or the same message with more values to be stored, so that it fits.

    Args:
        call: the message as a call of `as_task_v2`.
        search: finds values again, given the slots of *out*; see `Outgoing.first`.
        finish: builds the message of an `Outgoing`.

    Raises ValueTooLarge if it can't be made to fit. Then nothing was stored.
    """
    paths = [slot.path for slot in out.slots if slot.placed]
    kept = replace_each(dict(call), paths, lambda _value, _path: None)
    if limit.surely_keeps(kept, _REFERENCE * len(out.slots)):
        return out
    sizes = _measure(out, limit, call, finish)
    if sizes is None or _fits(sizes, limit):
        return out
    if sizes.headers <= limit.headers:
        wider = search({tuple(slot.path): slot for slot in out.slots if slot.placed})
        found = [slot for slot in wider.slots if slot.optional]
        found.sort(key=_size, reverse=True)
        count = 0  # first store nothing more: sending known references again may be enough
        while True:
            chosen = set(map(id, found[:count]))
            out = replace(wider, slots=list(_chosen(wider.slots, chosen)))
            sizes = _measure(out, limit, call, finish) or sizes
            if _fits(sizes, limit):
                _count(out)
                return out
            if count == len(found):
                break
            count = _enough(found, count, sizes, sizes.sent - limit.size)
    error = _too_large(out, limit, sizes, str(call["name"]))
    _release(out)
    with out.runtime.counters.about(str(call["name"]), error.argument or ""):
        out.runtime.counters.failed(error)
    raise error


def check_stayed(message: Any, out: Outgoing, limit: MessageLimit, call: Mapping[str, Any]) -> None:
    """Raise StoreUnavailable if *message* is too large because it contains values that couldn't be
    stored.
    """
    sizes = limit.measure(message, call, out.runtime.app.conf)
    if sizes is not None and not _fits(sizes, limit):
        raise StoreUnavailable(
            f"task {call['name']!r}: the store is unavailable, and with the values that it should "
            f"keep, the message would take {human_number(sizes.sent)} bytes, over the limit of "
            f"{human_number(limit.size)} (offload_message_limit)",
            task=str(call["name"]),
            store=out.runtime.store.url,
        )


def _fits(sizes: Sizes, limit: MessageLimit) -> bool:
    return sizes.sent <= limit.size and sizes.headers <= limit.headers


def _measure(
    out: Outgoing, limit: MessageLimit, call: Mapping[str, Any], finish: Finish
) -> Sizes | None:
    trial = replace(out, slots=_trials(out))
    return limit.measure(finish(trial), call, out.runtime.app.conf)


def _trials(out: Outgoing) -> list[Slot]:
    keys = out.runtime.content.signing.known  # unknown only if no reference has been signed yet
    return [_trial(slot, keys or _TRIAL) for slot in out.slots]


def _trial(slot: Slot, keys: Keys) -> Slot:
    """Return *slot* with a reference as long as its own will be."""
    ref, payload = slot.ref, slot.payload
    if ref is None:
        assert payload is not None  # noqa: S101 (for the type checker: a slot has one or a ref)
        now = 2e9  # as many digits as any time until the year 2286
        lifetime = int(longest_ttl(slot.hold.ttl)) | 1  # the longest form: not whole days
        ref = keys.sign(
            digest=_DIGEST,
            data=None,
            size=payload.size,
            serializer=payload.serializer,
            type=payload.type,
            created=now,
            until=now + lifetime,
        )
    return replace(slot, ref=ref, held=slot.held or ref.digest is not None)


def _size(slot: Slot) -> int:
    if slot.payload is not None:
        return slot.payload.size
    return slot.ref.size if slot.ref is not None else 0


def _enough(found: list[Slot], count: int, sizes: Sizes, excess: int) -> int:
    """Return how many of *found* to store so that *excess* bytes, as sent, are probably saved.

    At least twice *count*, which wasn't enough, so that few attempts are needed.
    """
    rate = sizes.sent / max(sizes.plain + sizes.headers, 1)  # of encoding, and of compression
    needed = min(max(2 * count, count + 1), len(found))
    saved = 0.0
    while count < len(found) and (count < needed or saved < excess):
        saved += rate * (_size(found[count]) - _TYPICAL)
        count += 1
    return count


def _chosen(slots: list[Slot], chosen: set[int]) -> Iterator[Slot]:
    """Yield *slots*, with what stays in the message in place of optional ones not *chosen*."""
    for slot in slots:
        if not slot.optional or id(slot) in chosen:
            yield slot
        elif slot.otherwise is not None:
            yield slot.otherwise


def _count(out: Outgoing) -> None:
    for slot in out.slots:
        if slot.optional and slot.ref is not None:  # another message of the group has stored it
            out.runtime.counters.offloaded(slot.ref.size, slot.ref.size, whole=True)
            out.runtime.counters.add(values_remembered=1)


def _release(out: Outgoing) -> None:
    """Release the values that the store had already, and that were held for this message."""
    for slot in out.slots:
        if slot.held and slot.ref is not None:
            with suppress(OffloadError):  # they expire
                out.runtime.content.holds.release([slot.ref], slot.hold.holder, out.runtime.grace)


def _too_large(out: Outgoing, limit: MessageLimit, sizes: Sizes, task: str) -> ValueTooLarge:
    """Return the error about a message that can't be reduced further."""
    refs = _in_message(out)
    inline = sorted(((_plain_size(value, out.serializer), name) for _, name, value in out.inline))
    headers = (sizes.headers, "headers", "shorten headers, argsrepr, and stamps")
    references = (
        sum(map(len, refs)) + _WRAPPED * len(refs),
        f"{human_number(len(refs))} references",
        "combine values in one list or dict, which becomes one reference"
        + ("" if out.runtime.settings.short_refs else ", set offload_short_refs"),
    )
    kept = (
        sum(size for size, _ in inline),
        f"values kept by inline ({', '.join(name for _, name in inline[: -_NAMED - 1 : -1])})",
        "remove parameters from inline",
    )
    rest = max(sizes.plain - references[0] - kept[0], 0)
    parts = [headers, references, kept, (rest, "other values and signatures", "send fewer")]
    shown = ", ".join(f"{what} {human_number(size)}" for size, what, _ in parts if size)
    if limit.headers < limit.size and sizes.headers > limit.headers:
        over = f"the headers have {human_number(sizes.headers)} bytes"
        most = f"the {human_number(limit.headers)} that fit into a frame of AMQP (frame_max)"
        advice = headers[2].capitalize()
    else:
        over = f"the message would take {human_number(sizes.sent)} bytes"
        most = f"the limit of {human_number(limit.size)}, offload_message_limit"
        advice = f"Either {max(parts)[2]}, or raise the limit, if the broker accepts more"
    return ValueTooLarge(
        f"task {task!r}: {over}, more than {most}; nothing was stored. Before the broker's "
        f"encoding, in bytes: {shown}. {advice}",
        task=task,
        argument=inline[-1][1] if inline and max(parts) is kept else None,
    )


def _in_message(out: Outgoing) -> list[str]:
    """Return the texts of all references, as the message has them."""
    wires = [slot.ref.wire for slot in _trials(out) if slot.ref is not None]
    if not out.runtime.settings.short_refs:
        return wires
    key = key_of(wires)
    return [shorten(wire, key) for wire in wires]


def _plain_size(value: Any, serializer: str) -> int:
    """Return the serialized bytes of *value*; 0 if *serializer* doesn't support it."""
    with suppress(Exception):
        return len(registry.dumps(value, serializer=serializer)[2])
    return 0
