"""kombu: the private parts of its Redis transport that tell how it connects.

`tests/hooks/test_kombu_internals.py` checks them against the installed kombu.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__all__ = ("channel_params", "uses_sentinel")


def uses_sentinel(channel: Any) -> bool:
    """Return whether a channel class of the Redis transport finds its server by Sentinel."""
    return hasattr(channel, "_sentinel_managed_pool")


def channel_params(connection: Any, transport: Any) -> dict[str, Any]:
    """Return the parameters that kombu's channel would connect with.

    A channel connects when it is made, so this one is left unmade.
    """
    channel = transport.Channel.__new__(transport.Channel)
    channel.connection = SimpleNamespace(client=connection, default_port=transport.default_port)
    for name in transport.Channel.from_transport_options:
        if name in connection.transport_options:
            setattr(channel, name, connection.transport_options[name])
    params: dict[str, Any] = channel._connparams()
    return params
