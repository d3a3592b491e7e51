"""The check that holds the layers is itself checked: it must find what breaks them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def tree(root, tmp_path):
    """A copy of the package, and of the contracts, to break."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "offload", tmp_path / "offload", ignore=ignore)
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def check(tree):
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=env, check=False, capture_output=True, text=True)
    done.stdout = re.sub(r"\x1b\[\d*m", "", done.stdout)  # some versions colour it everywhere
    return done


def test_the_tree_as_it_is_passes(tree):
    """Imports go only downwards."""
    done = check(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    (
        ("errors.py", "from offload.stores import protocols"),
        ("digest.py", "import offload.ref"),
        ("stores/protocols.py", "def later():\n    from offload.serializers import base"),
    ),
)
def test_an_upward_import_is_found(tree, module, line):
    """Also inside a function: there it only hides a cycle."""
    path = tree / "offload" / module
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    done = check(tree)
    assert done.returncode == 1
    assert "Imports go only downwards BROKEN" in done.stdout
    assert f"offload.{module[:-3].replace('/', '.')} ->" in done.stdout


def test_a_module_without_a_layer_is_found(tree):
    """Whoever adds a module says where it stands."""
    (tree / "offload" / "newcomer.py").write_text("")
    done = check(tree)
    assert done.returncode == 1
    assert "newcomer" in done.stdout


def test_an_import_of_the_top_is_found(tree):
    """Inside the package, names come from where they are defined."""
    path = tree / "offload" / "errors.py"
    path.write_text(f"{path.read_text()}\n\nimport offload\n")
    done = check(tree)
    assert done.returncode == 1
    assert "offload.errors -> offload" in done.stdout
