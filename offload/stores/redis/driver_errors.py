"""Translate redis-py's errors."""

from __future__ import annotations

import re
from collections.abc import Sequence

from redis import exceptions as driver

from offload.errors import StoreError, StoreUnavailable

# Words of temporary refusals. Older servers report an error inside a script as the script's
# error, so these are searched anywhere in the message.
_TEMPORARY = {
    "OOM": "its memory is full: raise maxmemory, or lower offload_retention",
    "maxmemory": "its memory is full: raise maxmemory, or lower offload_retention",
    "LOADING": "it is loading its data; try again once it has finished",
    "READONLY": "it is a read-only replica: wait if there was a failover, else name the primary",
    "CLUSTERDOWN": "the cluster is down: some of its slots have no node",
    "MASTERDOWN": "its link to the primary is down",
    "TRYAGAIN": "slots are moving between its nodes",
    "MISCONF": "it can't save to disk, so it refuses writes: look at its log",
    "NOREPLICAS": "it has too few replicas to accept writes (min-replicas-to-write)",
    "BUSY": "it is busy with a script",
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
_DENIED = (driver.AuthenticationError, driver.AuthorizationError)
_NO_RIGHT = re.compile(r"no permissions|can't (run this|access at least)", re.IGNORECASE)
_COMMAND = re.compile(r"run the '([a-z|]+)")


ERRORS = (driver.RedisError, driver.RedisClusterException, OSError)
"""Errors that redis-py raises."""


def is_denied(exc: Exception) -> bool:
    """Return whether one of redis-py's errors reports a missing permission."""
    return _NO_RIGHT.search(str(exc)) is not None


def translate(exc: Exception, url: str, commands: Sequence[str] = ()) -> StoreError:
    """Return the StoreError for one of redis-py's errors.

    Args:
        commands: commands of the script that failed; some servers don't say which was denied.
    """
    said = " ".join(str(exc).split())[:500]
    causes = _with_causes(exc)
    if any(isinstance(cause, _DENIED) for cause in causes):
        return StoreError(
            f"{url} refuses this client ({said}): check user name, password, and permissions (ACL)",
            store=url,
        )
    if any(map(is_denied, causes)):
        return StoreError(
            f"{url} refuses this client ({said}): {_missing(said, commands)}; "
            "docs/how-to/redis.md lists all permissions (ACL)",
            store=url,
        )
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return StoreError(
            f"{url} has a certificate that isn't trusted ({said}): check ssl_ca_certs",
            store=url,
        )
    for kind, word in _CLASSES.items():
        if isinstance(exc, kind):
            return StoreUnavailable(
                f"{url} temporarily refuses requests: {_TEMPORARY[word]} ({said})", store=url
            )
    if "Too many connections" in said:  # raised by the driver's pool; no error class before 5.3
        return StoreUnavailable(
            f"all connections to {url} are in use: raise max_connections", store=url
        )
    for word, meaning in _TEMPORARY.items():
        if word in said:
            return StoreUnavailable(
                f"{url} temporarily refuses requests: {meaning} ({said})", store=url
            )
    if isinstance(exc, driver.ResponseError | driver.DataError | driver.InvalidResponse):
        return StoreError(f"{url} refuses: {said}", store=url)
    return StoreUnavailable(
        f"{url} is unavailable ({said or type(exc).__name__}): "
        "check that it runs and can be reached from here",
        store=url,
    )


def _missing(said: str, commands: Sequence[str]) -> str:
    if found := _COMMAND.search(said):
        return f"grant its user +{found[1]}"
    if "access" in said:
        return "grant its user all keys that start with the store's prefix"
    some = " ".join(f"+{command.lower()}" for command in commands)
    return f"its user lacks one of these permissions: {some}" if some else "grant the permission"


def _with_causes(exc: Exception) -> list[Exception]:
    """Return the exception and its causes: Cluster clients wrap a node's error."""
    found: list[Exception] = []
    cause: BaseException | None = exc
    while isinstance(cause, Exception) and cause not in found:
        found.append(cause)
        cause = cause.__cause__
    return found
