"""Publishing: replace large values in every message, in `AMQP.as_task_v2`, which builds them all.

(The signal ``before_task_publish`` would be the obvious hook, but Celery swallows its receivers'
exceptions: a store outage would silently publish the raw value.)
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from celery.app.amqp import AMQP, task_message

from offload.content.holds import Hold
from offload.hooks.delivery import Delivery, current_delivery
from offload.hooks.fit import check_stayed, fit
from offload.hooks.message import (
    EMBED,
    HEADER,
    REFUSAL,
    STAND_IN,
    Note,
    is_argument,
    marked_refs,
    message_name,
    task_holder,
)
from offload.hooks.outgoing import Outgoing, Slot
from offload.hooks.paths import Path, local_values, replace_each
from offload.hooks.runtime import Runtime
from offload.hooks.search import delay_of, find_in_call, find_in_embedded, seconds_until
from offload.hooks.short import key_of, shorten
from offload.hooks.usercode import (
    guard_router,
    has_listeners,
    known_refs,
    resending,
    showing,
    using,
)
from offload.ref import Ref, in_message
from offload.serializers.choose import certainly_small
from offload.settings import TaskOptions

_PARAMETERS = tuple(inspect.signature(AMQP.as_task_v2).parameters)[1:]
_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
_EMBEDDED_AT = [_PARAMETERS.index(name) - 4 for name in _EMBEDDED]  # after name, args, kwargs
_LAST_EMBEDDED = max(_EMBEDDED_AT)
_embedded = itemgetter(*_EMBEDDED_AT)
_NEEDS_INSPECTION = frozenset((*_EMBEDDED, "offload"))

_NO_CALL = TaskOptions.read(None, "call")


class OffloadAMQP(AMQP):
    """Celery's AMQP, which sends the large values of every task message by reference.

    Attributes:
        is_custom: whether it is derived from a class that isn't Celery's.
    """

    is_custom = False

    def as_task_v2(
        self,
        task_id: str,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        *given: Any,
        **options: Any,
    ) -> Any:
        runtime: Runtime | None = getattr(self.app, "_offload", None)
        build = super().as_task_v2
        if runtime is None or can_skip(runtime, task_id, name, args, kwargs, given, options):
            return build(task_id, name, args, kwargs, *given, **options)
        call = dict(zip(_PARAMETERS, (task_id, name, args, kwargs, *given), strict=False))
        call.update(options)
        if (self.is_custom or has_listeners()) and not resending.get():
            return _showing_values(runtime, build, call)
        return _publish(runtime, build, call)

    def Router(self, *args: Any, **options: Any) -> Any:  # noqa: N802 (Celery's name)
        """Return Celery's router, which shows values to functions in ``task_routes``."""
        router = super().Router(*args, **options)
        runtime: Runtime | None = getattr(self.app, "_offload", None)
        if runtime is not None:
            guard_router(runtime, router)
        return router

    def as_task_v1(self, *given: Any, **options: Any) -> Any:
        """Check the settings, which refuse the old protocol: it would bypass `as_task_v2`."""
        runtime: Runtime | None = getattr(self.app, "_offload", None)
        if runtime is not None:
            _ = runtime.settings
        return super().as_task_v1(*given, **options)

    def _create_task_sender(self) -> Any:
        send = super()._create_task_sender()

        def send_task_message(
            producer: Any, name: str, message: Any, *, headers: Any = None, **options: Any
        ) -> Any:
            options.pop("offload", None)  # not a property of a broker's message
            if headers and HEADER in headers:  # of the message that is being retried
                headers = {key: value for key, value in headers.items() if key != HEADER}
            if isinstance(message, _Shown) and message.finish is not None:
                producer = _Finishing(_StandingIn(producer), message)
            elif HEADER in message.headers:
                producer = _StandingIn(producer)
            sent = send(producer, name, message, headers=headers, **options)
            runtime: Runtime | None = getattr(self.app, "_offload", None)
            limit = None if runtime is None else runtime.message_limit
            if limit is not None and not limit.is_known:
                limit.learn(producer.connection)
            return sent

        return send_task_message


def amqp_class(base: type) -> type:
    """Return a subclass of *base*, the app's AMQP class, with our hooks."""
    if base is AMQP:
        return OffloadAMQP
    return type(base.__name__, (OffloadAMQP, base), {"is_custom": True})


