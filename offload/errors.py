"""Every error that offload raises on purpose.

::

    OffloadError
    ├── ConfigurationError          (celery.exceptions.ImproperlyConfigured)
    ├── SerializationError          (kombu.exceptions.EncodeError)
    │   └── ValueTooLarge
    ├── DeserializationError        (kombu.exceptions.DecodeError)
    │   └── SerializerNotAccepted   (kombu.exceptions.ContentDisallowed)
    ├── InvalidRef
    │   └── UnsupportedVersion
    ├── CodeError
    │   ├── NotShippable            (TypeError)
    │   ├── UnknownClass            (ValueError)
    │   ├── VersionMissing          (FileNotFoundError)
    │   ├── CodeRefused
    │   └── WrongPython
    └── StoreError
        ├── StoreUnavailable        (kombu.exceptions.OperationalError)  worth another try
        ├── BlobMissing
        ├── IntegrityError
        └── LeaseLost

Where plain Celery would have raised one of kombu's errors, ours is one of those as
well, so that code which handles them today goes on working.

Celery rebuilds a stored exception as ``type(*args)``, so ``args`` carries the message and
every attribute; ``str()`` gives the message alone.
"""

from __future__ import annotations

from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import ContentDisallowed, DecodeError, EncodeError, OperationalError

__all__ = (
    "BlobMissing",
    "CodeError",
    "CodeRefused",
    "ConfigurationError",
    "DeserializationError",
    "IntegrityError",
    "InvalidRef",
    "LeaseLost",
    "NotShippable",
    "OffloadError",
    "SerializationError",
    "SerializerNotAccepted",
    "StoreError",
    "StoreUnavailable",
    "UnknownClass",
    "UnsupportedVersion",
    "ValueTooLarge",
    "VersionMissing",
    "WrongPython",
)


class OffloadError(Exception):
    """The base of all errors raised by offload.

    Attributes (None where not known):
        task: name of the Celery task.
        argument: where the value stood, as ``frame`` or ``args[0]``.
        digest: the content digest concerned.
        store: the store's URL, without credentials.
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
    """A setting or option is unknown, wrong or missing."""


class SerializationError(OffloadError, EncodeError):
    """A value cannot be carried to a task or back."""


class ValueTooLarge(SerializationError):
    """A value is larger than ``offload_max_size``."""


class DeserializationError(OffloadError, DecodeError):
    """Stored bytes are whole but are not what their serializer expects."""


class SerializerNotAccepted(DeserializationError, ContentDisallowed):
    """A reference asks for a serializer that this app does not accept."""


class InvalidRef(OffloadError):
    """Something that should be a reference of this app is not one."""


class UnsupportedVersion(InvalidRef):
    """A message was written by a newer version of offload than this one reads."""


class CodeError(OffloadError):
    """A class or function cannot be shipped, or be had from a class registry."""


class NotShippable(CodeError, TypeError):
    """What should be a class or function is neither."""


class UnknownClass(CodeError, ValueError):
    """A class registry has nothing of this name, or several."""


class VersionMissing(CodeError, FileNotFoundError):
    """A class registry has the class, but not this version of it."""


class CodeRefused(CodeError):
    """A version may not be loaded here: nobody trusted signed it, or it was altered."""


class WrongPython(CodeError):
    """A version is the bytecode of another Python, and its source cannot be used."""


class StoreError(OffloadError):
    """A store could not do what was asked."""


class StoreUnavailable(StoreError, OperationalError):
    """A store does not answer, or refuses for now; trying again may help."""


class BlobMissing(StoreError):
    """Content that a reference names is not in the store (any more)."""


class IntegrityError(StoreError):
    """Content in a store is not what its digest says."""


class LeaseLost(StoreError):
    """A lease ran out, or somebody else holds it."""
