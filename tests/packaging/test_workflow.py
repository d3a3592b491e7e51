"""The workflow for public CI runs what .ci/run runs, on everything that is supported."""

import re
import subprocess
import sys

import pytest
import yaml


@pytest.fixture(scope="module")
def jobs(root):
    return yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def test_it_follows_the_schema(root):
    """The workflow is valid by the published schema."""
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
    ]
    path = root / ".github" / "workflows" / "ci.yml"
    done = subprocess.run([*command, str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_it_covers_each_supported_python(jobs, pyproject):
    """All checks run on exactly the Python versions that the classifiers name."""
    text = "\n".join(pyproject["project"]["classifiers"])
    named = re.findall(r"Python :: (3\.\d+)$", text, re.MULTILINE)
    assert jobs["checks"]["strategy"]["matrix"]["python"] == named
    assert jobs["checks"]["steps"][-1]["run"] == "bash .ci/run"


def test_it_covers_each_supported_celery(jobs, root):
    """Fast tests run on each Celery that `make test-all` knows."""
    known = re.search(
        r"celery-5.{minor}\" for minor in range\((\d+), (\d+)\)",
        (root / "tools" / "test_all.py").read_text(),
    )
    minors = range(*map(int, known.groups()))
    assert jobs["celery"]["strategy"]["matrix"]["celery"] == [f"5.{minor}" for minor in minors]
    assert jobs["celery"]["steps"][-1]["run"] == 'make test-all ARGS="celery-${{ matrix.celery }}"'
