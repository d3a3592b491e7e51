"""Half-open requests leave the dashboard and the exporter able to answer."""

from __future__ import annotations

import re
import socket
import sys
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from offload.metrics import connections
from tests.support.processes import Process, environment, wait_until

APP = """
from celery import Celery
from offload import Offload
app = Celery("halfopen", broker="memory://", set_as_current=False)
offload = Offload(app, store="file://{folder}/store", stats_interval=10)
"""
DESCRIPTORS = 200
HALVES = (b"", b"GET /healthz HTTP/1.1\r\nHost: loc", b"GET /metrics HTTP/1.1\r\n")


@pytest.fixture(params=("dashboard", "exporter"))
def server(request, tmp_path):
    """Serve from a real process with few descriptors; return its pid, URL, and address."""
    (tmp_path / "halfopen.py").write_text(APP.format(folder=tmp_path))
    command = f"{sys.executable} -m celery -A halfopen offload {request.param} --port 0 --json"
    process = Process(
        ["bash", "-c", f"ulimit -n {DESCRIPTORS}; exec {command}"],
        tmp_path / "server.log",
        environment({}, tmp_path),
        tmp_path,
    )
    try:
        found = process.wait_for(
            lambda: re.search(r'"url": *"([^"]+)"', process.log()), "the server has started", 60
        )
        url = urlsplit(found[1])
        path = "/healthz" if request.param == "dashboard" else "/metrics"
        yield process.pid, f"http://{url.hostname}:{url.port}{path}", (url.hostname, url.port)
    finally:
        process.stop()


def answers(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200


def threads_of(pid):
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_half_open_requests_block_no_others(server):
    """With more half-open connections than descriptors, the server still answers, uses a
    bounded number of threads, and closes silent connections.
    """
    pid, url, address = server
    assert answers(url)
    with ExitStack() as stack:
        halves = []
        for number in range(DESCRIPTORS * 2):
            half = stack.enter_context(closing(socket.create_connection(address, timeout=5)))
            half.sendall(HALVES[number % len(HALVES)])
            halves.append(half)
        wait_until(lambda: answers(url), "the server answers")
        for _ in range(20):
            assert answers(url)
        assert threads_of(pid) < connections._MOST + 30
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < DESCRIPTORS - 20
        # Each half is closed, as the oldest connection or after the timeout.
        for half in halves:
            half.settimeout(connections.PATIENCE * 6)
            try:
                half.recv(1000)
            except ConnectionResetError:
                continue
    assert answers(url)


def test_a_slow_client_is_answered(server):
    """A request that arrives in pieces is answered."""
    _, url, address = server
    path = urlsplit(url).path
    with closing(socket.create_connection(address, timeout=30)) as client:
        for piece in (f"GET {path}", " HTTP/1.1\r\nHost: localhost", "\r\nAccept: */*\r\n\r", "\n"):
            client.sendall(piece.encode())
        answer = b""
        while data := client.recv(65536):  # it closes the connection afterwards
            answer += data
    assert b" 200 " in answer.splitlines()[0]


def test_few_descriptors_mean_few_connections(monkeypatch):
    """The limit on connections leaves descriptors for other uses and is at least 4."""
    resource = pytest.importorskip("resource")
    for allowed, most in ((200, 70 - 6), (100, 20), (20, 4), (1 << 20, 64)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, n=allowed: (n, n))
        assert connections.most_connections() == most
