"""One script as worker and publisher: classes of ``__main__`` that can't go by value.

python main_script.py URL OFFLOAD [worker]
"""

from __future__ import annotations

import functools
import json
import socket
import sys
import threading

from celery import Celery

url, offload, *role = sys.argv[1:]
app = Celery("script", broker=f"{url}/8", backend=f"{url}/9")
app.conf.update(
    task_serializer="pickle", accept_content=["json", "pickle"],
    broker_connection_retry_on_startup=True,
)  # fmt: skip
if offload == "on":
    from offload import Offload

    Offload(app, store=f"{url}/10", threshold=10_000)
LOCK, CLIENT = threading.Lock(), socket.socket()


class Plain:
    def __init__(self, size):
        self.rows = list(range(size))

    def count(self):
        return len(self.rows)


class HasLock(Plain):
    lock = threading.Lock()


class UsesClient(Plain):
    def count(self):
        with LOCK:
            return len(self.rows) if CLIENT else 0


class HasCachedProperty(Plain):
    @functools.cached_property
    def length(self):
        return len(self.rows)

    def count(self):
        return self.length


KINDS = (Plain, HasLock, UsesClient, HasCachedProperty)


@app.task(name="count")
def count(job):
    return [job.count(), isinstance(job, KINDS)]


if __name__ == "__main__":
    if role == ["worker"]:
        options = ["-P", "solo", "-l", "WARNING", "--without-mingle", "--without-gossip"]
        app.worker_main(["worker", *options])
    else:
        jobs = [kind(size) for kind in KINDS for size in (3, 50_000)]
        print(json.dumps([count.delay(job).get(timeout=60) for job in jobs]))
