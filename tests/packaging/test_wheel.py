"""What users install is whole, and nothing else."""

import subprocess
import sys
from email.parser import HeaderParser
from importlib import metadata
from zipfile import ZipFile

import pytest

import offload


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    """The wheel of this tree, built by the project's own build backend."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("*.whl")
    with ZipFile(path) as archive:
        yield archive


def test_every_file_of_the_package_is_shipped(wheel, root):
    """Modules, Lua scripts, templates: what stands under offload/ is in the wheel."""
    files = {
        path.relative_to(root).as_posix()
        for path in (root / "offload").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == files


def test_types_are_shipped(wheel):
    """py.typed tells type checkers that the annotations are meant for them."""
    assert "offload/py.typed" in wheel.namelist()


def test_lua_scripts_are_shipped(wheel):
    """The Redis store loads its scripts from files beside it."""
    assert any(name.startswith("offload/") and name.endswith(".lua") for name in wheel.namelist())


def test_licence_is_shipped(wheel, root):
    """The Apache licence asks to go with every copy."""
    (name,) = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    assert wheel.read(name) == (root / "LICENSE").read_bytes()


def test_metadata(wheel):
    """Name, version, Pythons and licence are what they should be."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    headers = HeaderParser().parsestr(wheel.read(name).decode())
    assert headers["Name"] == "offload"
    assert headers["Version"] == offload.__version__
    assert headers["Requires-Python"] == "<3.15,>=3.10"
    assert headers["License-Expression"] == "Apache-2.0"


def test_version_stands_in_one_place(root):
    """No second copy of the version can go stale: offload/__init__.py alone has it."""
    assert metadata.version("offload") == offload.__version__
    sources = [*(root / "offload").rglob("*.py"), root / "pyproject.toml"]
    copies = [path for path in sources if f'"{offload.__version__}"' in path.read_text()]
    assert copies == [root / "offload" / "__init__.py"]


def test_version_is_in_the_changelog(root):
    """What is released has been described; what is not stands under Unreleased."""
    text = (root / "CHANGELOG.md").read_text()
    assert f"## [{offload.__version__}]" in text or "## [Unreleased]" in text


def test_each_section_of_the_changelog_stands_once(root):
    """A release has one list of each kind, also after branches were merged."""
    for release in (root / "CHANGELOG.md").read_text().split("\n## ")[1:]:
        sections = [line for line in release.splitlines() if line.startswith("### ")]
        assert len(sections) == len(set(sections)), release.partition("\n")[0]
