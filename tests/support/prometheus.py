"""Run a real Prometheus, and count something for it to scrape."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode

from offload import Counters
from offload.metrics.counters import NAMES, STEPS
from offload.metrics.recorder import Recorder
from tests.support.processes import ROOT, Process
from tests.support.servers import HOST, free_port, unavailable

MONITORING = ROOT / "monitoring"
RULES = MONITORING / "prometheus" / "offload.rules.yml"


class Prometheus:
    """A running server and its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> dict:
        """Return the data of a response; raise AssertionError with the error of the server."""
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
            ) as answer:
                return json.load(answer)["data"]
        except HTTPError as exc:
            raise AssertionError(f"{parameters}: {json.load(exc)['error']}") from exc

    def query(self, expression: str) -> list[float]:
        """Return the current values of an expression."""
        data = self.get("query", query=expression)
        rows = [data] if data["resultType"] == "scalar" else data["result"]
        return [float(row["value"][1]) for row in rows]

    def alerts(self) -> dict[str, dict]:
        """Return pending and firing alerts by name."""
        return {each["labels"]["alertname"]: each for each in self.get("alerts")["alerts"]}


def program(name: str) -> str:
    """Return the path of prometheus or promtool; skip the test if it is not installed."""
    return shutil.which(name) or unavailable(name)


@contextmanager
def prometheus(folder: Path, config: str) -> Iterator[Prometheus]:
    """Run Prometheus with *config* as its prometheus.yml, which may name files in *folder*."""
    file = folder / "prometheus.yml"
    file.write_text(config)
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    process = Process(command, folder / "prometheus.log", {})
    server = Prometheus(f"http://{HOST}:{port}")

    def ready() -> bool:
        try:
            return bool(urllib.request.urlopen(f"{server.url}/-/ready").read())
        except OSError:
            return False

    try:
        process.wait_for(ready, "prometheus is ready", 30)
        yield server
    finally:
        process.stop()


def count(store, tasks=("shop.total", "shop.report"), amount: int = 5) -> None:
    """Increase every counter and histogram for each task, and write them to *store*."""
    counters = Counters()
    recorder = Recorder(counters, 1)
    recorder.attach(store)
    for number, task in enumerate(tasks, 1):
        with counters.about(task, "rows"):
            counters.add(**{name: amount * number + at for at, name in enumerate(NAMES)})
            for step in STEPS:
                for seconds in (0.003, 0.1, 2):
                    counters.took(step, seconds * number)
            for size in (2_000, 100_000, 9 << 20):
                counters.sized(size * number, 0)
    recorder.write()
