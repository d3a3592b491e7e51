"""``celery offload doctor``."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


@pytest.mark.server
def test_it_ends_well_where_all_is_well(project, redis):
    """Each finding is a line that begins with its level; a remedy stands below."""
    project.write(store=redis.url, cache="off")
    out, _ = project.run("doctor")
    lines = out.splitlines()
    assert lines[-1] == "0 errors, 0 warnings"
    at = next(i for i, line in enumerate(lines) if "appendonly is off" in line)
    assert lines[at].startswith(f"info     {redis.url}: ")
    assert lines[at + 1].startswith("         -> set appendonly yes")


def test_an_unavailable_store_ends_it_with_69(project):
    """As it ends all commands; in the words of the store's own error, said once."""
    project.write(store="redis://localhost:1/0")
    out, _ = project.run("doctor", code=69)
    (error,) = [line for line in out.splitlines() if line.startswith("error")]
    assert error.startswith("error    redis://localhost:1/0 does not answer")
    assert out.endswith("1 errors, 0 warnings\n")


def test_json_is_one_document(project, tmp_path):
    """With counts for programs, whatever it ends with; warnings are no errors."""
    project.write("app.conf.accept_content = ['pickle']\n", store=f"file://{tmp_path}/store")
    found = project.json("doctor")
    assert (found["errors"], found["warnings"]) == (0, 1)
    (pickle,) = [each for each in found["findings"] if each["subject"] == "accept_content"]
    assert pickle["level"] == "info"
    assert pickle["remedy"].startswith("remove pickle from accept_content")
    project.write(store="redis://localhost:1/0")
    assert project.json("doctor", code=69)["errors"] == 1


def test_settings_and_modules_that_cannot_be_read(project):
    """What would keep a worker from starting is a finding, too."""
    project.write("app.conf.offload_retension = 5\n")
    assert "did you mean 'offload_retention'?" in project.run("doctor", code=1)[0]
    project.write("app.conf.imports = ['not_there']\n")
    out, _ = project.run("doctor", code=1)
    assert "error    app: the app's modules cannot be imported: ModuleNotFoundError" in out
