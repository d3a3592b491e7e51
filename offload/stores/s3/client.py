"""Requests to one S3 bucket, through boto3 clients and threads per process."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

from botocore.exceptions import ClientError

from offload.stores.processes import PerProcess
from offload.stores.s3.clock import ServerClock
from offload.stores.s3.driver_errors import check_answer, driver_errors, server_time, status_of
from offload.stores.processes import Threads

__all__ = ("GONE_OR_CHANGED", "Connect", "S3Client")

Client = Any  # boto3 makes its classes at run time
Response = Mapping[str, Any]

GONE_OR_CHANGED = (404, 409, 412)
"""Statuses of a condition that doesn't hold: for ``If-Match`` without an object moto answers 404
and SeaweedFS 412; S3 answers 409 to concurrent conditional writes."""


class Connect(Protocol):
    """Create boto3's S3 client.

    For *records* (pointers and leases), whose content has no digest, everything is signed and
    nothing is retried.
    """

    def __call__(self, *, records: bool) -> Client: ...


class S3Client:
    """A client for one bucket; each process creates its boto3 clients and threads when needed.

    Args:
        connect: creates a boto3 client, which is safe among threads but not across forks.
        url: for errors.
        prefix: of all keys.
        threads: requests at once in each process.
        common: arguments of every request.
        writing: arguments of every request that writes an object.
        clock: returns seconds since 1970; replaces the Date of the server's answers.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        bucket: str,
        url: str,
        prefix: str = "",
        threads: int = 16,
        common: Mapping[str, Any] | None = None,
        writing: Mapping[str, Any] | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self.bucket = bucket
        self.prefix = prefix
        self.threads = Threads(threads, "offload-s3")
        self.sleep = sleep
        self._common = {"Bucket": bucket, **(common or {})}
        self._writing = dict(writing or {})
        self._clock = clock
        self._server_clock = ServerClock()
        # A forked child keeps what it inherits: dropping a connection pool takes its lock,
        # which a thread of the parent may have held during the fork.
        self._kept: list[Client] = []
        self._clients = PerProcess(lambda: self._keep(connect(records=False)))
        self._record_clients = PerProcess(lambda: self._keep(connect(records=True)))

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
                self._kept.remove(client)

    def _keep(self, client: Client) -> Client:
        self._kept.append(client)
        return client
