"""Classes of one minor version of Python on another, with real interpreters, stores, and workers.

tests/integration/pythons.py provides the environments. tests/classes/test_rebuild.py tests the same
in one process, for machines with one Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid

import pytest

from tests.classes.shapes import FROM_SOURCE
from tests.integration.pythons import OTHERS, OWN, python
from tests.support.processes import ROOT, environment, worker

pytestmark = pytest.mark.integration

TAGS = {version: f"cpython-{version.replace('.', '')}" for version in (*OTHERS, OWN)}
BOTH_WAYS = [(OWN, other) for other in OTHERS] + [(other, OWN) for other in OTHERS]


def side(version, *arguments):
    """Run one side on a Python; return its output."""
    done = subprocess.run(
        [python(version), "-m", "tests.integration.python_sides", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    message = json.loads(done.stdout)
    assert message["python"] == TAGS[version]
    return message["done"]


@pytest.fixture
def url(tmp_path):
    (tmp_path / "modules").mkdir()
    return f"file://{tmp_path}/store"


@pytest.mark.parametrize(("pushing", "loading"), BOTH_WAYS)
def test_all_shapes_behave_the_same_on_another_python(url, tmp_path, pushing, loading):
    """Shapes pushed by one Python behave the same on another, under the same version."""
    pushed = side(pushing, "push", url, str(tmp_path / "modules"))
    assert set(pushed) == set(FROM_SOURCE)
    pulled = side(loading, "pull", url, json.dumps(pushed))
    for name, shape in FROM_SOURCE.items():
        assert pulled[name] == {
            "value": shape.value,
            "is one": True,
            "pair": pushed[name],
            "status": "synced",
            "name": pushed[name][0],
            "recovered": shape.value,
            "imported": False,
        }, pulled[name].get("text", name)


@pytest.mark.parametrize(("pushing", "loading"), BOTH_WAYS[:1])
def test_without_permission_the_error_names_both_versions(url, tmp_path, pushing, loading):
    """A worker that accepts no source names the Python of the bytecode and what to do."""
    pushed = side(pushing, "push", url, str(tmp_path / "modules"))
    refused = side(loading, "refused", url, json.dumps(pushed))
    assert set(refused) == set(FROM_SOURCE)
    for message in refused.values():
        assert message.startswith("WrongPython: shape_")
        assert TAGS[pushing] in message
        assert TAGS[loading] in message
        assert "set offload_ship_source" in message


NEWER = """
type Pair[T] = tuple[T, T]

class F[T]:
    def run(self, x: T) -> Pair[T]:
        return (x, x)
"""


def test_syntax_that_an_older_python_does_not_know(url, tmp_path):
    """A class written for a newer Python fails on an older one with an error that says so."""
    newer, older = python("3.12"), python("3.10")
    (tmp_path / "modules" / "newer.py").write_text(NEWER)
    common = (
        "from offload import ClassRegistry, errors\n"
        f"registry = ClassRegistry({url!r}, mode='trusted', ship_source=True)\n"
    )
    push = common + "import newer\nprint(registry.push(newer.F))"
    pull = common + "try:\n    registry.pull('newer.F')\nexcept errors.WrongPython as exc:\n"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}/modules"}
    for interpreter, code in ((newer, push), (older, pull + "    print(exc)")):
        done = subprocess.run(
            [interpreter, "-c", code], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    assert "which does not know its syntax" in done.stdout
    assert "type Pair[T] = tuple[T, T]" in done.stdout
    assert "cpython-312" in done.stdout
    assert "cpython-310" in done.stdout


@pytest.mark.server
@pytest.mark.parametrize("other", OTHERS)
def test_a_worker_on_another_python(broker_server, store_server, tmp_path, other):
    """A script's objects run on a worker with another Python, under JSON, and come back."""
    config = {
        "broker": broker_server.url,
        "store": f"{store_server.url}?prefix={uuid.uuid4().hex}",
        "queue": uuid.uuid4().hex,
        "ship_source": True,
    }
    interpreter = python(other)
    with worker(
        tmp_path,
        config,
        app="tests.integration.python_app",
        python=interpreter,
        args=("-Q", config["queue"]),
    ):
        message = script(config)
    assert json.loads(message.stdout) == {
        "pythons": [TAGS[OWN], TAGS[other]],
        "answer": [111, "FOOT", [[112, "METRE", []]]],
        "back": [True, True],
        "pushed by": [TAGS[OWN]],
    }


@pytest.mark.server
def test_a_worker_that_accepts_no_source(broker_server, store_server, tmp_path):
    """The producer learns from its worker which Python versions differ, and what to do."""
    other = OTHERS[0]
    config = {
        "broker": broker_server.url,
        "store": f"{store_server.url}?prefix={uuid.uuid4().hex}",
        "queue": uuid.uuid4().hex,
        "ship_source": False,
    }
    with worker(
        tmp_path,
        config,
        app="tests.integration.python_app",
        python=python(other),
        args=("-Q", config["queue"]),
    ):
        message = script({**config, "ship_source": True}, fails=True)
    assert "WrongPython" in message.stderr
    assert f"is bytecode of {TAGS[OWN]}, this is {TAGS[other]}" in message.stderr
    assert "offload_ship_source is not set here" in message.stderr


def script(config, *, fails=False):
    done = subprocess.run(
        [python(OWN), "-m", "tests.integration.python_main", "60"],
        cwd=ROOT,
        env=environment(config),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert bool(done.returncode) is fails, done.stderr[-5000:]
    return done
