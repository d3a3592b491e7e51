"""constraints.txt has versions that fit, and nothing else; the package knows them, too."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from offload.doctor.tested import TESTED

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
NOT_INSTALLED = {"offload", "torch", "geopandas", "shapely"}
"""Packages that no command of this repository installs from an index."""


@pytest.fixture(scope="module")
def text(root):
    return (root / "constraints.txt").read_text()


@pytest.fixture(scope="module")
def pins(text):
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [Requirement(line) for line in lines]


@pytest.fixture
def tool(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "tools"))
    spec = importlib.util.spec_from_file_location("constraints", root / "tools" / "constraints.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("bootstrap", "test_all"):
        sys.modules.pop(name, None)


def on(python):
    """Return the values of markers on Linux with this Python."""
    return {"python_version": python, "python_full_version": f"{python}.9", "extra": ""}


def test_it_has_names_versions_and_markers_only(text):
    """constraints.txt has no host, path, or option, so that it means the same everywhere."""
    for line in text.splitlines():
        assert re.fullmatch(r"#.*|[a-z\d][a-z\d.-]*==[\w.]+( ; [^/\\@]+)?", line)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_version_that_fits(pyproject, pins, python):
    """Each requirement of every extra and group has exactly one allowed version on each Python."""
    project = pyproject["project"]
    lists = [*project["optional-dependencies"].values(), *pyproject["dependency-groups"].values()]
    wanted = [Requirement(line) for each in lists for line in each if isinstance(line, str)]
    wanted += map(Requirement, project["dependencies"])
    here = on(python)
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(here)]
    assert len({pin.name for pin in chosen}) == len(chosen)
    versions = {pin.name: next(iter(pin.specifier)).version for pin in chosen}
    for each in wanted:
        if each.name not in NOT_INSTALLED and (each.marker is None or each.marker.evaluate(here)):
            assert each.specifier.contains(versions[each.name], prereleases=True), each


def test_the_package_knows_the_versions_that_are_tested(root, tool, text):
    """`celery offload doctor` compares with the versions in constraints.txt: run `make
    constraints`.
    """
    assert tool.TESTED.read_text() == tool.tested(text, set(TESTED))


def test_everything_that_users_install_is_known(pyproject, tool):
    """Every dependency, and all of users' extras, have tested versions."""
    project = pyproject["project"]
    lines = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines += extra
    names = {Requirement(line).name for line in lines} - NOT_INSTALLED
    assert names | {*tool.INDIRECT} == set(TESTED)


@pytest.mark.parametrize("name", ("3.11", "lowest", "newest"))
def test_only_environments_of_a_python_are_constrained(root, tool, monkeypatch, tmp_path, name):
    """`make test-newest` upgrades everything, `lowest` has its own versions, and environments of a
    Python use these.
    """
    test_all, commands = importlib.import_module("test_all"), []

    def runs(command, **_):
        commands.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(test_all, "_uv", lambda: ["uv"])
    monkeypatch.setattr(test_all, "_lowest", lambda *_: tmp_path / "lowest.txt")
    monkeypatch.setattr(test_all, "ROOT", tmp_path)
    monkeypatch.setattr(test_all.subprocess, "run", runs)
    monkeypatch.setattr(test_all.bootstrap, "uv_env", dict)
    test_all.environment(name, sys.executable)
    test_all.environment(name, sys.executable)
    _, install, *again = commands
    assert (str(root / "constraints.txt") in install) is (name == "3.11")
    assert (str(tmp_path / "lowest.txt") in install) is (name == "lowest")
    assert ("--upgrade" in install) is (name == "newest")
    assert again == ([install] if name == "newest" else [])  # the newest may be newer by now
