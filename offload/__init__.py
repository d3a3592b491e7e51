"""offload: large Celery arguments and results travel by reference.

::

    from offload import Offload

    Offload(app)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offload.catalog import BatchResult, Catalog
    from offload.classes.registry import ClassRegistry
    from offload.errors import (
        BlobMissing,
        BucketNotEmpty,
        CatalogError,
        CodeError,
        CodeRefused,
        ConfigurationError,
        DeserializationError,
        FailureTruncated,
        IntegrityError,
        InvalidRef,
        KeyUnavailable,
        LockLost,
        LockNotOwned,
        NotShippable,
        ObjectNotFound,
        OffloadError,
        SerializationError,
        SerializerNotAccepted,
        StoreError,
        StoreUnavailable,
        UnknownClass,
        UnknownType,
        UnknownTypeVersion,
        UnsupportedVersion,
        ValueTooLarge,
        VersionConflict,
        VersionMissing,
        WrongPython,
    )
    from offload.hooks.extension import Offload
    from offload.locks import Lock
    from offload.memo.functions import memoize
    from offload.metrics.counters import Counters
    from offload.ref import LostValue, Ref
    from offload.serializers.types.register import register_type
    from offload.settings import RetryPolicy, Settings, TaskOptions
    from offload.stores import open_store

__version__ = "0.1.0"

__all__ = (
    "BatchResult",
    "BlobMissing",
    "BucketNotEmpty",
    "Catalog",
    "CatalogError",
    "ClassRegistry",
    "CodeError",
    "CodeRefused",
    "ConfigurationError",
    "Counters",
    "DeserializationError",
    "FailureTruncated",
    "IntegrityError",
    "InvalidRef",
    "KeyUnavailable",
    "Lock",
    "LockLost",
    "LockNotOwned",
    "LostValue",
    "NotShippable",
    "ObjectNotFound",
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
    "UnknownClass",
    "UnknownType",
    "UnknownTypeVersion",
    "UnsupportedVersion",
    "ValueTooLarge",
    "VersionConflict",
    "VersionMissing",
    "WrongPython",
    "memoize",
    "open_store",
    "register_type",
)

# Each is imported when it is first asked for. `celery` imports this package at every call
# to find its command (offload.cli), and must not become slower by what it does not use.
_ELSEWHERE = {
    "BatchResult": "offload.catalog",
    "Catalog": "offload.catalog",
    "ClassRegistry": "offload.classes.registry",
    "Counters": "offload.metrics.counters",
    "Lock": "offload.locks",
    "LostValue": "offload.ref",
    "Offload": "offload.hooks.extension",
    "Ref": "offload.ref",
    "RetryPolicy": "offload.settings",
    "Settings": "offload.settings",
    "TaskOptions": "offload.settings",
    "memoize": "offload.memo.functions",
    "open_store": "offload.stores",
    "register_type": "offload.serializers.types.register",
}
_ERRORS = "offload.errors"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ELSEWHERE.get(name, _ERRORS)), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
