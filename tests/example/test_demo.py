"""The README's first command: the demo, on a small part of its data."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.server]


def demo(tmp_path, *arguments, **options):
    """Start the demo in a session of its own; what it and its processes make is in tmp_path."""
    return subprocess.Popen(
        [sys.executable, "-m", "worker_example.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def processes_of(tmp_path):
    """The processes that have this run's folder in their environment: the demo's own."""
    mark = f"TMPDIR={tmp_path}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if any(item.startswith(mark) for item in entry.read_bytes().split(b"\0")):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def assert_clean(tmp_path):
    """Nothing runs any more, and nothing is left in the temporary folder."""
    deadline = time.monotonic() + 5
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_both_sides_give_the_same_answers(tmp_path):
    """All jobs run on real workers by both sides; hardly anything goes through the broker."""
    process = demo(tmp_path, "--rows", "20000")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    for job, tasks in (("fan-out", 52), ("chain", 3), ("chord", 13)):
        assert re.search(rf"{job} +│ +{tasks} │.*│ yes", output), output
    line = next(line for line in output.splitlines() if "through broker and results" in line)
    assert float(line.split("│")[-2].replace(",", "")) > 20, output
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output, "no control codes where there is no terminal"
    assert_clean(tmp_path)


@pytest.mark.parametrize("sent", (signal.SIGINT, signal.SIGTERM), ids=("ctrl-c", "terminated"))
def test_interrupted_it_cleans_up(tmp_path, sent):
    """Stopped in the middle of a job, it ends its servers and its worker."""
    process = demo(tmp_path)
    deadline = time.monotonic() + 30
    while len(processes_of(tmp_path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert_clean(tmp_path)


def test_a_failing_producer_is_reported(tmp_path):
    """When a side fails, the demo says why, ends everything and does not exit with 0."""
    process = demo(tmp_path, "--rows", "0")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in output
    assert "the producer exited with code 1" in output
    assert_clean(tmp_path)


def test_a_dead_worker_is_reported(tmp_path):
    """Nobody waits for the answers of a worker that has ended."""
    process = demo(tmp_path)
    deadline = time.monotonic() + 30
    worker = []
    while not worker and time.monotonic() < deadline:
        worker = [pid for pid in processes_of(tmp_path) if b"\0worker\0" in command_of(pid)]
        time.sleep(0.05)
    os.kill(min(worker), signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the worker exited before all jobs were done" in output
    assert_clean(tmp_path)
