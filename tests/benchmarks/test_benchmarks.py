"""Each benchmark runs, at a small size, and writes its figures."""

import json
import os
import sys
from importlib.util import find_spec

import pytest

from tests.support import forkserver
from tests.support.servers import find_program

FIELDS = {"question", "what", "unit", "figures", "ratio", "target", "met"}
EXPECTED = {  # some of each question's figures
    1: ("publish, CPU of a call", "function calls", "store commands", "end to end"),
    2: ("publish, first", "latency, again", "publisher's extra peak", "worker main process grows"),
    3: ("tasks with one array", "tasks with one str"),
    4: ("array of 0.1 MB again", "again, another object", "round trips", "its Ref passed"),
    5: ("chain of 3", "chord of 3", "bytes in and out of the broker", "blobs written", "peak"),
    6: ("1 kB, 1 distinct", "100 kB, 4 distinct"),
    7: ("read, by the cache's state", "they grow by", "others that see it", "again: latency"),
    8: ("SeaweedFS: 0.1 MB up", "that forgets: 0.1 MB down", "client's CPU", "beyond the value"),
    9: ("stored already: publishing", "the first hold of a blob", "sweep of Redis"),
    10: ("all bytes over the network", "values to S3, and from it"),
    11: ("hash of a class of 50", "message with", "its reading", "first pull", "round trips"),
    12: ("publishing a list", "resolving a list", "exchanges", "ever kept", "a scrape"),
    13: ("the look at all", "overview", "blobs by size", "one blob", "by who holds"),
    14: (
        "chord of 3 parts, 1 MB each",
        "group of 2",
        "chain of 2",
        "arguments",
        "references",
        "peak",
    ),
    15: (
        "put, 10,000 bytes",
        "hold and release",
        "get, 10,000 bytes, no fsync",
        "by 4 processes",
    ),
    17: ("new argument of 100 kB, one at a time", "repeated", "result", "2 at once: peak"),
    19: ("2 at once", "publish and read: lag at most", "lag, 99%", "threads"),
    18: ("publish, new", "end to end, again", "read from the store", "peak", "worker main"),
    16: ("latency of a hit", "chunks fetched", "all different", "their CPU", "round trips"),
}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.server,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]


@pytest.fixture(scope="module", autouse=True)
def imports():
    """Import once what the questions and their workers need."""
    names = ("proxystore.connectors.redis", "proxystore.store") * bool(find_spec("proxystore"))
    with forkserver.preloaded("numpy", *names):
        yield


def benchmark(*arguments):
    env = {**os.environ, "COLUMNS": "200"}
    return forkserver.run(arguments, module="benchmarks", env=env, timeout=170, share=True)


@pytest.fixture
def needed():
    find_program()
    pytest.importorskip("proxystore")
    pytest.importorskip("pandas")


@pytest.mark.parametrize("question", sorted(EXPECTED))
def test_a_question_runs_and_writes_its_figures(question, needed, tmp_path):
    """Each question runs at tiny scale, writes valid rows for all its parts, and judges none."""
    done = benchmark(str(question), "--scale", "tiny", "--output", str(tmp_path))

    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert {"scale", "python", "celery", "redis-py", "offload", "machine"} <= found.keys()
    assert found["rows"]
    for row in found["rows"]:
        assert row.keys() == FIELDS
        assert row["question"] == question
        assert all(figure >= 0 for figure in row["figures"].values()), row
        assert row["met"] is None, "nothing is judged at this size"
        if "store commands" in row["what"]:
            assert row["figures"] == {"offload": 0}  # small tasks make no store call
    names = [row["what"] for row in found["rows"]]
    for part in EXPECTED[question]:
        assert any(part in name for name in names), (part, names)
    assert f"**{question}. " in (tmp_path / "results.md").read_text()
    assert names[0] in done.stdout


def test_an_unknown_question_is_refused_with_the_list():
    """An unknown question ends with exit code 2 and the list of questions."""
    done = benchmark("speed")

    assert done.returncode == 2
    assert "small_tasks, large_arguments" in done.stderr
