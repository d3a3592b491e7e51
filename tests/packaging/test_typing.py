"""Type checkers report misspelled settings and options, and wrong values, to users."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import celery
import pytest

from offload.settings import RetryPolicy, Settings, TaskOptions
from offload.settings.options import OF_TASK
from offload.settings.typed import CallDict, RetryDict, SettingsDict, TaskDict
from offload.typing import Celery
from tests.docs.snippets import read_page

ROOT = Path(__file__).parents[2]
PAGE = read_page(ROOT / "docs" / "how-to" / "type-checking.md")
USER = """
from offload import Offload
from offload.settings.units import size
from offload.typing import Celery

app = Celery("shop")
Offload(app, threshold="64k", retention="7d", mode="observe", retry={"interval_max": "1m"})
Offload(app, threshold=size("96 KiB"), message_limit="auto", tier_sizes=["1MB", 5], cache_size=0)
Offload(app, treshold=1)  # error
Offload(app, threshold="64q")  # error
Offload(app, retention="7x")  # error
Offload(app, mode="of")  # error
Offload(app, retry={"max_retry": 1})  # error


@app.task
def plain(number: int) -> int:
    return number


@app.task(offload={"threshold": "64k", "memo": "7d", "inline": ["number"]}, name="good")
def good(number: int) -> int:
    return number


@app.task(offload={"treshold": 1})  # error
def misspelled(number: int) -> int:
    return number


@app.task(offload={"threshold": "64q"})  # error
def wrong(number: int) -> int:
    return number
"""
MARKED = [n for n, line in enumerate(USER.splitlines(), 1) if line.endswith("# error")]


def has(package):
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    for name, code in PAGE.files.items():
        (tmp_path / name).write_text(code)
    for number, (_, code) in enumerate(PAGE.scripts):
        (tmp_path / f"script_{number}.py").write_text(code)
    return tmp_path


def check(command, folder):
    """Return what the command prints: it may find errors, but must not crash."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not has("mypy"), reason="mypy isn't installed")
def test_mypy_reports_mistakes_only(folder):
    """mypy reports each marked line of a user's file, and nothing else there or in the docs."""
    arguments = ["--strict", "--show-column-numbers", "--cache-dir", str(folder / "cache")]
    arguments += ["--python-version", "3.12", "--config-file", "", "."]
    if not has("celery-types"):
        arguments.insert(0, "--ignore-missing-imports")
    out = check([sys.executable, "-m", "mypy", *arguments], folder)
    found = re.findall(r"^(\w+\.py):(\d+):\d+: error: ", out, re.MULTILINE)
    errors = {(file, int(line)) for file, line in found}
    assert errors == {("user.py", line) for line in MARKED}, out
    assert 'did you mean "threshold"' in out


@pytest.mark.skipif(
    not (has("basedpyright") or shutil.which("pyright")), reason="pyright isn't installed"
)
def test_pyright_reports_mistakes_only(folder):
    """pyright reports the same lines."""
    options = {"typeCheckingMode": "standard", "include": ["."], "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(options))
    program = [sys.executable, "-m", "basedpyright"] if has("basedpyright") else ["pyright"]
    out = check([*program, "--pythonpath", sys.executable, "--outputjson"], folder)
    errors = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in json.loads(out)["generalDiagnostics"]
        if each["severity"] == "error"
    }
    assert errors == {("user.py", line) for line in MARKED}, out


def test_the_types_have_every_name():
    """The types for checkers have the names of settings and options, and the same choices."""
    assert [*SettingsDict.__annotations__] == [field.name for field in fields(Settings)]
    assert {*RetryDict.__annotations__} == {field.name for field in fields(RetryPolicy)}
    assert {*TaskDict.__annotations__} == {field.name for field in fields(TaskOptions)}
    assert {*TaskDict.__annotations__} - {*CallDict.__annotations__} == {*OF_TASK}


def test_at_run_time_it_is_celerys_class():
    """The typed class is Celery's own when a program runs."""
    assert Celery is celery.Celery
