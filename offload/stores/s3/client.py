"""Requests to one S3 bucket, through boto3 clients and threads of each process.

Also the body of an upload, the server's clock, and the conditions that the server supports.
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

Client = Any  # boto3 creates its classes at run time
Response = Mapping[str, Any]

GONE_OR_CHANGED = (404, 409, 412)
"""HTTP statuses of a failed condition. For ``If-Match`` on a missing object, moto returns 404 and
SeaweedFS 412. S3 returns 409 for concurrent conditional writes."""
PROBE = re.compile(r"[0-9a-f]{32}", re.ASCII)
"""Pattern of the names of objects on which conditions are tested."""
_PROBES = "probe"  # the folder of these
_PROBE_AGE = 3600.0  # seconds after which a probe must be a killed process's
_OTHER_ETAG = '"00000000000000000000000000000000"'
_SMALL = 64 << 10
"""Maximum bytes of a body that is joined, so that it is sent together with the head."""
_PIECE = 1 << 20
"""Bytes to send per call; the socket's timeout applies to each call."""


class S3Client:
    """A client for one bucket; each process creates its boto3 clients and threads when needed.

    Args:
        connect: creates a boto3 client, which is safe among threads but not across forks. With
            *records* (pointers and leases, whose content has no digest), the client must sign
            everything and retry nothing.
        bucket: the bucket's name.
        url: the store's URL without credentials, for errors and operators.
        prefix: prefix of all keys; "" for the bucket's root.
        threads: number of parallel requests in each process.
        common: arguments of all requests.
        writing: arguments of all requests that write an object.
        clock: returns seconds since 1970; replaces the Date of the server's responses, in tests.
        sleep: waits for a number of seconds.
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
        """Make one request; return the HTTP status and boto3's parsed response.

        Raises StoreError for an error status that isn't in *accepted*, and for a missing bucket if
        the server reports that.
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
                if operation != "head_object":  # its errors have only a status
                    check_answer(response, self.url)
                wanted = status in accepted and response["Error"].get("Code") != "NoSuchBucket"
                if not wanted:
                    raise
            else:
                check_answer(response, self.url)
        if records and self._clock is None:
            # boto3 doesn't retry these, so the time of sending is known.
            self._server_clock.learn(self.now(response), sent, time.monotonic())
        return status, response

    def pages(self, folder: str, prefix: str = "") -> Iterator[list[dict[str, Any]]]:
        """Yield the listing of a folder's objects with this prefix, up to 1000 at a time."""
        more: dict[str, Any] = {}
        while True:
            path = f"{self.prefix}{folder}/{prefix}"
            _, page = self.ask("list_objects_v2", Prefix=path, **more)
            yield page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def aged(self, folder: str, age: float) -> Iterator[dict[str, Any]]:
        """Yield the listing of a folder's objects that were written over *age* seconds ago."""
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
        """Return bounds of the server's current time, after a request for a record."""
        if self._clock is not None:
            return self._clock(), self._clock()
        return self._server_clock.bounds()

    # -- life

    def close(self) -> None:
        """Close this process's connections and stop its threads; the next call opens new ones."""
        self.threads.close()
        for clients in (self._clients, self._record_clients):
            client = clients.take()
            if client is not None:
                client.close()


class ServerClock:
    """Bounds of the server's time, from the dates of its responses, which are whole seconds.

    The server created a response after the request was sent, before the response arrived, and
    within the second of its date. So each response narrows the bounds of the offset from this
    host's monotonic clock. A response that contradicts earlier ones resets the bounds, because the
    server's clock was changed.
    """

    def __init__(self) -> None:
        self._ahead = (-math.inf, math.inf)  # bounds of the offset from this host's clock, seconds

    def learn(self, date: float, sent: float, received: float) -> None:
        """Learn from a response's *date*; *sent* and *received* are by `time.monotonic`."""
        low, high = date - received, date + 1 - sent
        # A single assignment needs no lock; at worst, what another thread learned is lost.
        known = max(low, self._ahead[0]), min(high, self._ahead[1])
        self._ahead = known if known[0] <= known[1] else (low, high)

    def bounds(self) -> tuple[float, float]:
        """Return the earliest and latest possible current time, in seconds since 1970."""
        now = time.monotonic()
        low, high = self._ahead
        return now + low, now + high


class Conditions:
    """Checks whether the server supports conditional requests, once in each process.

    A server that ignores conditions responds as if they were met, so they are tested on a separate
    object.
    """

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._found: PerProcess[dict[str, bool]] = PerProcess(dict)

    def require(self) -> None:
        """Raise ConfigurationError if PUT ignores conditions."""
        if not self._known("put"):
            raise ConfigurationError(
                f"{self._client.url} ignores conditions (If-None-Match, If-Match) on writes, so "
                "processes could overwrite each other's pointers and leases: put a store with "
                "pointers before it, or update the server",
                store=self._client.url,
            )

    def require_deletes(self) -> None:
        """Raise ConfigurationError if DELETE ignores conditions."""
        if not self._known("delete"):
            raise ConfigurationError(
                f"{self._client.url} ignores If-Match on deletions, so a sweep could delete blobs "
                "that were stored again meanwhile: give the bucket a lifecycle rule instead",
                store=self._client.url,
            )

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete probes that killed processes left, unless *dry_run*; yield them."""
        for entry in self._client.aged(_PROBES, _PROBE_AGE):
            if not PROBE.fullmatch(entry["Key"].rpartition("/")[2]):
                continue  # not an object of the store
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
    """A file object for botocore that reads from buffers without copying them.

    botocore determines a file's size, rewinds it to send it again, and otherwise passes it to
    urllib3, which sends what `read` returns. Neither checks the length of a piece, so `read`
    returns a large view, no matter what size they request.

    The body is sent once the server agrees (``Expect: 100-continue``). That costs a round trip, but
    lets the server refuse before megabytes are sent. Otherwise, a server that refuses early and
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
        """Go to the start, or back to a position from `tell`. Raises OSError for any other."""
        if whence == 0:
            at = 0
            for number, piece in enumerate([*self._pieces, b""]):
                if at == offset:
                    self._next = number
                    return offset
                at += len(piece)
        raise OSError(f"a blob's body can only seek to the start of a piece, not to {offset}")


def body_of(parts: Parts) -> Body | bytes:
    """Return *parts* in the form that botocore sends the fastest."""
    return b"".join(parts) if size_of(parts) <= _SMALL else Body(parts)


def send_at_once(params: dict[str, Any], **_: Any) -> None:
    """Send a small body without ``Expect: 100-continue``; handles ``before-call.s3``.

    botocore sends that header with every body, which costs a round trip. Besides, versions before
    August 2026 misread the next response on a connection if the server responds at once, as it may
    to an empty body: https://github.com/boto/botocore/issues/3755
    """
    if not isinstance(params.get("body"), Body):
        params["headers"].pop("Expect", None)
