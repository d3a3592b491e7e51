"""Objects to buffers and back. Importing it imports none of the packages it supports."""

from offload.serializers.base import Payload, Serializer
from offload.serializers.choose import Registry

__all__ = ("Payload", "Registry", "Serializer")
