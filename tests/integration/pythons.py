"""Other minor versions of Python, each with an environment for offload.

The environments are in .venvs/, next to those of tools/test_all.py, and are reused until
pyproject.toml changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.processes import ROOT

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
OTHERS = tuple(v for v in ("3.10", "3.11", "3.12", "3.13") if v != OWN)
NEEDED = ("-e", ".[signing]", "celery[redis]>=5.3", "pydantic>=2.6")


def python(version: str) -> str:
    """Return the interpreter of an environment for this version; skip the test without one."""
    if version == OWN:
        return sys.executable
    found = _environment(version)
    if isinstance(found, Path):
        return str(found)
    pytest.skip(found)


@cache
def _environment(version: str) -> Path | str:
    """Return an interpreter, or the reason why there is none."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import bootstrap
        import test_all
    finally:
        sys.path.remove(str(ROOT / "tools"))
    uv = shutil.which("uv")
    venv = ROOT / ".venvs" / f"other-{version}"
    stamp = venv / "offload.stamp"
    if uv is None and not stamp.exists():
        return "no uv to make an environment with"
    interpreter = test_all.find(version)
    if interpreter is None:
        return f"no Python {version} here"
    state = bootstrap.fingerprint(Path(__file__), more=interpreter)
    if stamp.exists() and stamp.read_text() == state:
        return venv / "bin" / "python"
    if uv is None:
        return "no uv to make an environment with"
    made = venv.with_name(f"{venv.name}.{os.getpid()}")  # another run may create it, too
    env = bootstrap.uv_env()
    for command in (
        [uv, "venv", "-q", "-p", interpreter, str(made)],
        [uv, "pip", "install", "-q", "-p", str(made / "bin" / "python"), *NEEDED],
    ):
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(made, ignore_errors=True)
            return f"uv cannot make an environment of Python {version}: {done.stderr[-500:]}"
    (made / "offload.stamp").write_text(state)
    shutil.rmtree(venv, ignore_errors=True)
    made.rename(venv)
    return venv / "bin" / "python"
