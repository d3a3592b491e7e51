"""The tutorial works for a reader who follows it literally."""

from __future__ import annotations

import re
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.docs.follow import Command, Follower, SavedFile, matches, steps
from tests.support.processes import environment
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
SHOWN = "http://127.0.0.1:9541/"

pytestmark = [pytest.mark.server, pytest.mark.integration]


def test_the_tutorial_works_as_written(redis: Server, tmp_path: Path) -> None:
    """Its files and commands, in order, print what it shows, up to a dashboard with its tasks."""
    port = free_port()
    # Databases 10 to 12: other tests use the same server.
    page = PAGE.replace("redis://localhost:6379/", f"redis://{redis.host}:{redis.port}/1")
    page = page.replace(SHOWN, f"http://127.0.0.1:{port}/")
    reader = Follower(tmp_path, environment({}, tmp_path))
    followed = []
    try:
        for step in steps(page):
            if isinstance(step, SavedFile):
                (tmp_path / step.name).write_text(step.content, encoding="utf-8")
            elif step.words[0] == "pip":
                check_installation(step)
            elif step.words[0] in {"celery", "python"}:
                if step.words[-1] == "dashboard":
                    step.words.extend(["--port", str(port)])
                reader.run(step)
            if isinstance(step, Command):
                followed.append(step.words[0])
        shown = urllib.request.urlopen(f"http://127.0.0.1:{port}/tasks").read().decode()
        assert "tasks.total" in shown
        assert "tasks.double" in shown
    finally:
        reader.stop()
    assert set(followed) == {"python3", ".", "pip", "celery", "python"}


def check_installation(step: Command) -> None:
    """Check that the extras to be installed exist: this environment has all of them."""
    (extras,) = re.findall(r"^offload\[(.+)\]$", step.words[-1])
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(extras.split(",")) <= set(known)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    (
        ("sum: 0\n", "sum: 0\n", True),
        ("sum: 0\n", "sum: 1\n", False),
        ("…\ntotal …\n", "one\ntotal 7 kB\nmore\n", True),
        ("…total…\nnone\n", "total\nsome\n", False),
    ),
)
def test_output_is_compared_with_the_page(expected: str, printed: str, same: bool) -> None:
    """Output that differs from the page is noticed; … stands for any text."""
    assert matches(expected, printed) is same
