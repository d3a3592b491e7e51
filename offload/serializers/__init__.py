"""Serializers turn values into buffers and back.

Importing this package doesn't import the third-party packages whose types it supports.
"""

from offload.serializers.base import Payload, Serializer
from offload.serializers.choose import Registry

__all__ = ("Payload", "Registry", "Serializer")
