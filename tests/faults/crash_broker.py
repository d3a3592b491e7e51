"""What a Redis broker reports about every message: queued, taken, acknowledged.

Celery's transport takes a message out of the queue and notes it as taken in two steps; a worker
that is killed in between loses the message. Only the broker's own record distinguishes such a loss
from others.
"""

from __future__ import annotations

import re
import socket
import threading
import time

from kombu import Connection

from tests.support.servers import redis_client

VISIBLE = {"visibility_timeout": 4, "unacked_mutex_expire": 2}
"""The transport's options: a message is redelivered after this many seconds."""
QUIET = 2.0  # seconds
QUEUE, TAKEN = "celery", "unacked"

_LINE = re.compile(rb'\+[0-9.]+ \[\d+ \S+\] "(?:LPUSH|RPUSH|HSET|HDEL)" "(celery|unacked)" (.*)')
_ID = re.compile(rb'\\+"id\\+": \\+"([0-9a-f-]{36})')
_TAG = re.compile(rb'\\+"delivery_tag\\+": \\+"([0-9a-f-]{36})')


class Broker:
    """The queue, seen from outside.

    It also restores messages that were taken and not acknowledged, which workers do only every 100
    seconds.
    """

    def __init__(self, server):
        self.client = redis_client(server)
        self.client.flushall()
        self._busy = time.monotonic()
        self._connection = Connection(server.url, transport_options=VISIBLE)

    def close(self):
        self._connection.close()
        self.client.close()

    def redeliver(self):
        """Put back messages that were taken too long ago."""
        self._connection.default_channel.qos.restore_visible(num=None, interval=1)

    def is_empty(self):
        return not (self.client.llen(QUEUE) or self.client.hlen(TAKEN))

    def is_drained(self):
        """Whether the queue stays empty for a while; an acknowledged task may still publish."""
        self.redeliver()
        if not self.is_empty():
            self._busy = time.monotonic()
        return time.monotonic() > self._busy + QUIET


class Watch:
    """Reads the server's MONITOR in a thread until it is closed."""

    def __init__(self, server):
        self._waits = {}  # whether it is in the queue, by delivery tag
        self._tags = {}  # by task id
        self._socket = socket.create_connection((server.host, server.port))
        self._socket.sendall(b"MONITOR\r\n")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def was_published(self, task_id):
        return task_id in self._tags

    def is_waiting(self, task_id):
        """Whether a message of the task was queued and never noted as taken."""
        return any(self._waits[tag] for tag in self._tags.get(task_id, ()))

    def shown(self, task_id):
        """Return what is known about a task's messages as text."""
        waits = [self._waits[tag] for tag in self._tags.get(task_id, ())]
        return f"{len(waits)} messages, {sum(waits)} never noted as taken"

    def _read(self):
        with self._socket.makefile("rb") as answers:
            for line in answers:
                if (found := _LINE.match(line)) is not None:
                    self._note(*found.groups())

    def _note(self, key, rest):
        if key == b"unacked":
            self._waits[rest[1:37]] = False
        elif (task_id := _ID.search(rest)) and (tag := _TAG.search(rest)):
            self._waits[tag[1]] = True
            self._tags.setdefault(task_id[1].decode(), set()).add(tag[1])
