"""offload: large Celery arguments and results travel by reference.

::

    from offload import Offload

    Offload(app)
"""

from __future__ import annotations

from offload.counters import Counters
from offload.errors import (
    BlobMissing,
    ConfigurationError,
    DeserializationError,
    IntegrityError,
    InvalidRef,
    LeaseLost,
    OffloadError,
    SerializationError,
    SerializerNotAccepted,
    StoreError,
    StoreUnavailable,
    UnsupportedVersion,
    ValueTooLarge,
)
from offload.hooks.app import Offload
from offload.ref import Ref
from offload.settings import RetryPolicy, Settings, TaskOptions
from offload.stores import open_store

__version__ = "0.1.0"

__all__ = (
    "BlobMissing",
    "ConfigurationError",
    "Counters",
    "DeserializationError",
    "IntegrityError",
    "InvalidRef",
    "LeaseLost",
    "Offload",
    "OffloadError",
    "Ref",
    "RetryPolicy",
    "SerializationError",
    "SerializerNotAccepted",
    "Settings",
    "StoreError",
    "StoreUnavailable",
    "TaskOptions",
    "UnsupportedVersion",
    "ValueTooLarge",
    "open_store",
)
