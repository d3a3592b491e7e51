"""The demo, the first command of README, on a small part of its data."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.support.processes import Process, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.server]


def demo(tmp_path, *arguments):
    """Start the demo; all files of its processes are in *tmp_path*."""
    return Process(
        [sys.executable, "-m", "worker_example.demo", *arguments],
        tmp_path.with_name(f"{tmp_path.name}.log"),
        {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "80"},
    )


def output_of(process, code, timeout):
    """Wait for the demo to exit with *code*; return what it printed."""
    assert process.popen.wait(timeout) == code, process.log()
    return process.log()


def processes_of(tmp_path):
    """Return the ids of the demo's processes, which have *tmp_path* in their environment."""
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
    """Check that no process of the demo runs and that its temporary folder is empty."""
    wait_until(lambda: not processes_of(tmp_path), "all processes have exited", 5)
    assert list(tmp_path.iterdir()) == []


def test_both_sides_give_the_same_answers(tmp_path):
    """Both sides run all jobs with equal results; offload sends little through the broker."""
    output = output_of(demo(tmp_path, "--rows", "20000"), 0, 120)
    for job, tasks in (("fan-out", 52), ("chain", 3), ("chord", 13)):
        assert re.search(rf"{job} +│ +{tasks} │.*│ yes", output), output
    line = next(line for line in output.splitlines() if "through broker and results" in line)
    assert float(line.split("│")[-2].replace(",", "")) > 20, output
    for term in ("fan-out", "chain", "chord", "broker", "through", "ratio", "node cache"):
        assert re.search(rf"^{term}: ", output, re.MULTILINE), f"the legend lacks {term}"
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output, "no control codes without a terminal"
    assert_clean(tmp_path)


@pytest.mark.parametrize("sent", (signal.SIGINT, signal.SIGTERM), ids=("ctrl-c", "terminated"))
def test_the_demo_cleans_up_when_interrupted(tmp_path, sent):
    """Interrupted during a job, the demo stops its servers and its worker."""
    process = demo(tmp_path, "--rows", "50000")
    wait_until(lambda: len(processes_of(tmp_path)) >= 5, "the demo has started", 30)
    process.popen.send_signal(sent)
    output_of(process, 130, 30)
    assert_clean(tmp_path)


def test_a_failing_producer_is_reported(tmp_path):
    """When a side fails, the demo prints the reason, stops all processes, and exits with 1."""
    output = output_of(demo(tmp_path, "--rows", "0"), 1, 60)
    assert "Traceback" in output
    assert "the producer exited with code 1" in output
    assert_clean(tmp_path)


def test_a_dead_worker_is_reported(tmp_path):
    """When the worker dies, the demo reports it and exits instead of waiting for results."""
    process = demo(tmp_path)

    def workers():
        return [pid for pid in processes_of(tmp_path) if b"\0worker\0" in command_of(pid)]

    os.kill(min(process.wait_for(workers, "the worker has started", 30)), signal.SIGKILL)
    output = output_of(process, 1, 30)
    assert "the worker exited before all jobs were done" in output
    assert_clean(tmp_path)
