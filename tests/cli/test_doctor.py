"""``celery offload doctor``."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


@pytest.mark.server
def test_a_healthy_setup_exits_with_0(project, redis):
    """Each finding is a line that starts with its level, with a remedy below."""
    project.write(store=redis.url, cache="off")
    out, _ = project.run("doctor")
    lines = out.splitlines()
    assert lines[-1] == "0 errors, 0 warnings"
    at = next(i for i, line in enumerate(lines) if "appendonly is off" in line)
    assert lines[at].startswith(f"info     {redis.url}: ")
    assert lines[at + 1].startswith("         -> set appendonly yes")


def test_an_unavailable_store_exits_with_69(project):
    """The exit code is 69, as of all commands, and the store's error is printed once."""
    project.write(store="redis://localhost:1/0")
    out, _ = project.run("doctor", code=69)
    (error,) = [line for line in out.splitlines() if line.startswith("error")]
    assert error.startswith("error    redis://localhost:1/0 is unavailable")
    assert out.endswith("1 error, 0 warnings\n")


def test_json_is_one_document(project, tmp_path):
    """JSON has counts for programs, whatever the exit code; warnings are no errors."""
    project.write("app.conf.accept_content = ['pickle']\n", store=f"file://{tmp_path}/store")
    found = project.json("doctor")
    assert (found["errors"], found["warnings"]) == (0, 1)
    (pickle,) = [each for each in found["findings"] if each["subject"] == "accept_content"]
    assert pickle["level"] == "info"
    assert pickle["remedy"].startswith("remove pickle from accept_content")
    project.write(store="redis://localhost:1/0")
    assert project.json("doctor", code=69)["errors"] == 1


def test_settings_and_modules_that_cannot_be_read(project):
    """Settings or modules that would keep a worker from starting are a finding, too."""
    project.write("app.conf.offload_retension = 5\n")
    assert "did you mean 'offload_retention'?" in project.run("doctor", code=1)[0]
    project.write("app.conf.imports = ['not_there']\n")
    out, _ = project.run("doctor", code=1)
    assert "error    app: the app's modules cannot be imported: ModuleNotFoundError" in out
