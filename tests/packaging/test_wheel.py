"""The wheel is complete and contains nothing else."""

import re
import runpy
import subprocess
import sys
from email.parser import HeaderParser
from importlib import metadata
from zipfile import ZipFile

import pytest

import offload


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    """Build the wheel of this tree with the project's own build backend."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("*.whl")
    with ZipFile(path) as archive:
        yield archive


def test_every_file_of_the_package_is_shipped(wheel, root):
    """Every module, Lua script, and template in offload/ is in the wheel."""
    files = {
        path.relative_to(root).as_posix()
        for path in (root / "offload").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == files


def test_types_are_shipped(wheel):
    """py.typed marks the annotations as public for type checkers."""
    assert "offload/py.typed" in wheel.namelist()


def test_lua_scripts_are_shipped(wheel):
    """The Redis store's Lua scripts are in the wheel."""
    assert any(name.startswith("offload/") and name.endswith(".lua") for name in wheel.namelist())


def test_license_is_shipped(wheel, root):
    """The Apache license must be part of every copy."""
    (name,) = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    assert wheel.read(name) == (root / "LICENSE").read_bytes()


def test_metadata(wheel):
    """Name, version, Python versions, and license are correct."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    headers = HeaderParser().parsestr(wheel.read(name).decode())
    assert headers["Name"] == "offload"
    assert headers["Version"] == offload.__version__
    assert headers["Requires-Python"] == "<3.15,>=3.10"
    assert headers["License-Expression"] == "Apache-2.0"


def test_version_is_in_one_place(root):
    """Only offload/__init__.py has the version, so that no copy can be outdated."""
    assert metadata.version("offload") == offload.__version__
    sources = [*(root / "offload").rglob("*.py"), root / "pyproject.toml"]
    copies = [path for path in sources if f'"{offload.__version__}"' in path.read_text()]
    assert copies == [root / "offload" / "__init__.py"]


def test_version_is_in_the_changelog(root):
    """A release is described in the changelog; other changes are under Unreleased."""
    text = (root / "CHANGELOG.md").read_text()
    assert f"## [{offload.__version__}]" in text or "## [Unreleased]" in text


def test_each_section_of_the_changelog_occurs_once(root):
    """A release has one list of each kind, also after merges."""
    for release in (root / "CHANGELOG.md").read_text().split("\n## ")[1:]:
        sections = [line for line in release.splitlines() if line.startswith("### ")]
        assert len(sections) == len(set(sections)), release.partition("\n")[0]


def test_the_description_has_no_dead_link(wheel):
    """A package index shows README without relative links, which would lead nowhere there."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    message = HeaderParser().parsestr(wheel.read(name).decode())
    assert message["Description-Content-Type"] == "text/markdown"
    description = message.get_payload()
    assert description.startswith("# offload")
    targets = re.findall(r"\]\(([^)]+)\)", description)
    assert [target for target in targets if "://" not in target] == []


@pytest.mark.parametrize(
    ("base", "expected"),
    (
        (None, "see errors, [it](https://a.example)"),
        (
            "https://b.example/v1/",
            "see [errors](https://b.example/v1/e.md#x), [it](https://a.example)",
        ),
    ),
)
def test_links_of_the_description(root, base, expected):
    """Links to files lead to the repository, and are text as long as it has no public address."""
    code = runpy.run_path(str(root / "hatch_build.py"))
    assert code["portable"]("see [errors](e.md#x), [it](https://a.example)", base) == expected
