"""Find the large values of a message: in its arguments, and in the signatures that it carries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.canvas import Signature
from celery.utils.time import maybe_iso8601

from offload.errors import OffloadError, SerializationError
from offload.hooks.message import (
    LONGEST_PATH,
    check_paths,
    cycle_error,
    depth_error,
    described,
    no_path_error,
)
from offload.hooks.options import TaskFacts
from offload.hooks.outgoing import WORTH, Outgoing, Slot
from offload.hooks.paths import (
    Path,
    contains,
    has_paths,
    has_sharing,
    is_signature,
    replace_refs,
    unfolded_size,
)
from offload.hooks.usercode import group_dedup
from offload.ref import LostValue, Ref
from offload.serializers.choose import certainly_small
from offload.serializers.plain import is_data
from offload.settings import TaskOptions

_LINKS = ("link", "link_error", "chord", "chain")
_LARGE = frozenset({*_LINKS, "offload"})
"""Options of a signature that may contain further values, or change which ones are stored."""
_CANVAS = "celery."
_SIGNATURES = frozenset({"task", "tasks", "header", "body", "callback"})
"""Parameters of Celery's own tasks whose arguments it reads as signatures."""
_LATEST_ZONE = timezone(timedelta(hours=-12))  # for a time without a zone: the latest it may mean
_MOST_UNFOLDED = 100_000  # containers to search one by one in an argument with signatures
_LONGEST_DELAY = 10 * 365 * 86400.0  # seconds; longer ones mean never, or are mistakes


def find_in_call(
    out: Outgoing,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: TaskOptions,
    facts: TaskFacts,
    path: tuple[Any, ...] = (),
    *,
    keep: bool = False,
    shift: int = 0,
    signature: tuple[Any, ...] | None = None,
) -> None:
    """Find values in the arguments of a task: the message's own, or one of a signature in it.

    Args:
        path: the path of the call.
        shift: number of results that Celery will put before its arguments.
        keep, signature: as in `Slot`.
    """
    search = in_signatures = _Search(out, name, options, _least(out, options), keep, signature)
    signatures: Collection[str] = ()
    if name.startswith(_CANVAS):
        in_signatures, signatures = replace(search, plain=True, keep=True), _SIGNATURES
    names = facts.parameters[shift:]
    for i, value in enumerate(args):
        argument = names[i] if i < len(names) else f"args[{i}]"
        which = in_signatures if argument in signatures else search
        which.value(value, (*path, "args", i), argument)
    for key, value in kwargs.items():
        which = in_signatures if key in signatures else search
        which.value(value, (*path, "kwargs", key), str(key))


def find_in_embedded(out: Outgoing, field: str, value: Any) -> None:
    """Find values in the signatures that the message carries: callbacks, chain, chord."""
    own, out.hold = out.hold, replace(out.hold, ttl=out.embedded_ttl)
    _signatures(out, value, (field,))
    out.hold = own


def _signatures(
    out: Outgoing,
    value: Any,
    path: tuple[Any, ...],
    *,
    keep: bool = True,
    within: tuple[Any, ...] | None = None,
) -> None:
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            if not _is_small(out, item):
                _signatures(out, item, (*path, i), keep=keep, within=within)
    elif is_signature(value, plain=True):
        _signature(out, value, path, keep=keep, within=within)


def _is_small(out: Outgoing, signature: Any) -> bool:
    """Return whether there is certainly nothing to find in a signature.

    Each step of a chain carries all that follow it, so this must take much less time than Celery
    needs to serialize one.
    """
    if not isinstance(signature, dict):
        return False
    try:
        name, options = signature["task"], signature["options"]
        args, kwargs = signature["args"], signature["kwargs"]
    except KeyError:
        return False
    if options and not (isinstance(options, dict) and _LARGE.isdisjoint(options)):
        return False
    if not (args or kwargs):
        return True
    if type(name) is not str:
        return False
    least = out.leasts.get(name)
    if least is None:
        least = out.leasts[name] = _least(out, out.runtime.options(name)[0])
    return bool(least) and certainly_small((args, kwargs), least - 1, out.serializer)


