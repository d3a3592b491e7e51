"""Keep the results of a chord's parts until the last of them has returned.

Celery's Redis backend collects the parts under one key, whose expiry each returning part
prolongs. The values that the parts refer to follow it. They are held for a quarter longer than
Celery's key, so a part needs to prolong the others only if its process hasn't done so for that
long; parts that return within a quarter of the expiry after the chord began cost nothing.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from offload.content.holds import Hold, holder
from offload.hooks.celery_internals import collected_parts, collects_parts
from offload.hooks.delivery import Delivery, body_of
from offload.hooks.runtime import Runtime, task_holder
from offload.ref import Ref, has_wire_form, wire_text

__all__ = ("PartKeeper", "part_ttl")

logger = logging.getLogger(__name__)

_SHARE = 0.25
_CHORDS = 1000  # that are remembered


def part_ttl(backend: Any) -> float:
    """Return for how many seconds the result of a chord's part is held; 0 where the backend
    doesn't collect parts, or never forgets them.
    """
    return _expires(backend) * (1 + _SHARE)


def _expires(backend: Any) -> float:
    if not collects_parts(backend):
        return 0.0
    return float(getattr(backend, "chord_expires", backend.expires) or 0.0)


class PartKeeper:
    """Extends the holds on results of earlier parts of long chords."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._prolonged: OrderedDict[str, float] = OrderedDict()

    def returns(self, backend: Any, request: Any, delivery: Delivery) -> None:
        """Record that a part returns; extend the others if that is due. Raises nothing."""
        expires, now = _expires(backend), self._runtime.clock()
        if not expires or delivery.since is None or now - delivery.since < expires * _SHARE:
            return
        delivery.parts_are_held = True
        if now - self._prolonged.get(request.group, 0.0) < expires * _SHARE:
            return
        try:
            self._prolong(backend, request)
        except Exception as exc:
            logger.warning("the values of a chord's parts aren't extended: %r", exc)
            return
        self._prolonged[request.group] = now
        while len(self._prolonged) > _CHORDS:
            self._prolonged.popitem(last=False)

    def _prolong(self, backend: Any, request: Any) -> None:
        content = self._runtime.content
        texts = (wire_text(result) for result in collected_parts(backend, request.group))
        refs = [Ref.unbound(text) for text in texts if text is not None and has_wire_form(text)]
        body = body_of(request)
        name = task_holder(body) if body else holder("result", request.group)
        content.holds.add(map(content.opened, refs), Hold(part_ttl(backend), name))
