"""``celery offload stats`` and ``exporter``."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request
from types import SimpleNamespace

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from offload.cli import offload
from offload.errors import StoreUnavailable
from offload.metrics.storage import sums_of
from tests.support.catalog_calls import COUNTED, use_catalog
from tests.support.memo_calls import call_memo_tasks
from tests.support.processes import Process, end_process, wait_until
from tests.support.servers import redis_client
from tests.support.wire import make_wire


@pytest.fixture
def command(redis):
    """Run ``celery offload stats`` for an app that published two arguments three times."""
    url = f"{redis.url}?prefix=stats-cli-{os.getpid()}-{os.urandom(3).hex()}"
    wire = make_wire(store=url)

    @wire.app.task(name="shop.report")
    def make_report(rows, title=""):
        return None

    for _ in range(3):
        make_report.delay(["row"] * 50_000, title="t" * 100_000)

    def run(*words, code=0):
        context = CLIContext(wire.app, True, None)
        done = CliRunner().invoke(offload, ["stats", *words], obj=context, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.output

    run.wire = wire
    return run


def test_totals_show_savings(command):
    """Totals show what was offloaded, uploaded, and deduplicated."""
    out = command()
    assert "6 inspected, 6 by reference, 4 of them deduplicated" in out
    assert "3.0x deduplication" in out
    assert "errors    none" in out
    assert re.search(r"^upload +6 times", out, re.MULTILINE)


@pytest.mark.parametrize("since", ((), ("--since", "10m"), ("--since", "2d")))
def test_a_row_for_each_task(command, since):
    """With `--by task`, each task has a row with its counts, for all time and over time."""
    head, row, *_ = command("--by", "task", *since).splitlines()[1:]
    assert head.split()[0] == "TASK"
    assert row.split()[:3] == ["shop.report", "6", "6"]


def test_values_outside_tasks_have_a_row(command):
    """With `--by task`, values that no task sent have a labeled row; its name is "" in JSON."""
    command.wire.hook.put("p" * 100_000)
    rows = [re.split(" {2,}", line)[:3] for line in command("--by", "task").splitlines()[2:]]
    assert rows == [["shop.report", "6", "6"], ["(outside tasks)", "0", "1"]]
    assert json.loads(command("--json"))["tasks"][""]["values_offloaded"] == 1


def test_a_row_for_each_argument(command):
    """With `--by argument`, each argument of a task has a row with its own count."""
    rows = [line.split() for line in command("--by", "argument").splitlines()[2:]]
    assert {(task, argument, n) for task, argument, n, *_ in rows} == {
        ("shop.report", "rows", "3"),
        ("shop.report", "title", "3"),
    }


@pytest.mark.parametrize("since", ((), ("--since", "10m")))
def test_totals_show_what_memo_saves(command, monkeypatch, since):
    """The line `memo` has the counted hits, their share of all lookups, and the time they saved."""
    assert "memo " not in command(*since)
    call_memo_tasks(command.wire, monkeypatch)
    assert re.search(
        r"^memo +4 computations saved \(50% of 8 calls\), 5\.0 s; "
        r"waits: 1; uncached: 1; fenced off: 1$",
        command(*since),
        re.MULTILINE,
    )
    total = json.loads(command("--json", *since))["total"]
    counts = {name[5:]: n for name, n in total.items() if name.startswith("memo_")}
    assert counts == {
        "hits": 4,
        "misses": 4,
        "waits": 1,
        "fenced": 1,
        "uncached": 1,
        "milliseconds_saved": 5000,
    }


@pytest.mark.parametrize("since", ((), ("--since", "2d")))
def test_rows_of_tasks_show_what_memo_saves(command, monkeypatch, since):
    """If a task has memo, each row has hits, the hit rate, and time saved."""
    assert "COMPUTED ONCE" not in command("--by", "task", *since)
    call_memo_tasks(command.wire, monkeypatch)
    head, *lines = command("--by", "task", *since).splitlines()[1:]
    assert re.split(" {2,}", head)[-3:] == ["COMPUTED ONCE", "MEMO HITS", "TIME SAVED"]
    rows = {row[0]: row[-3:] for row in (re.split(" {2,}", line) for line in lines)}
    assert rows["memo.total"] == ["2", "40%", "2.5 s"]
    assert rows["memo.report"] == ["2", "67%", "2.5 s"]
    assert rows["memo.odd"] == ["0", "-", "0.0 ms"]
    assert "COMPUTED ONCE" not in command("--by", "argument")


def test_totals_show_the_use_of_the_catalog(command):
    """The line `catalog` has the versions saved and removed, and the objects loaded."""
    assert "catalog " not in command()
    use_catalog(command.wire)
    assert re.search(
        r"^catalog +5 versions saved \(2 existed\), 4 objects loaded, 1 reference, "
        r"3 late arguments, 2 versions removed$",
        command(),
        re.MULTILINE,
    )
    total = json.loads(command("--json"))["total"]
    counts = {name[8:]: n for name, n in total.items() if name.startswith("catalog_")}
    assert counts == COUNTED


def test_a_row_for_each_object(command):
    """Each object of the catalog has a row with its uses and the last one, the most used first."""
    assert "no counts" in command("--by", "object")
    use_catalog(command.wire)
    lines = [line.split()[:5] for line in command("--by", "object").splitlines()[1:]]
    assert lines == [
        ["OBJECT", "LOADS", "HITS", "REFERENCES", "LATE"],
        ["churn:model", "2", "0", "0", "3"],
        ["a", "1", "0", "1", "0"],
        ["b", "1", "0", "0", "0"],
    ]
    found = json.loads(command("--by", "object", "--json"))["objects"]
    assert [each["name"] for each in found] == ["churn:model", "a", "b"]
    assert found[0]["late"] == 3
    assert found[0]["last_used"]


def test_a_row_for_each_store(tmp_path, redis):
    """Each store has a row with its blobs, and its URL without credentials."""
    name = f"stats-tiers-{os.getpid()}-{os.urandom(3).hex()}"
    address = redis.url.partition("://")[2]
    first = f"redis://user:hush@{address}?prefix={name}"
    with redis_client(redis) as client:
        client.acl_setuser(
            "user", enabled=True, passwords=["+hush"], keys=["*"], categories=["+@all"]
        )
    wire = make_wire(store=[first, f"file://{tmp_path}"], tier_sizes=[50_000])
    wire.hook.put("x" * 5000)
    wire.hook.put(os.urandom(200_000))
    context = CLIContext(wire.app, True, None)
    done = CliRunner().invoke(offload, ["stats", "--by", "store"], obj=context)
    assert done.exit_code == 0, done.output
    assert "hush" not in done.output
    head, *rows = [line.split() for line in done.output.splitlines()[1:]]
    assert head[0] == "STORE"
    assert [(url, n) for url, n, *_ in rows] == [
        (f"redis://{address}?prefix={name}", "1"),
        (f"file://{tmp_path}", "1"),
    ]


def test_a_single_store_has_all(command):
    """The row of a single store has the totals."""
    _, row = command("--by", "store").splitlines()[1:]
    assert row.split()[:2][1] == "2"
    found = json.loads(command("--json"))
    assert [each["blobs_uploaded"] for each in found["stores"].values()] == [2]


def test_json_has_the_same_numbers(command):
    """The JSON document has the table's numbers, in total, by task, and by argument."""
    found = json.loads(command("--json"))
    assert found["total"]["values_offloaded"] == 6
    assert found["total"]["deduplication"] == pytest.approx(3, abs=0.01)
    assert found["tasks"]["shop.report"]["values_offloaded"] == 6
    assert {each["argument"]: each["values_seen"] for each in found["arguments"]} == {
        "rows": 3,
        "title": 3,
    }


