"""Requests to one S3 bucket, through boto3 clients and threads per process.

Besides the client: the body of an upload, the server's clock, and the conditions that the
server supports.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from botocore.exceptions import ClientError

from offload.errors import ConfigurationError, StoreError
from offload.stores.processes import PerProcess, Threads
from offload.stores.protocols import Parts, SweepItem, size_of
from offload.stores.s3.driver_errors import check_answer, driver_errors, server_time, status_of

Client = Any  # boto3 makes its classes at run time
Response = Mapping[str, Any]

GONE_OR_CHANGED = (404, 409, 412)
"""Statuses of a condition that doesn't hold: for ``If-Match`` without an object moto answers 404
and SeaweedFS 412; S3 answers 409 to concurrent conditional writes."""
PROBE = re.compile(r"[0-9a-f]{32}", re.ASCII)
"""Names of objects that conditions are tried on."""
_PROBES = "probe"  # their folder
_PROBE_AGE = 3600.0  # seconds after which a probe was left by a killed process
_OTHER_ETAG = '"00000000000000000000000000000000"'
_SMALL = 64 << 10
"""Bytes up to which a body is joined: it then goes out together with the head."""
_PIECE = 1 << 20
"""Bytes sent by one call, each with the socket's timeout for itself."""


class S3Client:
    """A client for one bucket; each process creates its boto3 clients and threads when needed.

    Args:
        connect: creates a boto3 client, which is safe among threads but not across forks. With
            *records* (pointers and leases, whose content has no digest), the client signs
            everything and retries nothing.
        url: for errors and operators; without credentials.
        prefix: of all keys; empty for the bucket's top.
        threads: requests at once in each process.
        common: arguments of every request.
        writing: arguments of every request that writes an object.
        clock: returns seconds since 1970; replaces the Date of the server's answers (for tests).
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        connect: Callable[..., Client],
        *,
        bucket: str,
        url: str,
        prefix: str = "offload",
        threads: int = 16,
        common: Mapping[str, Any] | None = None,
        writing: Mapping[str, Any] | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.threads = Threads(threads, "offload-s3")
        self.sleep = sleep
        self._common = {"Bucket": bucket, **(common or {})}
        self._writing = dict(writing or {})
        self._clock = clock
        self._server_clock = ServerClock()
        self._clients = PerProcess(lambda: connect(records=False), keep_inherited=True)
        self._record_clients = PerProcess(lambda: connect(records=True), keep_inherited=True)

    # -- requests

    def ask(
        self,
        operation: str,
        accepted: Collection[int] = (),
        *,
        records: bool = False,
        **arguments: Any,
    ) -> tuple[int, Response]:
        """Make one request; return the HTTP status and boto3's parsed answer.

        Another status than success raises StoreError unless it is *accepted*. (A missing bucket
        always raises, if the server reports it.)
        """
        if operation in ("put_object", "copy_object"):
            arguments = {**self._writing, **arguments}
        if operation == "copy_object" and "ExpectedBucketOwner" in self._common:
            arguments["ExpectedSourceBucketOwner"] = self._common["ExpectedBucketOwner"]
        with driver_errors(self.url):
            client = (self._record_clients if records else self._clients).get()
            sent = time.monotonic()
            try:
                response: Response = getattr(client, operation)(**self._common, **arguments)
                status = response["ResponseMetadata"]["HTTPStatusCode"]
            except ClientError as exc:
                response, status = exc.response, status_of(exc)
                if operation != "head_object":  # whose errors have only a status
                    check_answer(response, self.url)
                wanted = status in accepted and response["Error"].get("Code") != "NoSuchBucket"
                if not wanted:
                    raise
            else:
                check_answer(response, self.url)
        if records and self._clock is None:
            # These aren't retried, so it is certain when the request was sent.
            self._server_clock.learn(self.now(response), sent, time.monotonic())
        return status, response

    def pages(self, folder: str, prefix: str = "") -> Iterator[list[dict[str, Any]]]:
        """Yield the listed objects of a folder with this prefix, up to 1000 at a time."""
        more: dict[str, Any] = {}
        while True:
            path = f"{self.prefix}{folder}/{prefix}"
            _, page = self.ask("list_objects_v2", Prefix=path, **more)
            yield page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def aged(self, folder: str, age: float) -> Iterator[dict[str, Any]]:
        """Yield the listed objects of a folder that were last written over *age* seconds ago."""
        path = f"{self.prefix}{folder}/"
        _, answer = self.ask("list_objects_v2", Prefix=path, MaxKeys=1)
        latest = self.now(answer) - age
        for page in self.pages(folder):
            yield from (entry for entry in page if entry["LastModified"].timestamp() < latest)

    def now(self, response: Response) -> float:
        """Return the date of *response* in whole seconds since 1970, rounded down."""
        if self._clock is not None:
            return self._clock()
        dated = server_time(response)
        return time.time() if dated is None else dated

    def bounds(self) -> tuple[float, float]:
        """Return the earliest and latest possible server's time, after a request for a record."""
        if self._clock is not None:
            return self._clock(), self._clock()
        return self._server_clock.bounds()

    # -- life

    def close(self) -> None:
        """Close this process's connections and end its threads; the next call opens new ones."""
        self.threads.close()
        for clients in (self._clients, self._record_clients):
            client = clients.take()
            if client is not None:
                client.close()


