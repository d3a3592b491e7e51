"""How many connections the servers of this package accept, and for how long."""

from __future__ import annotations

__all__ = ("BACKLOG", "PATIENCE", "most_connections")

PATIENCE = 5.0
"""Seconds that a client has to send the head of its request."""
BACKLOG = 32
"""Connections that the system accepts before the server handles them."""
_MOST = 64
_LEAST = 4
_OWN = 60  # descriptors for everything else: the store's connections, files


def most_connections() -> int:
    """Return how many connections may be open, so that descriptors are left for everything else."""
    try:
        import resource
    except ImportError:  # not a Unix
        return _MOST
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return _MOST
    return max(_LEAST, min(_MOST, (allowed - _OWN) // 2))
