"""Hash a large value in a thread, so that its first chunks can be stored meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from types import TracebackType
from typing import final

from offload.content.manifest import Chunk, Packed
from offload.digest import Buffer, Digest
from offload.forks import start_thread_or_call

_Each = Callable[[Chunk, Sequence[Buffer]], None]


class _StoppedError(Exception):
    pass


@final
class HashAhead:
    """Calls *pack* in a thread, from the start of a ``with`` block to its end at the latest.

    Args:
        pack: see `offload.content.manifest.pack`, of which it calls *each*.
    """

    def __init__(self, pack: Callable[[_Each], Packed]) -> None:
        self._pack = pack
        self._hashed: queue.Queue[tuple[Chunk, Sequence[Buffer]] | None] = queue.Queue()
        self._outcome: Packed | Exception | None = None
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> HashAhead:
        self._thread = start_thread_or_call(copy_context().run, "offload-pack", self._run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_stopped = True
        self._join()

    def batches(self, number: int) -> Iterator[dict[Digest, Sequence[Buffer]]]:
        """Yield *number* hashed chunks at a time, until all of the value is hashed."""
        batch: dict[Digest, Sequence[Buffer]] = {}
        while self._outcome is None and (found := self._hashed.get()) is not None:
            chunk, parts = found
            batch[chunk.digest] = parts
            if len(batch) == number:
                yield batch
                batch = {}

    def packed(self) -> Packed:
        """Wait until all is hashed, and return the value's blobs; raises what *pack* does."""
        self._join()
        if isinstance(self._outcome, Packed):
            return self._outcome
        raise self._outcome or RuntimeError("hashing ended without a result")

    def _run(self) -> None:
        try:
            self._outcome = self._pack(self._add)
        except Exception as exc:  # raised by the caller's thread
            self._outcome = exc
        self._hashed.put(None)

    def _add(self, chunk: Chunk, parts: Sequence[Buffer]) -> None:
        if self._is_stopped:
            raise _StoppedError
        self._hashed.put((chunk, parts))

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
