"""Make a content store, and replace parts of it."""

from __future__ import annotations

from collections.abc import Callable

from offload.content.store import ContentStore
from offload.metrics.counters import Counters
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.protocols import Store


def make_content(store: Store, accept: tuple[str, ...] = ("json",)) -> ContentStore:
    """Return a content store on *store* with default settings."""
    return ContentStore(store, Registry(accept), Settings(), Counters())


def set_clock(content: ContentStore, clock: Callable[[], float]) -> None:
    """Make all parts of *content* read the time from *clock*."""
    content.now = clock
    for part in (content.reader, content.writer, content.holds, content.signing):
        part._clock = clock
