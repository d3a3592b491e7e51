"""All errors that offload raises on purpose.

::

    OffloadError
    ├── ConfigurationError          (celery.exceptions.ImproperlyConfigured)
    ├── SerializationError          (kombu.exceptions.EncodeError)
    │   └── ValueTooLarge
    ├── DeserializationError        (kombu.exceptions.DecodeError)
    │   ├── SerializerNotAccepted   (kombu.exceptions.ContentDisallowed)
    │   └── UnknownType
    │       └── UnknownTypeVersion
    ├── InvalidRef
    │   └── UnsupportedVersion
    ├── FailureTruncated
    ├── CatalogError
    │   ├── ObjectNotFound          (KeyError, FileNotFoundError)
    │   ├── VersionConflict         (ValueError)
    │   └── BucketNotEmpty          (ValueError)
    ├── CodeError
    │   ├── NotShippable            (TypeError)
    │   ├── UnknownClass            (ValueError)
    │   ├── VersionMissing          (FileNotFoundError)
    │   ├── CodeRefused
    │   └── WrongPython
    └── StoreError
        ├── StoreUnavailable        (kombu.exceptions.OperationalError)  worth a retry
        │   └── KeyUnavailable
        ├── BlobMissing
        ├── IntegrityError
        └── LockNotOwned            (RuntimeError)
            └── LockLost

Where plain Celery would raise one of kombu's errors, offload raises a subclass of it, so that code
that handles such errors keeps working.

Celery rebuilds a stored exception as ``type(*args)``, so ``args`` has the message and
every attribute; ``str()`` returns the message alone.
"""

from __future__ import annotations

from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import ContentDisallowed, DecodeError, EncodeError, OperationalError

__all__ = (
    "BlobMissing",
    "BucketNotEmpty",
    "CatalogError",
    "CodeError",
    "CodeRefused",
    "ConfigurationError",
    "DeserializationError",
    "FailureTruncated",
    "IntegrityError",
    "InvalidRef",
    "KeyUnavailable",
    "LockLost",
    "LockNotOwned",
    "NotShippable",
    "ObjectNotFound",
    "OffloadError",
    "SerializationError",
    "SerializerNotAccepted",
    "StoreError",
    "StoreUnavailable",
    "UnknownClass",
    "UnknownType",
    "UnknownTypeVersion",
    "UnsupportedVersion",
    "ValueTooLarge",
    "VersionConflict",
    "VersionMissing",
    "WrongPython",
)


class OffloadError(Exception):
    """Base class of all offload errors.

    Attributes (None if unknown):
        task: name of the Celery task.
        argument: position of the value, such as ``frame`` or ``args[0]``.
        digest: digest of the content.
        store: URL of the store, without credentials.
    """

    def __init__(
        self,
        message: str = "",
        task: str | None = None,
        argument: str | None = None,
        digest: str | None = None,
        store: str | None = None,
    ) -> None:
        known = [task, argument, digest, store]
        while known and known[-1] is None:
            known.pop()
        super().__init__(message)
        self.args = (message, *known)
        self.task = task
        self.argument = argument
        self.digest = digest
        self.store = store

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class ConfigurationError(OffloadError, ImproperlyConfigured):
    """A setting or option is unknown, invalid, or missing."""


class SerializationError(OffloadError, EncodeError):
    """A value can't be sent to a task or returned from it."""


class ValueTooLarge(SerializationError):
    """A value exceeds ``offload_max_size``, or a message exceeds ``offload_message_limit``."""


class DeserializationError(OffloadError, DecodeError):
    """Stored bytes are intact, but their serializer can't read them."""


class SerializerNotAccepted(DeserializationError, ContentDisallowed):
    """A reference names a serializer that this app does not accept."""


class UnknownType(DeserializationError):
    """A value is of a type that this process hasn't registered; see `offload.register_type`."""


class UnknownTypeVersion(UnknownType):
    """A value of a registered type was written by a newer version of it than is registered."""


class InvalidRef(OffloadError):
    """Something passed as a reference isn't a valid reference of this app."""


class UnsupportedVersion(InvalidRef):
    """A message or record was written by a newer version of offload, which this one can't read."""


class FailureTruncated(OffloadError):
    """A task's own error is incomplete: it couldn't be stored, or can't be read.

    Never raised: it is the ``__cause__`` of the task's error.
    """


class CatalogError(OffloadError):
    """A catalog can't do what a call asks for."""


class ObjectNotFound(CatalogError, KeyError, FileNotFoundError):
    """A catalog doesn't have this object, or doesn't have this version of it."""


class VersionConflict(CatalogError, ValueError):
    """A catalog already has this version, and may not overwrite it."""


class BucketNotEmpty(CatalogError, ValueError):
    """A bucket can't be removed because it still has objects."""


class CodeError(OffloadError):
    """A class or function can't be shipped or loaded."""


class NotShippable(CodeError, TypeError):
    """An object to be shipped is neither a class nor a function."""


class UnknownClass(CodeError, ValueError):
    """A class registry has no class of this name, or several."""


class VersionMissing(CodeError, FileNotFoundError):
    """A class registry has the class, but not this version of it."""


class CodeRefused(CodeError):
    """A version must not be loaded here: it has no trusted signature, or was altered."""


class WrongPython(CodeError):
    """A version is bytecode of another Python version, and its source can't be used."""


class StoreError(OffloadError):
    """A store operation failed."""


class StoreUnavailable(StoreError, OperationalError):
    """A store is unavailable or temporarily refuses; retrying may help."""


_ALL = 5  # arguments after the message, the last of which is the key


class KeyUnavailable(StoreUnavailable):
    """Data is encrypted with a key that this process doesn't have, or can't load.

    Attributes:
        key: id of the key; None if it isn't known.
    """

    def __init__(
        self, message: str = "", *known: str | None, key: str | None = None, **named: str | None
    ) -> None:
        if len(known) == _ALL:
            known, key = known[:-1], known[-1]
        super().__init__(message, *known, **named)
        if key is not None:
            self.args = (message, self.task, self.argument, self.digest, self.store, key)
        self.key = key


class BlobMissing(StoreError):
    """A value isn't in the store, or is no longer there."""


class IntegrityError(StoreError):
    """Content in a store does not match its digest."""


class LockNotOwned(StoreError, RuntimeError):
    """A lock was released or extended by an owner that doesn't hold it."""


class LockLost(LockNotOwned):
    """A lock expired before it was renewed, or another owner took it."""
