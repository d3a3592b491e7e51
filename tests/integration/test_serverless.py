"""A whole deployment without any server: messages and results in files, values in SQLite."""

from __future__ import annotations

from importlib import import_module

import pytest
from celery import chord

from offload.stores import open_store
from tests.support.file_results import file_results
from tests.support.processes import environment, start_worker, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

APP = """
from celery import Celery
from offload import Offload

app = Celery("proj", broker="{broker}", set_as_current=False)
app.conf.update(
    result_backend="{backend}",
    broker_transport_options={options},
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


@pytest.mark.parametrize("transport", ("filesystem", "sqla"))
def test_tasks_run_without_a_server(tmp_path, monkeypatch, transport):
    """Large arguments, results, and chords work, with messages in files or in a database."""
    broker, backend, options = "filesystem://", file_results(tmp_path / "results"), {}
    for name in ("messages", "control", "results"):
        (tmp_path / name).mkdir()
    if transport == "filesystem":
        options = dict.fromkeys(("data_folder_in", "data_folder_out"), f"{tmp_path}/messages")
        options["control_folder"] = f"{tmp_path}/control"
    else:
        pytest.importorskip("sqlalchemy")
        broker, backend = (
            f"{kind}+sqlite:///{tmp_path}/{name}.db"
            for kind, name in (("sqla", "messages/all"), ("db", "results/all"))
        )
    name = f"proj_{transport}"
    app = APP.format(folder=tmp_path, broker=broker, backend=backend, options=options)
    (tmp_path / f"{name}.py").write_text(app)
    monkeypatch.syspath_prepend(str(tmp_path))
    proj = import_module(name)

    rows = list(range(10_000))
    env = environment({}, tmp_path)
    worker = start_worker(name, "-c", "2", folder=tmp_path, env=env, cwd=tmp_path)
    try:
        assert proj.double.delay(rows).get(timeout=60) == rows * 2
        header = [proj.double.s([number, *rows]) for number in range(5)]
        assert chord(header)(proj.total.s()).get(timeout=60) == 2 * (5 * sum(rows) + sum(range(5)))
    finally:
        worker.stop()
    sizes = [path.stat().st_size for path in (tmp_path / "results").iterdir()]
    assert sizes
    assert max(sizes) < (2000 if transport == "filesystem" else 50_000)
    store = open_store(f"sqlite://{tmp_path}/offload.db")
    held = {name for info in store.blobs.scan() for name in store.blobs.holders(info.digest)}
    assert not any(name.startswith("task:") for name in held)
    wait_until(lambda: any(item.kind == "blob" for item in store.sweep()), "arguments are swept")
    store.close()
