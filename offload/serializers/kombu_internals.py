"""kombu: the private tables of its registry of serializers.

`tests/serializers/test_internals.py` checks them against the installed kombu.
"""

from __future__ import annotations

from typing import Any

from kombu.serialization import registry

__all__ = ("codec",)


def codec(name: str) -> tuple[Any, Any] | None:
    """Return the encoder and decoder registered under a name; None if it is unknown."""
    found = registry._encoders.get(name)
    return None if found is None else (found.encoder, registry._decoders.get(found.content_type))
