"""Formats are stable: this version writes the same bytes as earlier ones and reads theirs.

``written.json`` changes only with a deliberate change of a format, in a commit that says so. Class
hashes depend on the minor version of Python; the file has those of 3.11. What Celery adds to
messages and result rows depends on its version; the file has that of 5.7.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import celery
import pytest

from tests.support.servers import redis_server

HERE = Path(__file__).parent
WRITTEN = json.loads((HERE / "written.json").read_text())
OF_CODE = ("classes", "redis after classes")
OF_CELERY = ("messages", "short", "results")
SAME_PYTHON = sys.version_info[:2] == (3, 11)

pytestmark = pytest.mark.server


def produce(*words: str) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.golden.produce", *words]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def redis():
    """A server of their own, as they empty it and read all of its keys."""
    with redis_server("redis-server") as server:
        yield server


@pytest.fixture(scope="module")
def written(redis, s3):
    return produce("write", redis.url, s3.url("golden"))


@pytest.fixture(scope="module")
def read(redis, written):
    return produce("read", redis.url)


@pytest.mark.parametrize("part", WRITTEN)
def test_written_bytes_are_stable(written, part):
    """References, messages, result rows, stored blobs, keys, and holds keep their bytes."""
    if part in OF_CODE and not SAME_PYTHON:
        pytest.skip("class hashes are pinned for Python 3.11")
    if part in OF_CELERY and celery.VERSION < (5, 7):
        pytest.skip("messages and result rows are pinned for Celery 5.7")
    assert written[part] == WRITTEN[part]


def test_nothing_else_is_written(written):
    """Every written part is pinned."""
    assert written.keys() == WRITTEN.keys()


@pytest.mark.parametrize("part", ("refs", "messages", "short", "results", "classes"))
def test_earlier_data_is_read(read, part):
    """References, messages, results, and classes of an earlier version give their values."""
    if part in OF_CODE and not SAME_PYTHON:
        pytest.skip("bytecode is loaded by the version of Python that made it")
    assert read[part] == dict.fromkeys(WRITTEN[part], True)
