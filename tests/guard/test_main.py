"""One script as both worker and publisher, with pickle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import Process, environment

SCRIPT = Path(__file__).parent / "main_script.py"

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.mark.parametrize("offload", ("off", "on"))
def test_classes_of_main_that_cannot_ship_by_value(bench, tmp_path, offload):
    """Instances of a class of ``__main__`` with a lock or a client, small and large, are sent by
    name, like plain pickle does.
    """
    command = [sys.executable, "-W", "ignore", str(SCRIPT), bench.url, offload]
    worker = Process([*command, "worker"], tmp_path / "worker.log", environment())
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=120
        )
    finally:
        worker.kill()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[3, True], [50_000, True]] * 4