def test_counters_can_be_reset(command):
    """After a reset all counters are zero."""
    assert "reset to zero" in command("--reset")
    assert "0 inspected" in command()


@pytest.mark.parametrize(
    ("words", "message"),
    (
        (("--since", "soon"), "expected a duration such as 30m, 6h, or 7d"),
        (("--since", "0h"), "expected a duration such as 30m, 6h, or 7d"),
        (("--since", "1h", "--by", "argument"), "always cover all time"),
    ),
)
def test_wrong_options_are_refused(command, words, message):
    """A malformed duration, or arguments over time, end with exit code 2 and the reason."""
    assert message in command(*words, code=2)


def test_watching_continues_while_the_store_is_unavailable(monkeypatch):
    """The last figures stay while the store is unavailable; Ctrl-C exits without an error."""
    wire = make_wire()
    answers = iter([{}, StoreUnavailable("memory:// is unavailable"), {}, KeyboardInterrupt()])

    def total():
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(sums_of(wire.hook.store), "total", total)
    monkeypatch.setattr("offload.cli.stats.time.sleep", lambda seconds: None)
    context = CLIContext(wire.app, True, None)
    done = CliRunner().invoke(offload, ["stats", "--watch", "2"], obj=context)
    assert done.exit_code == 0, done.output
    assert done.output.count("values ") == 2
    assert "memory:// is unavailable; retrying in 2 s" in done.output


def test_an_hour_that_is_not_kept_is_refused(command):
    """A range longer than statistics are kept is refused."""
    assert "90 days" in command("--since", "99d", code=1)


def test_a_store_without_statistics():
    """A third-party store without statistics is reported."""
    wire = make_wire()
    wire.hook._runtime._store = SimpleNamespace(url="theirs://")
    context = CLIContext(wire.app, True, None)
    done = CliRunner().invoke(offload, ["stats"], obj=context)
    assert done.exit_code == 1
    assert "can't keep statistics" in done.output


@pytest.mark.integration
def test_the_exporter_serves_until_it_is_interrupted(project, redis, tmp_path):
    """The exporter serves the counters of all processes on localhost."""
    url = f"{redis.url}?prefix=exporter-{os.getpid()}"
    project.write(store=url)
    process = Process(
        [sys.executable, "-m", "celery", "-A", "proj", "offload", "exporter", "--port", "0"],
        tmp_path / "exporter.log",
        project.environment,
        project.folder,
        fork=True,
    )
    try:
        [address] = process.wait_for(
            lambda: re.findall(r"http://127\.0\.0\.1:[0-9]+/metrics", process.log()),
            "the exporter has started",
            60,
        )

        def answered():
            with urllib.request.urlopen(address) as answer:
                return b"offload_up 1.0" in answer.read()

        wait_until(answered, "the exporter answers")
    finally:
        end_process(process.popen, signal.SIGINT)