def _signature(
    out: Outgoing,
    signature: Mapping[str, Any],
    path: tuple[Any, ...],
    *,
    keep: bool = True,
    within: tuple[Any, ...] | None = None,
) -> None:
    within = within or path
    own = signature["options"] or {}
    if path[0] == "chain" and len(path) == 2 and own.get("chord"):  # `_is_small` never skips these
        out.leads_to_chord = True
    args, kwargs = signature["args"] or (), signature["kwargs"] or {}
    name = str(signature["task"])
    options, facts = out.runtime.options(name, own.get("offload"))
    before = out.hold
    if delay := delay_of(own):
        out.hold = replace(before, ttl=before.ttl + delay)
    if name.startswith(_CANVAS):
        search = _Search(out, name, options, _least(out, options), keep, within)
        _canvas(kwargs, search, path)
        kwargs = {}
    find_in_call(
        out,
        name,
        args,
        kwargs,
        options,
        facts,
        path,
        keep=keep,
        shift=0 if signature.get("immutable") else 1,
        signature=within,
    )
    for link in _LINKS:
        if own.get(link):
            _signatures(out, own[link], (*path, "options", link), keep=keep, within=within)
    out.hold = before


def _canvas(kwargs: Mapping[str, Any], search: _Search, path: tuple[Any, ...]) -> None:
    """Find values in a chain, group, chord, map, or chunks.

    Celery itself reads these before any task runs. So signatures and numbers stay as they are, and
    in mapped items only what Celery doesn't read is replaced.
    """
    for key, value in kwargs.items():
        where = (*path, "kwargs", key)
        if key in _SIGNATURES:
            _signatures(search.out, value, where, keep=search.keep, within=search.signature)
        elif key != "it":
            continue
        elif search.task != "celery.chunks":
            search.value(value, where, key)
        elif isinstance(value, (list, tuple)):
            for i, call in enumerate(value):
                for j, item in enumerate(call if isinstance(call, (list, tuple)) else ()):
                    search.value(item, (*where, i, j), f"it[{i}][{j}]")


def _least(out: Outgoing, options: TaskOptions) -> int:
    """Return the size in bytes from which values of a task with *options* are inspected."""
    least = out.runtime.inspection_threshold(options)
    return least if out.first is None else min(least, WORTH)


