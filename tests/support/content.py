"""Replace parts of a content store."""

from __future__ import annotations

from collections.abc import Callable

from offload.content.store import ContentStore


def set_clock(content: ContentStore, clock: Callable[[], float]) -> None:
    """Make all parts of *content* read the time from *clock*."""
    content.now = clock
    for part in (content.reader, content.writer, content.holds, content.signing):
        part._clock = clock
