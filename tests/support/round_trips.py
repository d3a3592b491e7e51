"""Count round trips to Redis."""

from __future__ import annotations

import threading

_LATER = "offload-stats"  # the thread that writes an app's statistics seconds later


class Wire:
    """Records what a store's connections send; each send starts a round trip.

    Statistics that the apps of earlier tests write meanwhile don't count.
    """

    def __init__(self, monkeypatch):
        from redis.connection import Connection

        self.trips, self.sizes, self.sent = 0, [], []
        send = Connection.send_packed_command

        def counted(connection, command, check_health=True):
            if threading.current_thread().name != _LATER:
                self.trips += 1
                self.sent += command
                self.sizes.append(sum(map(len, command)))
            return send(connection, command, check_health)

        monkeypatch.setattr(Connection, "send_packed_command", counted)
