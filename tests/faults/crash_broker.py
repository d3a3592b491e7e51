"""What a Redis broker says itself of every message: put in the queue, taken, acknowledged.

Celery's transport takes a message out of the queue and notes it as taken in two steps; a
worker that is killed between them loses it, whatever stands in it. Only the broker's own
account tells such a loss from one that is somebody else's fault.
"""

from __future__ import annotations

import re
import socket
import threading
import time

from kombu import Connection

from tests.support.servers import redis_client

VISIBLE = {"visibility_timeout": 4, "unacked_mutex_expire": 2}
"""The transport's options: a message is given again after so many seconds."""
QUIET = 2.0  # seconds
QUEUE, TAKEN = "celery", "unacked"

_LINE = re.compile(rb'\+[0-9.]+ \[\d+ \S+\] "(?:LPUSH|RPUSH|HSET|HDEL)" "(celery|unacked)" (.*)')
_ID = re.compile(rb'\\+"id\\+": \\+"([0-9a-f-]{36})')
_TAG = re.compile(rb'\\+"delivery_tag\\+": \\+"([0-9a-f-]{36})')


class Broker:
    """The queue from outside. What was taken and not acknowledged goes back in time, which
    workers see to only every 100 seconds.
    """

    def __init__(self, server):
        self.client = redis_client(server)
        self.client.flushall()
        self._busy = time.monotonic()
        self._connection = Connection(server.url, transport_options=VISIBLE)

    def close(self):
        self._connection.close()
        self.client.close()

    def give_again(self):
        """Put back what was taken by somebody who is too long about it."""
        self._connection.default_channel.qos.restore_visible(num=None, interval=1)

    def is_empty(self):
        return not (self.client.llen(QUEUE) or self.client.hlen(TAKEN))

    def is_drained(self):
        """Whether it has been empty for some time: a task that runs, acknowledged, may publish."""
        self.give_again()
        if not self.is_empty():
            self._busy = time.monotonic()
        return time.monotonic() > self._busy + QUIET


class Watch:
    """Reads the server's MONITOR in a thread, until it is closed."""

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
        """Whether a message of the task was put in the queue and never noted as taken."""
        return any(self._waits[tag] for tag in self._tags.get(task_id, ()))

    def shown(self, task_id):
        """Return what is known of a task's messages, for people."""
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
