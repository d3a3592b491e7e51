"""A whole deployment without any server: messages and results in files, values in SQLite."""

from __future__ import annotations

import pytest

from offload.stores import open_store
from tests.support.processes import environment, start_worker, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

APP = """
from celery import Celery
from offload import Offload

app = Celery("proj", broker="filesystem://", set_as_current=False)
app.conf.update(
    result_backend="file://{folder}/results",
    broker_transport_options={{
        "data_folder_in": "{folder}/messages", "data_folder_out": "{folder}/messages",
        "control_folder": "{folder}/control",
    }},
    broker_connection_retry_on_startup=True,
)
offload = Offload(app, store="sqlite://{folder}/offload.db", threshold=1000, grace=0.1)

@app.task
def double(rows):
    return rows * 2

@app.task
def total(parts):
    return sum(map(sum, parts))
"""


def test_tasks_run_without_a_server(tmp_path, monkeypatch):
    """Large arguments, results, and chords work; afterwards the sweep empties the store."""
    for name in ("messages", "control", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "proj_serverless.py").write_text(APP.format(folder=tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    import proj_serverless as proj
    from celery import chord

    rows = list(range(10_000))
    env = environment({}, tmp_path)
    worker = start_worker("proj_serverless", "-c", "2", folder=tmp_path, env=env, cwd=tmp_path)
    try:
        assert proj.double.delay(rows).get(timeout=60) == rows * 2
        header = [proj.double.s([number, *rows]) for number in range(5)]
        assert chord(header)(proj.total.s()).get(timeout=60) == 2 * (5 * sum(rows) + sum(range(5)))
    finally:
        worker.stop()
    sizes = [path.stat().st_size for path in (tmp_path / "results").iterdir()]
    assert sizes
    assert max(sizes) < 2000
    store = open_store(f"sqlite://{tmp_path}/offload.db")
    held = {name for info in store.blobs.scan() for name in store.blobs.holders(info.digest)}
    assert not any(name.startswith("task:") for name in held)
    wait_until(lambda: any(item.kind == "blob" for item in store.sweep()), "arguments are swept")
    store.close()