def can_skip(
    runtime: Runtime,
    task_id: str,
    name: str,
    args: Any,
    kwargs: Any,
    given: Sequence[Any],
    options: dict[str, Any],
) -> bool:
    """Return whether a call certainly makes the same message as without offload.

    This runs for every message, and is all that small ones cost. *given* are Celery's positional
    arguments after ``kwargs``. False means that the message must be inspected.
    """
    if (
        len(given) <= _LAST_EMBEDDED
        or any(_embedded(given))
        or not _NEEDS_INSPECTION.isdisjoint(options)
        or resending.get()
        or (current_delivery() is not None and _options_of_retried(task_id, name) is not None)
    ):
        return False
    limit = runtime.inspection_threshold(runtime.options(name)[0]) - 1
    if (message := runtime.message_limit) is not None:
        limit = min(limit, message.share(args, kwargs, given, options) - 1)
    if limit < 0:
        return False
    serializer = options.get("serializer") or runtime.app.conf.task_serializer
    for value in args or ():
        if not certainly_small(value, limit, serializer):
            return False
    for value in kwargs.values() if kwargs else ():
        if not certainly_small(value, limit, serializer):
            return False
    return True


def _options_of_retried(task_id: str, name: str) -> TaskOptions | None:
    """Return the call options of the message being retried; None for another message."""
    delivery = current_delivery()
    if delivery is None or delivery.options is _NO_CALL or delivery.task.name != name:
        return None
    return delivery.options if delivery.task.request.id == task_id else None


class _Shown(task_message):
    """A message with all values, for receivers of Celery's signals to see and change.

    *finish* turns its body into the message that is sent.
    """

    finish: Callable[[Any], Any] | None = None


