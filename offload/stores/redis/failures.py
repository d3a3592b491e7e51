"""redis-py's errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as driver

from offload.errors import StoreError, StoreUnavailable

__all__ = ("driver_errors", "translate")

# What a server says when it refuses for now. An error that a script ran into comes as the
# script's error in older servers, so these are looked for anywhere in the message.
_PASSING = {
    "OOM": "its memory is full: raise maxmemory, or lower offload_retention",
    "maxmemory": "its memory is full: raise maxmemory, or lower offload_retention",
    "LOADING": "it is loading its data; it will answer when it has done so",
    "READONLY": "it is a read-only replica: after a failover it will settle, else name the primary",
    "CLUSTERDOWN": "the cluster is down: some of its slots have no node",
    "MASTERDOWN": "its link to the primary is down",
    "TRYAGAIN": "slots are moving between its nodes",
    "MISCONF": "it cannot save to disk and takes no writes: look at its log",
    "NOREPLICAS": "it has too few replicas to take writes (min-replicas-to-write)",
    "BUSY": "a script occupies it",
    "max number of clients": "no connection is left: raise maxclients or lower max_connections",
}  # fmt: skip
_CLASSES: dict[type[Exception], str] = {
    driver.OutOfMemoryError: "OOM",
    driver.BusyLoadingError: "LOADING",
    driver.ReadOnlyError: "READONLY",
    driver.MasterDownError: "MASTERDOWN",
    driver.ClusterDownError: "CLUSTERDOWN",
    driver.TryAgainError: "TRYAGAIN",
}
_DENIED = (driver.AuthenticationError, driver.AuthorizationError, driver.NoPermissionError)


@contextmanager
def driver_errors(url: str) -> Iterator[None]:
    """Raise what redis-py raises in this block as a StoreError about *url*."""
    try:
        yield
    except (driver.RedisError, driver.RedisClusterException, OSError) as exc:
        raise translate(exc, url) from exc


def translate(exc: Exception, url: str) -> StoreError:
    """Return our error for one of redis-py's."""
    said = " ".join(str(exc).split())[:500]
    causes = _with_causes(exc)
    if any(isinstance(cause, _DENIED) for cause in causes):
        return StoreError(
            f"{url} refuses this client ({said}): check user name, password and the rights (ACL)",
            store=url,
        )
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return StoreError(
            f"{url} shows a certificate that is not trusted ({said}): check ssl_ca_certs",
            store=url,
        )
    for kind, word in _CLASSES.items():
        if isinstance(exc, kind):
            return StoreUnavailable(f"{url} refuses for now: {_PASSING[word]} ({said})", store=url)
    if "Too many connections" in said:  # the driver's pool; it has no class before 5.3
        return StoreUnavailable(
            f"all connections to {url} are in use: raise max_connections", store=url
        )
    for word, meaning in _PASSING.items():
        if word in said:
            return StoreUnavailable(f"{url} refuses for now: {meaning} ({said})", store=url)
    if isinstance(exc, driver.ResponseError | driver.DataError | driver.InvalidResponse):
        return StoreError(f"{url} refuses: {said}", store=url)
    return StoreUnavailable(
        f"{url} does not answer ({said or type(exc).__name__}): "
        "check that it runs and can be reached from here",
        store=url,
    )


def _with_causes(exc: BaseException) -> list[BaseException]:
    """The exception and those it was raised from: Cluster clients wrap a node's error."""
    found: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__
    return found
