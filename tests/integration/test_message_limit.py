"""Messages that fit into a limit, through a real worker."""

from __future__ import annotations

import pytest

from tests.support.processes import environment, start_worker

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

LIMIT = 100_000
APP = """
from celery import Celery
from offload import Offload

app = Celery("limited", broker="filesystem://", set_as_current=False)
app.conf.update(
    result_backend="file://{folder}/results",
    broker_transport_options={{
        "data_folder_in": "{folder}/messages", "data_folder_out": "{folder}/messages",
        "control_folder": "{folder}/control", "store_processed": True,
        "processed_folder": "{folder}/processed", "polling_interval": 0.05,
    }},
    broker_connection_retry_on_startup=True,
)
Offload(app, store="sqlite://{folder}/offload.db", message_limit={limit})

@app.task(bind=True, max_retries=1)
def sizes(self, *parts):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return [len(part) for part in parts]

@app.task
def total(results):
    return sum(map(sum, results))
"""


def test_a_canvas_runs_in_messages_below_the_limit(tmp_path, monkeypatch):
    """A chord whose header and body have many medium values, with a retry of each task, runs; no
    message in the broker's folder exceeds the limit.
    """
    for name in ("messages", "control", "results", "processed"):
        (tmp_path / name).mkdir()
    (tmp_path / "proj_limited.py").write_text(APP.format(folder=tmp_path, limit=LIMIT))
    monkeypatch.syspath_prepend(str(tmp_path))
    import proj_limited as proj
    from celery import chain, chord

    parts = [letter * 20_000 for letter in "abcdefgh"]
    env = environment({}, tmp_path)
    worker = start_worker("proj_limited", "-c", "2", folder=tmp_path, env=env, cwd=tmp_path)
    try:
        steps = [chain(proj.sizes.si(*parts), proj.sizes.si(*parts)) for _ in range(2)]
        assert chord(steps)(proj.total.s()).get(timeout=60, interval=0.05) == 2 * 8 * 20_000
    finally:
        worker.stop()
    sent = [path.stat().st_size for path in (tmp_path / "processed").iterdir()]
    assert len(sent) >= 9
    assert 50_000 < max(sent) <= LIMIT