class _StandingIn:
    """A producer that names `STAND_IN` as the task of messages with references.

    It does so after Celery's signal, whose receivers see the task's own name.
    """

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def publish(self, body: Any, *given: Any, headers: Any = None, **options: Any) -> Any:
        if headers and HEADER in headers:
            said = {**headers[HEADER], "task": headers["task"]}
            headers = {**headers, "task": STAND_IN, HEADER: said}
        return self._producer.publish(body, *given, headers=headers, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


class _Finishing:
    """A producer that replaces a message's values as it publishes it, after Celery's signal."""

    def __init__(self, producer: Any, message: _Shown) -> None:
        self._producer = producer
        self._message = message
        self._finished: Any = None

    def publish(self, body: Any, *given: Any, **options: Any) -> Any:
        if body is self._message.body and self._message.finish is not None:
            if self._finished is None:  # Celery may publish again after a failure
                self._finished = self._message.finish(body).body
            body = self._finished
        return self._producer.publish(body, *given, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


def _showing_values(runtime: Runtime, build: Callable[..., Any], call: dict[str, Any]) -> Any:
    """Return the message that *build* makes of *call*, with all values until it is sent."""
    given = call.pop("offload", None)
    with showing(call["name"]) as known:
        call["args"], call["kwargs"] = known.resolve_call(
            runtime, call["name"], call.get("args"), call.get("kwargs")
        )
        call.update({key: known.resolve(runtime, call.get(key)) for key in _EMBEDDED})
    made = _Shown(*build(**call))

    def finish(body: Any) -> Any:
        args, kwargs, embed = body

        def rebuilt(**call: Any) -> Any:
            fields = {key: call.get(key) for key in _EMBEDDED}
            return made._replace(body=(call["args"], call["kwargs"], {**embed, **fields}))

        with using(known):
            now = {**call, **embed, "args": args, "kwargs": kwargs, "offload": given}
            return _publish(runtime, rebuilt, now)

    made.finish = finish
    return made


def _publish(runtime: Runtime, build: Callable[..., Any], call: dict[str, Any]) -> Any:
    """Return the message that *build* makes of *call*, with large values stored and replaced."""
    given = call.pop("offload", None)
    if given is None:
        given = _options_of_retried(call["task_id"], call["name"])
    name, args, kwargs = call["name"], call.get("args") or (), call.get("kwargs") or {}
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, Mapping):
        return build(**call)  # which raises
    options, facts = runtime.options(name, given)
    serializer = call.get("serializer") or runtime.app.conf.task_serializer
    resent = resending.get()

    delivery = current_delivery()
    retention = runtime.retention if options.retention is None else options.retention
    expires = seconds_until(call.get("expires"))
    ttl = expires + runtime.grace if expires else retention + delay_of(call)
    # A message that is sent again keeps its name, because its holds have that name, and can't be
    # changed during a store outage.
    before = delivery if resent else None
    message = before.message if before is not None else message_name(None if expires else retention)

    def search(first: Mapping[tuple[Any, ...], Slot] | None = None) -> Outgoing:
        out = Outgoing(
            runtime=runtime,
            serializer=serializer,
            hold=Hold(ttl, task_holder(call["task_id"], message)),
            embedded_ttl=ttl + retention if expires else ttl,
            known=known_refs(),
            resending=resent is not None,
            first=first,
            leads_to_chord=bool(call.get("chord")),
        )
        find_in_call(out, name, args, kwargs, options, facts)
        for field in _EMBEDDED:
            if signatures := call.get(field):
                find_in_embedded(out, field, signatures)
        return out

    # for the result and for retries, too
    call_options = _NO_CALL if given is None else TaskOptions.read(given, "call")

    def finish(out: Outgoing) -> Any:
        now = call
        if out.slots:
            root: dict[str, Any] = {"args": args, "kwargs": kwargs}
            root.update({field: call.get(field) for field in _EMBEDDED})
            now = {**call, **out.place(root)}  # so that Celery's reprs show Refs
        made = build(**now)
        made.headers.pop(HEADER, None)  # a receiver of signals has one message for all attempts
        since = _chord_since(runtime, out, delivery)
        if out.slots or resent or given is not None or since is not None:
            until = before.until if before is not None else None
            if out.slots and before is None:
                until = runtime.content.now() + ttl
            note = Note(
                holds=message if out.holds or resent else "",
                until=until,
                since=since,
                attempt=resent.attempt if resent else 0,
                waits=resent.waits if resent else 0,
                call=call_options,
            )
            return _marked(made, out, serializer, note)
        return made

    out = search()
    if out.has_local:
        args, kwargs = local_values((args, kwargs))
        call.update(args=args, kwargs=kwargs)
        call.update({field: local_values(call[field]) for field in _EMBEDDED if call.get(field)})
        out = search()
    # A message that is sent again was accepted before, and must not be lost.
    limit = None if resent else runtime.message_limit
    if limit is not None:
        out = fit(out, limit, call, search, finish)
    out.store()
    if out.slots and delivery is not None:
        delivery.record_published(call["task_id"], out.refs)
    made = finish(out)
    if limit is not None and out.stayed:
        check_stayed(made, out, limit, call)
    return made


def _marked(message: Any, out: Outgoing, serializer: str, note: Note) -> Any:
    """Return *message* with references in wire form, and *note*, which lists their paths."""
    args, kwargs, embed = message.body
    is_pickle = serializer == "pickle"
    if is_pickle:
        # Unpickling rebuilds signatures, so no path into them stays valid.
        within = {slot.signature for slot in out.slots if slot.signature and not slot.keep}
        note = replace(
            note,
            refs=[slot.path for slot in out.slots if not slot.is_embedded],
            within=sorted(map(list, within), key=repr),
            mark=secrets.token_hex(8) if out.embedded_refs else "",
            also=[ref.wire for ref in out.embedded_refs] if note.holds else [],
        )
    else:
        note = replace(
            note,
            refs=[slot.path for slot in out.slots if not slot.keep],
            keep=[slot.path for slot in out.slots if slot.keep],
        )
    if out.slots:
        slots = {tuple(slot.path): slot for slot in out.slots if slot.placed}
        key, texts = "", dict[str, str]()  # pickle writes the same text once
        if out.runtime.settings.short_refs and all(map(is_argument, note.refs)):
            key = key_of(slot.ref.wire for slot in slots.values() if slot.ref is not None)
            note = replace(note, key=key)

        def form(_old: Any, path: Path) -> Any:
            slot = slots[tuple(path)]
            assert slot.ref is not None  # noqa: S101 (for the type checker: it is stored)
            wire = slot.ref.wire
            if key and wire not in texts:
                texts[wire] = shorten(wire, key)
            text = texts.get(wire, wire)
            if is_pickle and slot.is_embedded:
                return Ref.unbound(text)
            return in_message(text)

        root = {"args": args, "kwargs": kwargs, **embed}
        embed = replace_each(root, list(slots), form)
        if note.mark:
            mark = note.mark
            embed = replace_each(embed, note.within, lambda node, _path: marked_refs(node, mark))
            embed.update({field: marked_refs(embed.get(field), mark) for field in _EMBEDDED})
        args, kwargs = embed.pop("args"), embed.pop("kwargs")
        kwargs = {REFUSAL: 2, **kwargs}  # any value will do
        referring = {slot.path[1] for slot in out.slots if slot.path[0] == "errbacks"}
        if referring:
            note = replace(note, errbacks=embed["errbacks"])
            kept = [each for i, each in enumerate(embed["errbacks"]) if i not in referring]
            embed["errbacks"] = kept or None
        message.headers[HEADER] = {
            "refs": len(out.slots),
            "bytes": sum(slot.ref.size for slot in out.slots if slot.ref is not None),
        }
    return message._replace(body=(args, kwargs, {**embed, EMBED: note.write()}))


def _chord_since(runtime: Runtime, out: Outgoing, delivery: Delivery | None) -> float | None:
    """Return when the chord began that a message is a part of, or leads to by its chain; None if
    there is none.
    """
    if runtime.settings.mode != "on" or not out.leads_to_chord:
        return None
    if delivery is not None and delivery.since is not None:
        return delivery.since
    return runtime.clock()
