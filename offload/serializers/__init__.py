"""Objects to buffers and back. Importing this imports none of the packages it serves."""

from offload.serializers.base import Payload, Serializer
from offload.serializers.choose import Registry

__all__ = ("Payload", "Registry", "Serializer")
