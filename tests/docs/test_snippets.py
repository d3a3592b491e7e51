"""Every Python snippet in README and docs runs without an error."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.snippets import read_page
from tests.support import forkserver
from tests.support.processes import environment, start_worker
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = [path for path in PAGES if "```python" in path.read_text(encoding="utf-8")]
SECONDS = 120

pytestmark = [pytest.mark.server, pytest.mark.integration]


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.stem)
def test_the_snippets_of_a_page_run(path: Path, redis: Server, tmp_path: Path) -> None:
    """Each snippet runs on its own, in a folder with the page's files and on a real server."""
    page = read_page(path)
    where = f"redis://{redis.host}:{redis.port}"
    for name, code in page.files.items():
        (tmp_path / name).write_text(_on(code, where), encoding="utf-8")
    with ExitStack() as stack:
        if "celery -A tasks worker" in path.read_text(encoding="utf-8"):
            env = environment({}, tmp_path)
            worker = start_worker("tasks", "-c", "2", folder=tmp_path, env=env, cwd=tmp_path)
            stack.callback(worker.stop)
        failed = [
            f"{path.name}:{line}\n{output}"
            for line, code in page.scripts
            if (output := _run(_on(code, where), tmp_path)) is not None
        ]
    assert not failed, "\n".join(failed)


def _on(code: str, where: str) -> str:
    return code.replace("redis://localhost:6379", where)


def _run(code: str, folder: Path) -> str | None:
    """Return the output of a snippet if it failed, else None."""
    script = folder / "snippet.py"
    script.write_text(code, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = forkserver.run([], module=str(script), cwd=folder, env=env, timeout=SECONDS)
    return None if done.returncode == 0 else done.stdout + done.stderr
