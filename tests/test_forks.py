"""Forks of a process with running threads of offload."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

IMPORTING = """
import os, sys, threading
from pathlib import Path
from offload.forks import guard_forks

sys.path.insert(0, sys.argv[1])
threading.imported, threading.go_on = threading.Event(), threading.Event()
Path(sys.argv[1], "driver.py").write_text(
    "import threading; threading.imported.set(); threading.go_on.wait(0.3); there = 0"
)
guard_forks()
thread = threading.Thread(target=lambda: __import__("driver"), name="offload-test")
thread.start()
threading.imported.wait()
pid = os.fork()
if not pid:
    import driver
    os._exit(driver.there)
threading.go_on.set()
print(os.waitpid(pid, 0)[1])
"""


def test_no_child_is_forked_while_a_driver_is_imported(tmp_path):
    """A child can import a module that a thread was importing at the fork."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "0\n", done.stderr