@dataclass
class _Search:
    """Finds values in the arguments of one task, in the message or in a signature in it.

    Attributes:
        least: the size in bytes from which values are inspected.
        keep, signature: as in `Slot`.
        plain: whether Celery reads plain dicts as signatures here.
    """

    out: Outgoing
    task: str
    options: TaskOptions
    least: int
    keep: bool
    signature: tuple[Any, ...] | None = None
    plain: bool = False

    def value(self, value: Any, path: Path, argument: str) -> None:
        out = self.out
        if self.least and certainly_small(value, self.least - 1, out.serializer):
            return
        if len(path) > LONGEST_PATH:  # readers refuse paths to it, so it stays in the message
            if contains(value, (Ref, LostValue)):
                raise depth_error(self.task, argument)
            return
        if isinstance(value, Ref):
            self._ref(value, path, argument)
        elif isinstance(value, LostValue):
            raise SerializationError(
                f"task {self.task!r}, {argument}: this value was lost, {value}, and there is "
                "nothing to send; check for LostValue before passing on a failed task's arguments",
                task=self.task,
                argument=argument,
            ) from value.error
        elif out.known is not None and (ref := out.known.result_ref(value, out.serializer)):
            self._slot(path, argument, ref=ref)
        elif out.known and (known := self._known(value, argument)) is not None:
            self._ref(known, path, argument)
        elif is_signature(value, plain=self.plain):
            _signature(out, value, tuple(path), keep=self.keep, within=self.signature)
        elif not has_paths(value) and contains(value, (Ref, LostValue)):
            raise no_path_error(self.task, argument, value)
        elif (
            (has_paths(value) and self._holds_special(value))
            or (self.plain and _holds_signatures(value))
            or (out.known and out.known.is_container_of_any(value) and not has_sharing(value))
        ):
            self._container(value, path, argument)
        elif self._inline(argument):
            out.inline.append((self.task, argument, value))
        elif self.options.enabled:
            with out.counted(self.task, argument):
                self._value(value, path, argument, self.options.threshold or 0)

    def _holds_special(self, value: Any) -> bool:
        # Only JSON takes as much memory anyway.
        data = is_data if self.out.serializer == "json" else None
        return contains(value, (Ref, LostValue, Signature), data)

    def _known(self, value: Any, argument: str) -> Ref[Any] | None:
        """Return the reference by which *value* arrived, if it may be sent by reference here."""
        if self._inline(argument) or not self.options.enabled or self.out.known is None:
            return None
        ref = self.out.known.find(value)
        least = self.options.threshold or 0
        least = least if self.out.first is None else min(least, WORTH)
        return ref if ref is not None and ref.size >= least else None

    def _container(self, value: Any, path: Path, argument: str) -> None:
        if id(value) in self.out.entered:
            raise cycle_error(self.task, argument, value)
        if self._must_stay_shared(value):
            self._shared(value, path, argument)
            return
        self.out.entered.add(id(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            self.value(item, (*path, key), f"{argument}[{key!r}]")
        self.out.entered.discard(id(value))

    def _must_stay_shared(self, value: Any) -> bool:
        if self.out.serializer != "pickle" or not has_sharing(value):
            return False
        return not contains(value, (Signature,)) or unfolded_size(value) > _MOST_UNFOLDED

    def _shared(self, value: Any, path: Path, argument: str) -> None:
        """Find only the references: replacing a value by path would split a shared container."""
        check_paths(self.task, argument, value)
        replace_refs(value, lambda lost: self.value(lost, path, argument), LostValue)  # refuses it
        found: dict[int, Ref[Any]] = {}
        replace_refs(value, lambda ref: found.setdefault(id(ref), ref))
        search = replace(self, signature=self.signature or tuple(path))
        for ref in found.values():
            search._ref(ref, path, argument, placed=False)

    def _inline(self, argument: str) -> bool:
        inline = self.options.inline or ()
        return bool(inline) and ("*" in inline or argument.partition("[")[0] in inline)

    def _ref(self, ref: Ref[Any], path: Path, argument: str, *, placed: bool = True) -> None:
        if ref.is_local:
            self.out.has_local = True
            return
        if not self.out.resending:  # it may be another app's, or altered
            try:
                ref = self.out.runtime.content.opened(ref)
            except OffloadError as exc:
                raise described(exc, self.task, argument) from exc
        self._slot(path, argument, ref=ref, placed=placed)

    def _value(self, value: Any, path: Path, argument: str, threshold: int) -> None:
        out = self.out
        if out.first is not None:
            self._again(value, path, argument, out.first.get(tuple(path)))
            return
        out.runtime.counters.add(values_seen=1)
        if out.runtime.settings.mode == "observe":
            out.runtime.observer.observe(value, out.serializer, threshold)
            return
        content = out.runtime.content
        dedup = group_dedup.get()
        shared = dedup.find(value, out.serializer) if dedup is not None else None
        if shared is not None and shared.size >= threshold:
            out.runtime.counters.offloaded(shared.size, shared.size, whole=True)
            out.runtime.counters.add(values_remembered=1)
            self._slot(path, argument, ref=shared)
            return
        found = content.writer.prepare(
            value, celery_serializer=out.serializer, hold=out.hold, threshold=threshold
        )
        if isinstance(found, Ref):
            self._slot(path, argument, ref=found, held=found.digest is not None)
        elif found is not None:
            self._slot(path, argument, payload=found, value=value)

    def _again(self, value: Any, path: Path, argument: str, first: Slot | None) -> None:
        """Find a value in the second search; *first* is its slot from the first search, if any."""
        out = self.out
        least = out.runtime.inspection_threshold(self.options)
        if least and certainly_small(value, least - 1, out.serializer):
            out.runtime.counters.add(values_seen=1)  # the first search skipped it
        if first is not None and first.is_stored:
            out.slots.append(first)
            return
        dedup = group_dedup.get()
        ref = dedup.find(value, out.serializer) if dedup is not None else None
        if ref is not None and ref.digest is not None:
            self._slot(path, argument, ref=ref, optional=True, otherwise=first)
            return
        payload = out.runtime.content.writer.serialize(value, out.serializer)
        if payload.size >= WORTH:
            what = {"payload": payload, "value": value}
            self._slot(path, argument, **what, optional=True, otherwise=first)
        elif first is not None:
            out.slots.append(first)

    def _slot(self, path: Path, argument: str, **what: Any) -> None:
        self.out.slots.append(
            Slot(list(path), self.task, argument, self.keep, self.out.hold, self.signature, **what)
        )


def _holds_signatures(value: Any) -> bool:
    # This includes Celery's list class whose signatures come from a generator.
    return isinstance(value, (list, tuple)) and any(is_signature(v, plain=True) for v in value)


def delay_of(options: Mapping[str, Any]) -> float:
    """Return for how many seconds a call with these *options* waits before it may start."""
    return max(seconds_until(options.get("countdown")), seconds_until(options.get("eta")))


def seconds_until(when: Any) -> float:
    """Return the seconds from now to *when*: a number of seconds, or a time as Celery accepts it.

    0 if it has passed, isn't a time, or is implausibly far ahead.
    """
    if isinstance(when, str):
        try:
            when = maybe_iso8601(when)  # as workers do
        except ValueError:
            return 0.0  # workers will refuse it
    if isinstance(when, datetime):
        when = when if when.tzinfo is not None else when.replace(tzinfo=_LATEST_ZONE)
        when = (when - datetime.now(timezone.utc)).total_seconds()
    is_plausible = isinstance(when, (int, float)) and 0 < when <= _LONGEST_DELAY
    return float(when) if is_plausible else 0.0
