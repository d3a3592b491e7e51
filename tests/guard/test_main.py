"""One script as both worker and publisher, with pickle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "main_script.py"

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.mark.parametrize("offload", ("off", "on"))
def test_classes_of_main_that_cannot_go_by_value(bench, offload):
    """A class of ``__main__`` with a lock or a client goes by name, as plain pickle sends it, in
    small and large instances.
    """
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "C_FORCE_ROOT": "1"}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), bench.url, offload]
    worker = subprocess.Popen(
        [*command, "worker"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(20)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[3, True], [50_000, True]] * 4
