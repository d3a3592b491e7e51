"""With everything offloaded, an app behaves as on plain Celery.

The same scenarios run on plain Celery and, with a threshold of 0 bytes, with offload; outcomes are
compared by value, type, and order. The expectation is plain Celery itself.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import celery
import pytest

from tests.integration.values import CANARY
from tests.support.file_results import file_results
from tests.support.processes import Process, environment, worker
from tests.support.servers import redis_client

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Row:
    """A combination to test.

    *lacking* are the needs of scenarios that it can't meet; *only* and *without* name scenarios
    that plain Celery can run there, or can't.
    """

    serializer: str = "json"
    pool: str = "prefork"
    backend: str = "redis"
    lacking: frozenset[str] = frozenset()
    conf: dict[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join((self.serializer, self.pool, self.backend, *self.conf))


NO_LIMITS = frozenset({"time limit"})  # only prefork kills tasks
NOT_EXTENDED = frozenset({"extended"})
# Before Celery 5.7, an error callback gets the arguments of the new style if its function has
# more parameters than the task's id, though its signature already has values for these; and the
# results of a restored group never arrive while those of the group itself are alive.
BEFORE_5_7 = frozenset({"bound errbacks", "restored groups"})
OLD_CELERY = BEFORE_5_7 if celery.VERSION < (5, 7) else frozenset()


NOT_WITH_MSGPACK = (  # it can't write what Celery makes of a group's generator
    "chain_of_groups",
    "task_group_task",
    "chord_in_chain",
    "chord_embedded_with_generators",
    "linked_group",
)
WITH_YAML = (  # it can't write signatures
    "delay_positional",
    "delay_keyword",
    "values_of_many_types",
    "keys_that_look_special",
    "results_of_every_kind",
    "by_name",
    "shared_task",
    "class_based",
    "request_arguments",
    "countdown",
    "group_of_several",
    "group_saved_and_restored",
    "retried",
    "retried_with_changed_arguments",
    "replaced_by_task",
    "hooks_see_values",
    "result_made_anywhere",
)
SLOW = (  # results and chords are polled
    "delay_keyword",
    "chain_of_three",
    "group_with_shared_argument",
    "group_then_task",
    "chord_in_chain",
    "nested_chord",
    "chord_with_failing_part",
    "replaced_by_group",
    "retried_in_chord",
    "changed_in_place",
    "hooks_see_values",
    "result_made_anywhere",
    "metadata_of_a_result",
    "states_and_metadata",
    "forgotten",
    "link_error_new",
    "large_failure_in_chord",
    "large_failure_in_chain",
)
WITH_RPC = (  # only the sender of a task gets its result
    "delay_keyword",
    "results_of_every_kind",
    "chain_of_three",
    "linked_several",
    "link_error_new",
    "retried",
    "changed_in_place",
    "failure_with_value",
    "large_failures",
    "large_failure_and_errbacks",
)
EXTENDED = (
    "delay_keyword",
    "by_name",
    "chain_of_three",
    "chord_in_chain",
    "retried",
    "extended_result",
    "metadata_of_a_result",
    "hooks_see_values_of_failures",
    "acks_late",
)

ROWS = (
    Row("json", "prefork", "redis", NOT_EXTENDED),
    Row("pickle", "threads", "redis", NO_LIMITS | NOT_EXTENDED),
    Row("msgpack", "gevent", "redis", NO_LIMITS | NOT_EXTENDED, without=NOT_WITH_MSGPACK),
    Row("yaml", "solo", "redis", NO_LIMITS | NOT_EXTENDED, only=WITH_YAML),
    Row("json", "solo", "filesystem", NO_LIMITS | {"native", "extended"}, only=SLOW),
    Row("json", "prefork", "rpc", only=WITH_RPC),
    Row(
        "json",
        "threads",
        "redis",
        NO_LIMITS,
        {
            "result_extended": True,
            "task_acks_late": True,
            "worker_deduplicate_successful_tasks": True,
        },
        only=EXTENDED,
    ),
)


@pytest.fixture(scope="module")
def plain_outcomes(broker_server, store_server, tmp_path_factory):
    """Return the outcomes on plain Celery, determined once per relevant combination."""
    known: dict[str, dict[str, Any]] = {}

    def outcomes(row: Row) -> dict[str, Any]:
        key = f"{row.serializer}-{row.backend}-{sorted(row.lacking)}-{sorted(row.conf)}"
        if key not in known:
            folder = tmp_path_factory.mktemp("plain")
            known[key] = run(row, {}, broker_server, store_server, folder)
        return known[key]

    return outcomes


def run(row: Row, offload: dict[str, Any], broker, store, folder: Path) -> dict[str, Any]:
    """Run all scenarios of *row* against a worker of its own and return their outcomes."""
    with redis_client(broker) as client, redis_client(store) as other:
        client.flushall()
        other.flushall()
    config = configuration(row, offload, broker, folder)
    output = folder / "outcomes"
    # The app imports offload in any case, so that a fork of plain Celery is as plain as it gets.
    with worker(folder, config, pool=row.pool, fork=True):
        command = [sys.executable, "-m", "tests.integration.scenarios", str(output)]
        scenarios = Process(command, folder / "scenarios.log", environment(config), fork=True)
        try:
            scenarios.finish(200)
        finally:
            scenarios.stop()
            print(scenarios.log()[-10000:])
    return pickle.loads(output.read_bytes())


def configuration(row: Row, offload: dict[str, Any], broker, folder: Path) -> dict[str, Any]:
    (folder / "results").mkdir()
    base = f"redis://{broker.host}:{broker.port}"
    backends = {
        "redis": f"{base}/1",
        "rpc": "rpc://",
        "filesystem": file_results(folder / "results"),
    }
    return {
        "broker": f"{base}/0",
        "backend": backends[row.backend],
        "notes": f"{base}/2",
        "serializer": row.serializer,
        "offload": offload,
        "conf": row.conf,
        "lacking": sorted(row.lacking | OLD_CELERY),
        "only": row.only,
        "without": row.without,
    }


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_outcome_is_as_on_plain_celery(
    row, plain_outcomes, broker_server, store_server, tmp_path
):
    """Every scenario has the same outcome with everything offloaded, and no message or stored
    result contains a value.
    """
    expected = plain_outcomes(row)
    offload = {"store": store_server.url, "threshold": 0}
    outcomes = run(row, offload, broker_server, store_server, tmp_path)
    different = {
        name: f"\n  plain   {expected[name]!r:.1500}\n  offload {outcome!r:.1500}"
        for name, outcome in outcomes.items()
        if outcome != expected[name]
    }
    assert not different, "".join(f"\n{name}:{text}" for name, text in different.items())
    assert outcomes.keys() == expected.keys()
    raised = {name: o for name, o in expected.items() if o[0] == "scenario raised"}
    assert not raised, "a scenario fails on plain Celery already"
    with redis_client(broker_server, db=2) as notes:
        assert notes.smembers("in_full") == set()
    stored_in_full = results_with_values(row, broker_server, tmp_path)
    assert stored_in_full == []
    assert [
        text for text in results_of(row, broker_server, tmp_path).values() if len(text) > 4000
    ] == []
    with redis_client(store_server) as client:
        assert client.dbsize() > 20


def results_of(row: Row, broker, folder: Path) -> dict[str, bytes]:
    """Return what the result backend has, by key."""
    if row.backend == "redis":
        with redis_client(broker, db=1) as client:
            return {
                key.decode(): client.get(key)
                for key in client.scan_iter(count=1000)
                if client.type(key) == b"string"
            }
    return {path.name: path.read_bytes() for path in (folder / "results").iterdir()}


def results_with_values(row: Row, broker, folder: Path) -> list[str]:
    found = results_of(row, broker, folder)
    return [
        f"{key}: {text[:300]!r}"
        for key, text in found.items()
        if CANARY.encode() in text and b"SUCCESS" in text and "by-hand" not in key
    ]
