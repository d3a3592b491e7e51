"""Celery's own serializers, by their kombu names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from kombu.exceptions import ContentDisallowed, SerializerNotInstalled
from kombu.serialization import registry

from offload.errors import DeserializationError, SerializationError, SerializerNotAccepted
from offload.serializers.base import Payload, utf8
from offload.serializers.library_internals import codec
from offload.text import reason_of, type_name

PREFIX = "native:"

_HOMES = {
    "json": {("kombu.utils.json", "kombu.utils.json")},
    "pickle": {("kombu.serialization", "kombu.serialization")},
    "msgpack": {("kombu.serialization", "kombu.serialization")},
    "yaml": {("yaml", "kombu.serialization"), ("yaml", "yaml")},  # the second before kombu 5.4
}


def is_kombus_own(celery_serializer: str) -> bool:
    """Return whether the name still belongs to kombu's own serializer, not to the app's."""
    home = _HOMES.get(celery_serializer)
    found = codec(celery_serializer)
    if home is None or found is None:
        return False
    encoder, decoder = found
    modules = getattr(encoder, "__module__", None), getattr(decoder, "__module__", None)
    return modules in home


def name_of(content_type: str) -> str:
    """Return kombu's name for a content type; return a name unchanged."""
    name: str = registry.type_to_name.get(content_type, content_type)
    return name


def _dumps(value: Any, celery_serializer: str) -> tuple[str, Any]:
    try:
        _, encoding, body = registry.dumps(value, serializer=celery_serializer)
    except SerializerNotInstalled as error:
        raise SerializationError(str(error)) from error
    return encoding, body


def _drop_frames(error: Exception, handled: BaseException | None) -> None:
    """Drop the tracebacks of kombu's error and its cause; *handled* is what the caller handles.

    Frames of kombu and, from Python 3.12 on, of contextlib refer to these errors. The cycles would
    keep the values of all callers until a garbage collection.
    """
    for each in (error, error.__context__):
        if each is not None and each is not handled:
            each.__traceback__ = None


def supports(value: Any, celery_serializer: str) -> bool:
    """Return whether the serializer can write *value*, by trying it."""
    handled = sys.exc_info()[1]
    try:
        _dumps(value, celery_serializer)
    except SerializationError:
        raise
    except Exception as error:
        _drop_frames(error, handled)
        return False
    return True


def encode(value: Any, celery_serializer: str) -> Payload | None:
    """Serialize *value* as plain Celery does; return None if it can't."""
    handled = sys.exc_info()[1]
    try:
        encoding, body = _dumps(value, celery_serializer)
        buffer = utf8(body) if isinstance(body, str) else memoryview(body).cast("B")
    except SerializationError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, SerializationError):  # a reference in it
            raise error.__cause__ from None
        _drop_frames(error, handled)
        return None
    return Payload(PREFIX + celery_serializer, encoding.encode(), [buffer], type_name(value))


def decode(celery_serializer: str, head: memoryview, buffers: Sequence[memoryview]) -> Any:
    """Deserialize as plain Celery does. Raises DeserializationError.

    The caller must check that the app accepts the serializer.
    """
    content_type = registry.name_to_type.get(celery_serializer)
    if content_type is None:
        raise DeserializationError(
            f"no serializer named {celery_serializer!r} is registered with kombu"
        )
    if len(buffers) != 1 or len(head) > 64:
        raise DeserializationError(f"not what {celery_serializer} writes")
    encoding = str(head, "ascii", "replace")
    body = bytes(buffers[0])
    try:
        return registry.loads(body, content_type, encoding, accept={content_type})
    except ContentDisallowed as error:
        raise SerializerNotAccepted(str(error)) from error
    except Exception as error:
        # Its text may quote the value.
        raise DeserializationError(
            f"{celery_serializer} cannot read the value: {reason_of(error)}"
        ) from None
