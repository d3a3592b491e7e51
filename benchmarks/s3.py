"""Question 8: how much does S3 cost, compared with boto3's own transfers?

The same bytes go to the same server, alternating between boto3's ``upload_fileobj`` and
``download_fileobj`` with their defaults (multipart, ten threads, checksums), and the store with its
4 MiB chunks. They go to SeaweedFS, a real server, which takes most of the time on one machine, and
to a server that discards everything, which shows the client's limit.

Hashing isn't included; question 2 measures it.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3

from benchmarks.measure import cpu_seconds, median, peak, ratio, reset_peak, resident
from benchmarks.processes import run_module
from benchmarks.report import Judge, Scale
from benchmarks.s3_sink import HOST, sink
from offload.content.memory import allocate
from offload.stores import open_store
from tests.support.s3_server import BUCKET, KEY, SECRET, s3_server

TITLE = "S3, compared with boto3's own transfers"
BOTO3, OFFLOAD = "boto3", "offload"
CHUNK = 4 << 20
HOUR = 3600.0
_MB = 1_000_000


def run(scale: Scale, judge: Judge) -> None:
    with s3_server() as server:
        _transfers("SeaweedFS", server.endpoint, scale, judge, pid=server.pid)
        _memory(server.endpoint, scale, judge)
    with sink() as port:
        _transfers("a server that forgets", f"http://{HOST}:{port}", scale, judge)


def _transfers(
    name: str, endpoint: str, scale: Scale, judge: Judge, *, pid: int | None = None
) -> None:
    size = scale.again
    content = os.urandom(size)
    ways: dict[str, Any] = {BOTO3: _Boto3(endpoint), OFFLOAD: _Offload(endpoint)}
    for each in ways.values():  # connections, imports
        few = content[: 3 * CHUNK]
        each.down(each.up(few), len(few))
    for direction in ("up", "down"):
        wall: dict[str, list[float]] = {way: [] for way in ways}
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        servers: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(scale.rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                there = ways[way].up(content) if direction == "down" else None
                served = cpu_seconds(pid) if pid else 0.0
                begun, used = time.perf_counter(), time.process_time()
                if direction == "up":
                    there = ways[way].up(content)
                else:
                    ways[way].down(there, size)
                cpu[way].append(time.process_time() - used)
                wall[way].append(time.perf_counter() - begun)
                servers[way].append(cpu_seconds(pid) - served if pid else 0.0)
                ways[way].remove(there)
        what = f"{name}: {size / _MB:g} MB {direction}"
        judge.row(
            f"{what}, throughput",
            "MB/s",
            {way: size / _MB / median(times) for way, times in wall.items()},
            ratio=ratio(wall[BOTO3], wall[OFFLOAD]),
            at_least=2,
        )
        judge.row(
            f"{what}, the client's CPU time",
            "ms",
            {way: median(times) * 1e3 for way, times in cpu.items()},
            ratio=ratio(cpu[OFFLOAD], cpu[BOTO3]),
            at_most=1,
        )
        if pid is None:
            continue
        judge.row(
            f"{what}, the server's CPU time",
            "ms",
            {way: median(times) * 1e3 for way, times in servers.items()},
        )
        # The server on all cores, with a client that takes no time.
        least = median(servers[OFFLOAD]) / (os.cpu_count() or 1)
        if least:  # smaller values are below the kernel's resolution
            judge.row(
                f"{what}: what no client can exceed on this machine",
                "x",
                {OFFLOAD: median(wall[BOTO3]) / least},
            )


def _memory(endpoint: str, scale: Scale, judge: Judge) -> None:
    """Measure each in its own process, unaffected by the others."""
    grown = {way: _in_process(way, endpoint, scale.again) for way in (BOTO3, OFFLOAD)}
    for direction in ("up", "down"):
        judge.row(
            f"{scale.again / _MB:g} MB {direction}, peak memory beyond the value",
            "MB",
            {way: figures[direction] / _MB for way, figures in grown.items()},
            at_most=64 if direction == "up" else None,
            of="MB",
        )


class _Boto3:
    def __init__(self, endpoint: str) -> None:
        session = boto3.session.Session(KEY, SECRET, region_name="us-east-1")
        self._client = session.client("s3", endpoint_url=endpoint)

    def up(self, content: bytes) -> str:
        key = f"plain/{os.urandom(8).hex()}-{len(content)}"
        self._client.upload_fileobj(io.BytesIO(content), BUCKET, key)
        return key

    def down(self, key: str, size: int) -> None:
        target = io.BytesIO()
        self._client.download_fileobj(BUCKET, key, target)
        assert target.getbuffer().nbytes == size

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)


class _Offload:
    def __init__(self, endpoint: str) -> None:
        login = f"{KEY}:{SECRET.replace('/', '%2F').replace('+', '%2B')}"
        self._store = open_store(f"s3://{login}@{BUCKET}/bench", endpoint_url=endpoint)

    def up(self, content: bytes) -> list[str]:
        view = memoryview(content)
        chunks = [view[at : at + CHUNK] for at in range(0, len(view), CHUNK)]
        # Arbitrary names that end in the size of the sink's reply.
        names = [f"b3:{os.urandom(26).hex()}{len(chunk) + 17:012d}" for chunk in chunks]
        blobs = {name: [b"\0", chunk] for name, chunk in zip(names, chunks, strict=True)}
        self._store.blobs.put(blobs, HOUR)
        return names

    def down(self, names: list[str], size: int) -> None:
        target = allocate(size, 64)  # as values are read
        at = 0
        for found in self._store.blobs.get(names, CHUNK + 1):
            chunk = memoryview(found)[1:]
            target[at : at + len(chunk)] = chunk
            at += len(chunk)
        assert at == size

    def remove(self, names: list[str]) -> None:
        self._store.blobs.delete(names)


def _in_process(way: str, endpoint: str, size: int) -> dict[str, int]:
    done = run_module("benchmarks.s3", way, endpoint, str(size))
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _grown(way: str, endpoint: str, size: int) -> dict[str, int]:
    """Return this process's peak increase in bytes, besides the value."""
    client: Any = (_Boto3 if way == BOTO3 else _Offload)(endpoint)
    client.down(client.up(os.urandom(3 * CHUNK)), 3 * CHUNK)
    # boto3 reads from a file whose content is in memory once, as the store's value is.
    content = os.urandom(size)
    with _watched() as found:
        there = client.up(content)
        up = found()
    with _watched() as found:
        client.down(there, size)
        down = found() - size
    return {"up": up, "down": max(0, down)}


@contextmanager
def _watched() -> Iterator[Callable[[], int]]:
    reset_peak()
    before = resident()
    yield lambda: max(0, peak() - before)


if __name__ == "__main__":
    print(json.dumps(_grown(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