class ServerClock:
    """Bounds of the server's time, from the dates of its answers, which are whole seconds.

    An answer was made between its request's sending and its arrival, and within the second of
    its date. Each answer narrows the offset from this host's monotonic clock. One that
    contradicts the earlier ones resets the bounds: the server's clock was set.
    """

    def __init__(self) -> None:
        self._ahead = (-math.inf, math.inf)  # of this host's clock, at least and at most

    def learn(self, date: float, sent: float, received: float) -> None:
        """Add an answer's *date*; *sent* and *received* are by `time.monotonic`."""
        low, high = date - received, date + 1 - sent
        # One assignment, so that threads need no lock; an answer may be lost.
        known = max(low, self._ahead[0]), min(high, self._ahead[1])
        self._ahead = known if known[0] <= known[1] else (low, high)

    def bounds(self) -> tuple[float, float]:
        """Return the earliest and latest possible time now, in seconds since 1970."""
        now = time.monotonic()
        low, high = self._ahead
        return now + low, now + high


class Conditions:
    """Whether the server supports conditional requests; tried once in each process.

    A server that ignores conditions answers as if they held, so they are tried on an object of
    the store's own.
    """

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._found: PerProcess[dict[str, bool]] = PerProcess(dict)

    def require(self) -> None:
        """Raise ConfigurationError if PUT ignores conditions."""
        if not self._known("put"):
            raise ConfigurationError(
                f"{self._client.url} ignores conditions (If-None-Match, If-Match) on writes, so "
                "processes could overwrite each other's pointers and leases: put a store before "
                "it that keeps them, or update the server",
                store=self._client.url,
            )

    def require_deletes(self) -> None:
        """Raise ConfigurationError if DELETE ignores conditions."""
        if not self._known("delete"):
            raise ConfigurationError(
                f"{self._client.url} ignores If-Match on deletions, so a sweep could remove what "
                "was stored again meanwhile: give the bucket a lifecycle rule instead",
                store=self._client.url,
            )

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete probes that killed processes left, unless *dry_run*; yield them."""
        for entry in self._client.aged(_PROBES, _PROBE_AGE):
            if not PROBE.fullmatch(entry["Key"].rpartition("/")[2]):
                continue  # others put it there
            if not dry_run:
                self._client.ask("delete_object", (404,), records=True, Key=entry["Key"])
            name = entry["Key"][len(self._client.prefix) :]
            yield SweepItem("file", name, entry["Size"], "left by a process that was killed")

    def _known(self, what: str) -> bool:
        found = self._found.get()
        if not found:
            found.update(self._try())
        return found[what]

    def _try(self) -> dict[str, bool]:
        key = f"{self._client.prefix}{_PROBES}/{os.urandom(16).hex()}"
        refusals = (*GONE_OR_CHANGED, 400, 501)

        def put(**condition: str) -> int:
            status, _ = self._client.ask(
                "put_object", refusals, records=True, Key=key, Body=b"offload", **condition
            )
            return status

        def delete(**condition: str) -> int:
            status, _ = self._client.ask(
                "delete_object", refusals, records=True, Key=key, **condition
            )
            return status

        try:
            compares = put(IfNoneMatch="*") == 200
            compares = compares and put(IfNoneMatch="*") in GONE_OR_CHANGED
            compares = compares and put(IfMatch=_OTHER_ETAG) in GONE_OR_CHANGED
            return {"put": compares, "delete": delete(IfMatch=_OTHER_ETAG) in GONE_OR_CHANGED}
        finally:
            with suppress(StoreError):
                delete()


class Body:
    """A file object for botocore, over buffers that aren't copied.

    botocore asks a file for its size, rewinds it to send it again, and otherwise passes it to
    urllib3, which sends what `read` returns. Neither checks the length of a piece, so `read`
    returns a large view, whatever size they ask for.

    It is sent once the server agrees (``Expect: 100-continue``). That costs a round trip, but
    lets a server refuse before megabytes are sent: otherwise, a server that answers early and
    closes the connection would seem unavailable.
    """

    def __init__(self, parts: Parts) -> None:
        self._pieces: list[memoryview] = []
        for part in parts:
            view = memoryview(part).cast("B")
            self._pieces += [view[at : at + _PIECE] for at in range(0, len(view), _PIECE)]
        self._size = sum(map(len, self._pieces))
        self._next = 0

    def __len__(self) -> int:
        return self._size

    def read(self, _size: int = -1) -> memoryview | bytes:
        if self._next == len(self._pieces):
            return b""
        self._next += 1
        return self._pieces[self._next - 1]

    def tell(self) -> int:
        return sum(map(len, self._pieces[: self._next]))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to the start, or back to an earlier position from `tell`."""
        if whence == 0:
            at = 0
            for number, piece in enumerate([*self._pieces, b""]):
                if at == offset:
                    self._next = number
                    return offset
                at += len(piece)
        raise OSError(f"a blob's body goes only back to the start of a piece, not to {offset}")


def body_of(parts: Parts) -> Body | bytes:
    """Return *parts* in the form that botocore sends fastest."""
    return b"".join(parts) if size_of(parts) <= _SMALL else Body(parts)


def send_at_once(params: dict[str, Any], **_: Any) -> None:
    """Send a small body without ``Expect: 100-continue``; handles ``before-call.s3``.

    botocore sends that header with every body. Besides the round trip, versions before August
    2026 misread the next answer on a connection if a server answered at once, as it may for an
    empty body: https://github.com/boto/botocore/issues/3755
    """
    if not isinstance(params.get("body"), Body):
        params["headers"].pop("Expect", None)
