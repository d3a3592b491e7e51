"""The node cache: values from a remote store, kept once for all processes of a machine."""

from offload.content.cache.file import AT_ONCE, InMemory
from offload.content.cache.node import Assembly, NodeCache, open_cache

__all__ = ("AT_ONCE", "Assembly", "InMemory", "NodeCache", "open_cache")
