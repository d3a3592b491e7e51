"""Every command of the Compose file, run as a process on free ports, without containers."""

from __future__ import annotations

import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import redis
import yaml

from tests.support import forkserver
from tests.support.processes import ROOT, Process
from tests.support.prometheus import Prometheus, program
from tests.support.s3_server import _free_ports, find_weed
from tests.support.servers import HOST, find_program, free_port

FILE = ROOT / "docker-compose.yml"
PATIENCE = 90

pytestmark = [pytest.mark.integration, pytest.mark.server]


class Example:
    """The services as processes, with addresses replaced by free ports.

    Not included are Grafana, which no package provides; the image's build; and the images'
    programs, which are replaced by installed ones.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.services = yaml.safe_load(FILE.read_text())["services"]
        self.folder = folder
        self.ports = {
            name: free_port() for name in ("redis", "exporter", "dashboard", "prometheus")
        }
        self.s3_ports = _free_ports()
        self.ports["s3"] = self.s3_ports["s3.port"]
        self._stack = stack
        self._words = {
            f"{name}:{port}": f"{HOST}:{self.ports[name]}"
            for name, port in (("redis", 6379), ("s3", 8333), ("exporter", 9540))
        }
        self._words |= {
            f"{HOST}:{port}": f"{HOST}:{self.ports[name]}"
            for name, port in (
                ("s3", 8333),
                ("exporter", 9540),
                ("dashboard", 9541),
                ("prometheus", 9090),
            )
        }
        self._words |= {
            "0.0.0.0": HOST,
            "-ip=s3": f"-ip={HOST}",
            "/data": str(folder / "s3"),
            "/prometheus": str(folder / "tsdb"),
        }
        (folder / "s3").mkdir()

    def own(self, text: str) -> str:
        """Return *text* with the addresses and folders of this run."""
        for word, here in self._words.items():
            text = text.replace(word, here)
        return text

    def words(self, name: str) -> list[str]:
        """Return a service's command for this run, without its program if an image has one."""
        return [self.own(word) for word in self.services[name]["command"]]

    def command(self, name: str) -> list[str]:
        first, *rest = words = self.words(name)
        if name == "redis":
            own = ["--port", str(self.ports[name]), "--bind", HOST, "--dir", str(self.folder)]
            return [find_program(first), *rest, *own, "--save", ""]
        if name == "s3":
            return [find_weed(), *words, *(f"-{each}={n}" for each, n in self.s3_ports.items())]
        if name == "prometheus":
            mounted = ROOT / "monitoring" / "prometheus"
            for path in mounted.iterdir():
                text = self.own(path.read_text()).replace("interval: 10s", "interval: 1s")
                (self.folder / path.name).write_text(text)
            words[0] = f"--config.file={self.folder / 'prometheus.yml'}"
            return [program(name), *words, f"--web.listen-address={HOST}:{self.ports[name]}"]
        assert first in ("celery", "python")
        modules = ["-m", "celery"] if first == "celery" else []
        own = {
            "9540": str(self.ports["exporter"]),
            "9541": str(self.ports["dashboard"]),
            "10": "1",  # seconds between two rounds
        }
        return [sys.executable, *modules, *(own.get(word, word) for word in rest)]

    def environment(self, name: str) -> dict[str, str]:
        message = self.services[name].get("environment", {})
        return {
            **os.environ,
            **{key: self.own(value) for key, value in message.items()},
            "C_FORCE_ROOT": "1",  # in the image they run as another user
            "TMPDIR": str(self.folder),
        }

    def start(self, name: str) -> Process:
        """Start a service and return once its own health check succeeds."""
        log = self.folder / f"{name}.log"
        process = Process(self.command(name), log, self.environment(name), fork=True)
        self._stack.callback(process.stop)
        if "healthcheck" in self.services[name]:
            process.wait_for(lambda: self.healthy(name), f"{name} is healthy", PATIENCE)
        return process

    def page(self, path: str) -> str:
        """Return a page of the dashboard, which requires authentication."""
        user = self.environment("dashboard")["OFFLOAD_DASHBOARD_BASIC_AUTH"]
        asked = Request(f"http://{HOST}:{self.ports['dashboard']}{path}")
        with pytest.raises(HTTPError, match="401"):
            urlopen(asked)
        asked.add_header("Authorization", "Basic " + b64encode(user.encode()).decode())
        with urlopen(asked) as answer:
            return answer.read().decode()

    def healthy(self, name: str) -> bool:
        """Run a service's health check without programs that only images have."""
        how, *test = (self.own(word) for word in self.services[name]["healthcheck"]["test"])
        assert how == "CMD"
        if test == ["redis-cli", "ping"]:
            return answers(redis.Redis(HOST, self.ports["redis"]).ping)
        if test[0] == "wget":
            return answers(lambda: urlopen(test[-1]).close())
        env = self.environment(name)
        if test[0] == "celery":
            return forkserver.run(test[1:], env=env).returncode == 0
        assert test[0] == "python"
        command = [sys.executable, *test[1:]]
        done = subprocess.run(command, check=False, capture_output=True, env=env, cwd=ROOT)
        return done.returncode == 0


def answers(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except (OSError, redis.ConnectionError):
        return False
    return True


@pytest.fixture
def example(tmp_path):
    with ExitStack() as stack:
        yield Example(tmp_path, stack)


@pytest.mark.timeout(400)
def test_every_service_is_healthy_and_data_flows(example):
    """Every service is healthy by its own check; values are stored in Redis and S3, and Prometheus
    has their metrics.
    """
    order = ("redis", "s3", "worker", "exporter", "dashboard", "prometheus", "producer")
    assert {*order, "grafana"} == set(example.services)
    processes = {name: example.start(name) for name in order}
    producer, worker = processes["producer"], processes["worker"]
    producer.wait_for(lambda: producer.log().count("chord:") >= 2, "two rounds", 2 * PATIENCE)

    server = Prometheus(f"http://{HOST}:{example.ports['prometheus']}")

    def seen(expression):
        found = server.query(expression)
        return found and all(map(isfinite, found)) and min(found) > 0

    for expression in (
        "offload_up",
        "sum(increase(offload_offloaded_bytes_total[5m]))",
        "sum(increase(offload_uploaded_bytes_total[5m]))",
        "sum(increase(offload_cache_hits_total[5m]))",
        "offload:deduplication:ratio1h",
        'offload:step_duration_seconds:p95_10m{step="upload"}',
    ):
        worker.wait_for(lambda: seen(expression), expression, PATIENCE)  # noqa: B023
    assert server.query("sum(offload_errors_total)") == [0]
    page = example.page("/tasks")
    assert "Tasks" in page
    assert "worker_example" in page
    assert server.alerts() == {}
    assert any(path.stat().st_size > 1_000_000 for path in (example.folder / "s3").rglob("*.dat"))
    for name, process in processes.items():
        assert process.popen.poll() is None, f"{name} ended:\n{process.log()[-4000:]}"
