"""The check of import layers finds violations, and private imports stay in one place."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def tree(root, tmp_path):
    """Return a copy of the package and its contracts, to be changed."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "offload", tmp_path / "offload", ignore=ignore)
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def check(tree):
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=env, check=False, capture_output=True, text=True)
    done.stdout = re.sub(r"\x1b\[\d*m", "", done.stdout)  # some versions always use colors
    return done


def test_the_tree_as_it_is_passes(tree):
    """The unchanged tree passes."""
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
    """An upward import is found, also in a function, where it only hides a cycle."""
    path = tree / "offload" / module
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    done = check(tree)
    assert done.returncode == 1
    assert "Imports go only downwards BROKEN" in done.stdout
    assert f"offload.{module[:-3].replace('/', '.')} ->" in done.stdout


def test_a_module_without_a_layer_is_found(tree):
    """A new module without a layer is found."""
    (tree / "offload" / "newcomer.py").write_text("")
    done = check(tree)
    assert done.returncode == 1
    assert "newcomer" in done.stdout


def test_an_import_of_the_top_is_found(tree):
    """Modules of the package import names from where they are defined."""
    path = tree / "offload" / "errors.py"
    path.write_text(f"{path.read_text()}\n\nimport offload\n")
    done = check(tree)
    assert done.returncode == 1
    assert "offload.errors -> offload" in done.stdout


def test_an_import_of_the_extension_is_found(tree):
    """Only `offload/__init__.py` imports the module of class `Offload`."""
    path = tree / "offload" / "dashboard" / "app.py"
    path.write_text(f"{path.read_text()}\n\nfrom offload.hooks import extension\n")
    done = check(tree)
    assert done.returncode == 1
    assert "1 broken" in done.stdout
    assert "offload.dashboard.app -> offload.hooks.extension" in done.stdout


def test_private_parts_of_other_packages_are_imported_in_one_place(root):
    """Only modules named ``*_internals``, each with tests of its own, import private names of other
    packages; ruff refuses private attributes elsewhere.
    """
    found = []
    for path in (root / "offload").rglob("*.py"):
        if path.name.endswith("_internals.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            parts = [name.split(".") for name in names if name.split(".")[0] != "offload"]
            found += [
                (path.name, name)
                for name in parts
                if any(part.startswith("_") and part != "__future__" for part in name)
            ]
    assert found == []
