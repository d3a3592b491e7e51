"""The broker's limit on messages, and how large its transport makes one.

A broker's limit applies to a message as the broker receives it. AMQP sends the serialized and
compressed body as it is. It splits a body into frames, but not headers, which must fit into one.
For all other transports, kombu encodes the body in base64, and sends it as JSON together with
headers and properties. For Amazon SQS, it then encodes everything in base64 again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from inspect import signature
from typing import Any
from uuid import UUID

from celery import Celery
from celery.app.amqp import AMQP
from celery.canvas import Signature
from kombu.compression import compress
from kombu.serialization import registry
from kombu.utils.json import dumps

from offload.settings import Settings

_SQS = 1 << 20
_AMQP = 16 << 20  # of RabbitMQ 4, unless max_message_size says otherwise
_RABBITMQ_3 = 128 << 20
_FRAME = 128 << 10  # frame_max of RabbitMQ and of its clients
_MARGIN = 16  # one part in so many of a transport's limit stays free, for signal receivers
_ENVELOPE = 1024  # bytes that kombu adds to headers and body: names of queues, numbers, brackets
_HEADERS = 32 << 10  # maximum bytes of headers with ordinary names, and with Celery's reprs
_BODY = frozenset({"args", "kwargs", "callbacks", "errbacks", "chain", "chord"})
_POSITIONAL = 17  # arguments of a message that Celery passes by position, after ``kwargs``
_SHADOW = tuple(signature(AMQP.as_task_v2).parameters).index("shadow") - 5  # among these
_ORDINARY = frozenset(
    {
        *("confirm_timeout", "declare", "delivery_mode", "exchange", "exchange_type", "expiration"),
        *("ignore_result", "immediate", "mandatory", "priority", "queue", "replaced_task_nesting"),
        *("retry", "retry_policy", "routing_key", "serializer", "compression", "timeout"),
    }
)
"""Options of a call that add little to a message. Others may be large: headers, stamps, reprs."""
_BUILT = frozenset({*_ORDINARY, *signature(AMQP.as_task_v2).parameters, "headers"})
"""Options that don't become properties of a message."""
_SMALL = frozenset({*_ORDINARY, "countdown", "eta", "expires", "now", "timezone"})

_CHARACTER = 12  # most bytes of a character, in any serializer
_ITEM = 64  # most bytes that quotes, tags, and indents add to an item
_SCALARS = frozenset({datetime, date, time, timedelta, Decimal, UUID})
_SCALAR = 512  # most bytes of one of these, with a time zone
_DEEPEST = 40
_MOST = 500  # items; serializing more is as fast as walking them


@dataclass(frozen=True)
class Sizes:
    """The bytes of a message.

    Attributes:
        body: serialized and compressed.
        plain: serialized.
        headers: headers and properties.
        sent: everything, as the broker receives it.
    """

    body: int
    plain: int
    headers: int
    sent: int


