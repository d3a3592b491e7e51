"""Messages that fit into a limit, through a real worker."""

from __future__ import annotations

import uuid

import pytest

from tests.support.processes import environment, start_worker

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

LIMIT = 100_000
APP = """
import os

from celery import Celery
from kombu.transport.redis import Channel, Transport
from kombu.utils.json import dumps
from offload import Offload

app = Celery("limited", broker="{url}", backend="{url}", set_as_current=False)
app.conf.update(
    broker_transport="proj_limited:Measuring",
    task_default_queue="{queue}",
    broker_connection_retry_on_startup=True,
)
Offload(app, store="{url}?prefix={queue}", message_limit={limit})


class Measured(Channel):
    def _put(self, queue, message, **options):
        with open("{folder}/sizes", "a") as file:
            file.write(f"{{os.getpid()}} {{len(dumps(message))}}\\n")
        return super()._put(queue, message, **options)


class Measuring(Transport):
    Channel = Measured


@app.task(bind=True, max_retries=1)
def sizes(self, *parts):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return [len(part) for part in parts]


@app.task
def total(results):
    return sum(map(sum, results))
"""


def test_a_canvas_runs_in_messages_below_the_limit(redis, tmp_path, monkeypatch):
    """A chord whose header and body have many medium values, with a retry of each task, runs; no
    message that the publisher or the worker sends exceeds the limit.
    """
    values = {"url": redis.url, "queue": uuid.uuid4().hex, "folder": tmp_path, "limit": LIMIT}
    (tmp_path / "proj_limited.py").write_text(APP.format(**values))
    monkeypatch.syspath_prepend(str(tmp_path))
    import proj_limited as proj
    from celery import chain, chord

    parts = [letter * 20_000 for letter in "abcdefgh"]
    env = environment({}, tmp_path)
    worker = start_worker("proj_limited", "-c", "2", folder=tmp_path, env=env, cwd=tmp_path)
    try:
        steps = [chain(proj.sizes.si(*parts), proj.sizes.si(*parts)) for _ in range(2)]
        assert chord(steps)(proj.total.s()).get(timeout=60) == 2 * 8 * 20_000
    finally:
        worker.stop()
        proj.app.close()
    sent = [line.split() for line in (tmp_path / "sizes").read_text().splitlines()]
    assert len({process for process, _ in sent}) > 1
    assert len(sent) >= 9
    assert 50_000 < max(int(size) for _, size in sent) <= LIMIT
