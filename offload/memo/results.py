"""Find the result of an equal call, wait for it, or compute it and remember it.

Whatever fails here, the function runs as it would without memo: errors are counted, and logged once
for each task or function.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from traceback import format_tb
from typing import Any

from offload.classes.scope import Scope
from offload.content.holds import Hold
from offload.content.manifest import pack, read_small_root, small_root
from offload.content.store import ContentStore
from offload.errors import OffloadError, SerializationError
from offload.memo.flight import BRIEF, Busy, Computation, Flights
from offload.memo.keys import Function
from offload.memo.records import (
    Record,
    Within,
    open_result,
    read_record,
    record_holder,
    release_record,
    write_record,
)
from offload.metrics.counters import Counters
from offload.ref import Ref
from offload.serializers.base import Payload
from offload.serializers.plain import SCALARS, encode_scalar
from offload.text import type_name

__all__ = ("LEASE", "Answer", "Results", "is_lasting")

logger = logging.getLogger(__name__)

LEASE = 30.0
"""Seconds after which another process takes over from one that died while it computed."""

_INLINE = 32 * 1024  # bytes up to which a result is kept in its record
_HEADS = {("raw", "str"): b"str", ("raw", "bytes"): b"bytes"}
_UNHASHED = 1024  # maximum bytes of a result that may be laid out without hashing it
_DATA = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict})
_GRACE = 300.0  # seconds for which the blobs of a result that isn't remembered are kept
_LOGGED = 10_000  # tasks and functions whose errors were logged


@dataclass(frozen=True)
class Answer:
    """A remembered result.

    Attributes:
        value: the result, or its reference if it wasn't read.
        ref: its reference.
        record: the record that it comes from.
        stored: the value of the record's pointer.
    """

    value: Any
    ref: Ref[Any]
    record: Record
    stored: bytes


class Results:
    """The results that one app, or the users of one store, remember.

    Args:
        content: returns this process's content store.
    """

    def __init__(self, content: Callable[[], ContentStore], counters: Counters) -> None:
        self._content = content
        self._counters = counters
        self._made: dict[str, Flights] = {}
        self._verified: tuple[bytes, Record] | None = None  # so that it isn't verified twice
        self._logged: set[str] = set()

    @property
    def flights(self) -> Flights:
        """The computations of this process. Raises ConfigurationError without a store."""
        made = self._made.get("flights")
        if made is None:  # threads that start together agree on one
            flights = Flights(self._content().store, self._is_valid)
            made = self._made.setdefault("flights", flights)
        return made

    def key_of(
        self, function: Function, args: Any, kwargs: Any, scope: Scope, *, refs: bool = True
    ) -> str:
        """Return the key of a call; see `Function.key_of`."""
        content = self._content()
        return function.key_of(
            args,
            kwargs,
            serializers=content.serializers,
            scope=scope,
            chunk_size=content.writer.blob_limit,
            cipher=content.cipher,
            refs=refs,
        )

    def find(
        self, name: str, lease: float, *, block: bool, read: bool
    ) -> Answer | Computation | Busy:
        """Return the result in the record *name*, or acquire its computation.

        Args:
            lease: seconds after which others take over if this process dies.
            block: wait while another process computes, instead of returning Busy.
            read: read a large result, instead of returning its reference.

        Raises OffloadError if the store fails.
        """
        return self.start(name, lease, block=block, read=read)()

    def start(
        self, name: str, lease: float, *, block: bool, read: bool
    ) -> Callable[[], Answer | Computation | Busy]:
        """Return a function, to be called once, that does what `find` does.

        On Redis, this sends the request, so that the caller can do something else meanwhile. This
        call and the returned function raise OffloadError.
        """
        claimed = self.flights.start(name, lease)
        return lambda: self._find(claimed, name, lease, block, read)

    def _find(
        self,
        claimed: Callable[[], bytes | Computation | Busy],
        name: str,
        lease: float,
        block: bool,
        read: bool,
    ) -> Answer | Computation | Busy:
        useless: bytes | None = None
        attempt = 0
        found = claimed()
        while True:
            if isinstance(found, Computation):
                self._counters.add(memo_misses=1)
                return found
            if isinstance(found, Busy):
                if block:
                    if not attempt:
                        self._counters.add(memo_waits=1)
                    self.flights.wait(name, found, attempt)
                elif attempt or not self.flights.wait_briefly(name, found, lease):
                    return found
                attempt += 1
            else:
                answer = self._answer(name, found, read=read)
                if answer is not None:
                    saved = max(int(answer.record.seconds * 1000), 0)
                    self._counters.add(memo_hits=1, memo_milliseconds_saved=saved)
                    if attempt:
                        self.flights.wake(name)
                    return answer
                useless = found
            found = self.flights.claim(name, lease, useless)

    def _answer(self, name: str, stored: bytes, *, read: bool) -> Answer | None:
        """Return the result in a valid record; None if it can't be read."""
        verified, self._verified = self._verified, None
        if verified is not None and verified[0] is stored:
            record: Record | None = verified[1]
        else:
            record = read_record(name, stored, self._content().signing.keys)
        if record is None:
            return None
        try:
            content = self._content()
            ref = open_result(content, record)
            small = None if record.within is None else _small(content, record.within)
            if small is not None:
                value = content.serializers.decode(*small)
            else:
                value = ref.get() if read or ref.data is not None else ref
        except OffloadError as exc:
            logger.warning("%s is computed again: its result can't be read: %s", record.task, exc)
            return None
        return Answer(value, ref, record, stored)

    def _is_valid(self, name: str, stored: bytes) -> bool:
        content = self._content()
        record = read_record(name, stored, content.signing.keys)
        if record is None and content.signing.refresh(1.0):
            record = read_record(name, stored, content.signing.keys)
        if record is None:
            self._counters.add(refs_refused=1)
            logger.warning(
                "the remembered result %s in %s was altered, or signed with another key: it is "
                "computed again",
                name,
                content.store.url,
            )
            return False
        self._verified = stored, record
        return record.until > content.now()

    def remember(
        self,
        computation: Computation,
        result: Any,
        *,
        task: str,
        scope: str,
        ttl: float,
        seconds: float,
        known: Ref[Any] | None = None,
        serializer: str = "",
        later: Callable[[], None] | None = None,
    ) -> Callable[[], None]:
        """Write the record of a computation, and end it.

        On Redis, this doesn't wait for the answer. Returns a function that does, to be called once.

        Args:
            ttl: seconds for which to remember it.
            seconds: how long the computation took.
            known: the reference of the result, if it is stored.
            serializer: Celery's serializer of results, by which a large one is stored; empty: it
                must come back exactly as it is.
            later: called by the returned function if the record waits for the process's next
                request; it must make sure that there soon is one. Only the record of a brief
                computation waits, if it contains the result and the store supports that.

        This call and the returned function raise OffloadError; this call also raises the errors of
        serializing the result. Then nothing is remembered.
        """
        content = self._content()
        stored = self._stored(
            content,
            result,
            known,
            lambda: Hold(ttl, record_holder(computation.name, computation.fence)),
            serializer,
        )
        within = stored if isinstance(stored, Within) else None
        now = content.now()
        record = Record(
            name=computation.name,
            task=task,
            scope=scope,
            ref=stored.wire if isinstance(stored, Ref) else "",
            within=within,
            seconds=round(seconds, 6),
            fence=computation.fence,
            created=now,
            until=now + ttl,
        )
        value = write_record(record, content.signing.keys)
        if later is not None and within is not None and seconds <= BRIEF:

            def answered(answer: object) -> None:
                if answer != 1:
                    with self._counters.about(task):
                        self._counters.add(memo_fenced=1)

            if self.flights.settle_later(computation, value, ttl, answered):
                return later
        settled = self.flights.settle(computation, value, ttl)

        def finish() -> None:
            if not settled():
                self._counters.add(memo_fenced=1)
                release_record(content, record, _GRACE)

        return finish

    def _stored(
        self,
        content: ContentStore,
        result: Any,
        known: Ref[Any] | None,
        hold: Callable[[], Hold],
        serializer: str,
    ) -> Ref[Any] | Within:
        """Return a small result as its record contains it, or the reference of a large one.

        Holds the large one by *hold*.
        """
        if isinstance(result, Ref) and known is None:
            known = content.opened(result)
        if known is not None:
            content.holds.add([known], hold())
            return known
        if type(result) in SCALARS and content.cipher is None:
            scalar = encode_scalar(result)
            root = None if scalar is None else small_root(*scalar)
            if scalar is not None and root is not None:  # what follows, in fewer calls
                serializer, head, body = scalar
                return Within(root, serializer, type_name(result), len(head) + len(body))
        try:
            payload = content.serializers.encode_exactly(result)
        except SerializationError:
            if not serializer:
                raise
            payload = content.serializers.encode(result, serializer)  # as it arrives by Celery
        if payload.size <= _INLINE:
            root = _root_of(payload)
            if content.cipher is not None:
                root = content.cipher.seal_inline(root)  # which reading it opens
            return Within(root, payload.serializer, payload.type, payload.size)
        if serializer:
            payload = content.writer.serialize(result, serializer)
        return content.writer.put_payload(payload, hold=hold())

    def forget(self, answer: Answer) -> None:
        """Forget a result whose blobs are missing."""
        self._content().store.pointers.swap(answer.record.name, answer.stored, None)

    def uncached(self, name: str, error: BaseException) -> None:
        """Count a call that can't be looked up or remembered, and log the first of each *name*."""
        self._counters.add(memo_uncached=1)
        if name not in self._logged and len(self._logged) < _LOGGED:
            self._logged.add(name)
            is_ours = isinstance(error, OffloadError)
            # The text of others, such as of a user's key function, may contain arguments.
            where = "".join(format_tb(error.__traceback__))
            logger.warning(
                "%s runs without memo: %s%s; further such calls are only counted%s",
                name,
                type(error).__name__,
                f": {error}" if is_ours else "",
                "" if is_ours else f". It was raised here:\n{where}",
            )


def _small(content: ContentStore, within: Within) -> tuple[str, bytes, Sequence[memoryview]] | None:
    """Return serializer, head, and buffers of a small result with the usual layout, to decode it
    directly; None for other results, which are read like stored values.
    """
    serializer, kind = within.serializer, within.type
    head = b"" if serializer == "json" else _HEADS.get((serializer, kind))
    if head is None or content.cipher is not None:
        return None
    body = read_small_root(serializer, head, within.root, within.size - len(head))
    return None if body is None else (serializer, head, [memoryview(body)])


def _root_of(payload: Payload) -> bytes:
    """Return a payload as one root blob."""
    if len(payload.buffers) == 1 and payload.size <= _UNHASHED:
        root = small_root(payload.serializer, payload.head, bytes(payload.buffers[0]))
        if root is not None:
            return root
    return b"".join(pack(payload, whole=True).root)


def is_lasting(result: Any) -> bool:
    """Return whether a result can be remembered: it isn't used up by reading it once."""
    return type(result) in _DATA or not (
        inspect.isawaitable(result) or isinstance(result, Iterator)
    )