class MessageLimit:
    """A limit on messages.

    Attributes:
        size: maximum bytes of a message, as the broker receives it.
        headers: maximum bytes of its headers.
        room: bytes of a serialized body that fits with ordinary headers.
        is_known: whether there is nothing to learn from the broker.
    """

    def __init__(
        self,
        size: int,
        *,
        auto: bool = False,
        is_amqp: bool = False,
        encodes_body: bool = True,
        encodes_all: bool = False,
    ) -> None:
        self._auto = auto
        self._is_amqp = is_amqp
        self._encodes_body = encodes_body
        self._encodes_all = encodes_all
        self.is_known = not is_amqp
        self._set(_less_margin(size) if auto else size, _FRAME if is_amqp else None)

    def _set(self, size: int, frame: int | None) -> None:
        self.size = size
        self.headers = size if frame is None else _less_margin(frame)
        room = size - _HEADERS
        if not self._is_amqp:
            room = (size * 3 // 4 if self._encodes_all else size) - _HEADERS
            room = room * 3 // 4 if self._encodes_body else room // 2
        self.room = max(room, 0)

    def share(self, args: Any, kwargs: Any, given: Sequence[Any], options: Iterable[str]) -> int:
        """Return the bytes that each argument may have if all are to fit for certain.

        0 if the call has options whose size must be counted, too.
        """
        if len(given) != _POSITIONAL or given[_SHADOW] or not _ORDINARY.issuperset(options):
            return 0
        count = len(args or ()) + len(kwargs or ())
        return self.room // count if count else self.room

    def surely_keeps(self, call: Mapping[str, Any], reserved: int) -> bool:
        """Return whether the message *call*, and *reserved* bytes more, certainly fit.

        Doesn't serialize it. False means unknown.
        """
        counted = {name: value for name, value in call.items() if name not in _SMALL}
        headers = {name: value for name, value in counted.items() if name not in _BODY}
        return surely_fits(counted, self.room - reserved) and (
            self.headers >= self.room or surely_fits(headers, self.headers - _HEADERS)
        )

    def learn(self, connection: Any) -> None:
        """Take the limits that an AMQP broker states, once kombu's *connection* is connected.

        It states the size of its frames. `max_message_size` follows only from its version, and may
        be configured to differ.
        """
        with suppress(Exception):  # publishing goes on with what is known
            if not connection.connected:
                return
            self.is_known = True
            amqp = connection.connection
            broker = amqp.server_properties
            frame = int(amqp.frame_max) or _FRAME
            version = str(broker.get("version", "")).partition(".")[0]
            size = self.size
            if self._auto and broker.get("product") == "RabbitMQ" and version in ("2", "3"):
                size = _less_margin(_RABBITMQ_3)
            self._set(size, frame)

    def measure(self, message: Any, call: Mapping[str, Any], conf: Any) -> Sizes | None:
        """Return the sizes of *message* when sent with the options in *call*.

        Serializes its body. None if that fails, which Celery then reports itself.
        """
        serializer = call.get("serializer") or conf.task_serializer
        compression = call.get("compression") or conf.task_compression
        try:
            _, _, plain = registry.dumps(message.body, serializer=serializer)
            plain = plain.encode("utf-8") if isinstance(plain, str) else plain
            body = compress(plain, compression)[0] if compression else plain
        except Exception:
            return None
        properties = {
            **message.properties,
            **{name: value for name, value in call.items() if name not in _BUILT},
        }
        headers = _json_size({**message.headers, **(call.get("headers") or {})})
        headers += _json_size(properties)
        return Sizes(len(body), len(plain), headers, self._sent(body, headers))

    def _sent(self, body: bytes, headers: int) -> int:
        size = len(body)
        if not self._is_amqp:
            size = _base64(size) if self._encodes_body else _json_size(body.decode("latin-1"))
        size += headers + _ENVELOPE
        return _base64(size) if self._encodes_all else size


def message_limit(settings: Settings, app: Celery) -> MessageLimit | None:
    """Return the limit on an app's messages; None if there is none.

    It asks no broker: kombu's transport is imported, but doesn't connect.
    """
    given = settings.message_limit
    if settings.mode != "on" or given == 0:
        return None
    try:
        with app.connection_for_write() as connection:
            transport = connection.get_transport_cls()
            options = dict(connection.transport_options or {})
    except Exception:  # which Celery reports once it connects
        return None if given == "auto" else MessageLimit(int(given))
    kind = transport.driver_type
    encoding = options.get(
        "body_encoding", getattr(getattr(transport, "Channel", None), "body_encoding", "base64")
    )
    how: dict[str, Any] = {
        "is_amqp": kind == "amqp",
        "encodes_body": bool(encoding) and str(encoding).lower() != "utf-8",
        "encodes_all": kind == "sqs" and options.get("sqs_base64_encoding", True),
    }
    if given != "auto":
        return MessageLimit(int(given), **how)
    if kind == "sqs":
        created = options.get("sqs-creation-attributes") or {}
        return MessageLimit(int(created.get("MaximumMessageSize", _SQS)), auto=True, **how)
    return MessageLimit(_AMQP, auto=True, **how) if kind == "amqp" else None


def surely_fits(parts: Any, room: int) -> bool:
    """Return whether any serializer certainly writes *parts* in at most *room* bytes.

    Walks them, signatures included, instead of serializing them. False means unknown.
    """
    most = min(_MOST, room // _ITEM)
    seen = 1
    waiting: list[tuple[Any, int]] = [(parts, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, (str, bytes)):
            room -= _ITEM + _CHARACTER * len(value)
        elif value is None or isinstance(value, (bool, int, float)):
            room -= _ITEM + (value.bit_length() // 3 if isinstance(value, int) else 0)
        elif type(value) in _SCALARS:
            room -= _SCALAR + _CHARACTER * len(str(value))
        elif type(value) in (list, tuple, dict) or isinstance(value, Signature):
            room -= _ITEM
            seen += 2 * len(value)
            if depth == _DEEPEST or seen > most:
                return False
            items = (*value, *value.values()) if isinstance(value, dict) else value
            waiting.extend((item, depth + 1) for item in items)
        else:
            return False
        if room < 0:
            return False
    return True


def _less_margin(size: int) -> int:
    return size - size // _MARGIN


def _base64(size: int) -> int:
    return -(-size // 3) * 4


def _json_size(value: Any) -> int:
    try:
        return len(dumps(value))
    except Exception:  # such headers are for a transport that sends no JSON
        return len(repr(value))
