"""Limits for connections to the dashboard and the exporter."""

from __future__ import annotations

PATIENCE = 5.0
"""Seconds within which a client must send its request headers."""
BACKLOG = 32
"""Length of the listen queue."""
_MOST, _LEAST = 64, 4  # connections
_OWN = 60  # file descriptors reserved for the store's connections and files


def most_connections() -> int:
    """Return the maximum number of connections that leaves enough file descriptors."""
    try:
        import resource
    except ImportError:  # not a Unix
        return _MOST
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return _MOST
    return max(_LEAST, min(_MOST, (allowed - _OWN) // 2))
