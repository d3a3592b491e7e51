"""``celery offload estimate``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from offload.cli import offload
from tests.support.processes import start_worker
from tests.support.wire import make_wire

KIB = 1024
HEAD = len(b"bytes")  # stored with the content of bytes


@pytest.fixture
def url(redis):
    return f"{redis.url}?prefix=estimate-{os.getpid()}-{os.urandom(3).hex()}"


def estimate(wire, *words, code=0):
    context = CLIContext(wire.app, True, None)
    done = CliRunner().invoke(offload, ["estimate", *words], obj=context, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def observing(url):
    """Return an app that published 500 kB four times, two of them equal, and 5 kB ten times."""
    wire = make_wire(store=url, mode="observe", threshold=64 * KIB, watch=False)
    for value in (b"a", b"a", b"b", b"c"):
        wire.app.send_task("shop.large", (value * 500_000,))
    for number in range(10):
        wire.app.send_task("shop.small", (bytes([number]) * 5000,))
    return wire


def test_each_threshold_has_a_row_and_the_best_is_marked(observing):
    """Each threshold has a row with its values, bytes, and calls; the best one is marked."""
    head, *rows, advice = estimate(observing).splitlines()[1:]
    assert head.split()[0] == "THRESHOLD"
    report = {" ".join(row.split()[:2]): row.split()[2:] for row in rows}
    assert len(report) == 13
    assert report["4.1 kB"][:5] == ["14", "2.1", "MB", "1.6", "MB"]
    assert report["65.5 kB"][:5] == ["4", "2.0", "MB", "1.5", "MB"]
    assert report["65.5 kB"][5] == "15"  # each looked up, read, and released; three of them written
    assert report["65.5 kB"][-2:] == ["current,", "best"]
    assert report["524.3 kB"][0] == "0"
    assert "The current threshold, 65.5 kB, pays best: 4 of 14 values" in advice


def test_a_row_for_each_task(observing):
    """With `--by task`, each task has a row with its best threshold, or none."""
    head, large, small, _ = estimate(observing, "--by", "task").splitlines()[1:]
    assert head.split()[0] == "TASK"
    assert large.split()[:7] == ["shop.large", "4", "2.0", "MB", "65.5", "kB", "4"]
    assert small.split()[:5] == ["shop.small", "10", "50.0", "kB", "none"]


def test_values_outside_tasks_have_a_row(observing):
    """With `--by task`, values that no task sent have a labeled row; its name is "" in JSON."""
    observing.hook.put(b"d" * 400_000)
    rows = estimate(observing, "--by", "task").splitlines()[2:5]
    assert [re.split(" {2,}", row)[0] for row in rows] == [
        "shop.large",
        "(outside tasks)",
        "shop.small",
    ]
    assert json.loads(estimate(observing, "--json"))["tasks"][""]["values"] == 1


def test_json_has_the_same_numbers(observing):
    """The JSON document has the table's numbers; over time, it has totals only."""
    found = json.loads(estimate(observing, "--json"))
    assert found["mode"] == "observe"
    assert found["counted_from"] == KIB
    best = found["total"]["best"]
    assert (best["threshold"], best["values"]) == (64 * KIB, 4)
    assert best["bytes"] == 4 * (500_000 + HEAD)
    assert best["stored_bytes"] == 3 * (500_000 + HEAD)
    assert found["tasks"]["shop.small"]["bytes"] == 10 * (5000 + HEAD)
    lately = json.loads(estimate(observing, "--json", "--since", "10m"))
    assert (lately["total"], lately["tasks"]) == (found["total"], {})


def test_mode_on_estimates_higher_thresholds(url):
    """In mode on, offloaded values are counted by size, too; smaller ones aren't observed."""
    wire = make_wire(store=url, threshold=4 * KIB, watch=False)
    for number in range(10):
        wire.app.send_task("shop.small", (bytes([number]) * 5000, b"x" * 2000))
    _, _, first, second, *_, advice, hint = estimate(wire).splitlines()
    assert first.split()[:5] == ["4.1", "kB", "10", "50.0", "kB"]
    assert second.split()[:3] == ["8.2", "kB", "0"]
    assert "No threshold pays: 10 values" in advice
    assert "below offload_threshold (4.1 kB) are not counted" in hint


def test_empty_statistics_are_reported(url):
    """A store without counted sizes is reported as such."""
    assert "No sizes have been counted yet." in estimate(make_wire(store=url, watch=False))


def test_observing_without_a_store_names_where_numbers_are(redis):
    """Without a store, the command says that numbers need `offload_store`."""
    conf = {"result_backend": f"{redis.url}"}
    wire = make_wire(store=None, mode="observe", watch=False, conf=conf)
    assert "only if offload_store is set" in estimate(wire)


def test_tasks_over_time_are_refused(observing):
    """`--by task` with `--since` is refused, because tasks are counted for all time only."""
    assert "always cover all time" in estimate(observing, "--by", "task", "--since", "1h", code=2)


def test_control_characters_in_task_names_are_escaped(url):
    """A task name with control characters reaches the terminal escaped."""
    wire = make_wire(store=url, mode="observe", watch=False)
    wire.app.send_task("evil\x1b[2J\nname", (b"x" * 500_000,))
    assert "evil\\x1b[2J\\nname" in estimate(wire, "--by", "task")


TASKS = """
@app.task(name="make")
def make(size, letter):
    return letter * size

@app.task(name="take")
def take(value):
    return len(value)
"""
PUBLISH = """
from proj import make, take
for letter in "aab":
    assert take.delay(letter * 200_000).get(timeout=60) == 200_000
for letter in "ccccc":
    assert make.delay(100_000, letter).get(timeout=60) == letter * 100_000
"""


@pytest.mark.integration
def test_publishers_and_workers_that_observe_are_added_up(project, redis, url):
    """Observed values of a real worker and a real publisher add up, and no blob is stored."""
    project.write(
        TASKS + f"app.conf.result_backend = {redis.url!r}\n",
        broker=redis.url,
        mode="observe",
        store=url,
    )
    worker = start_worker(
        "proj", "-c", "1", folder=project.folder, env=project.environment, cwd=project.folder
    )
    try:
        subprocess.run(
            [sys.executable, "-c", PUBLISH], env=project.environment, check=True, timeout=120
        )
    finally:
        worker.stop()
    found = project.json("estimate")
    head = len(b"str")
    take, make = found["tasks"]["take"], found["tasks"]["make"]
    assert (take["values"], take["bytes"]) == (3, 3 * (200_000 + head))
    assert take["best"]["stored_bytes"] == 2 * (200_000 + head)
    assert (make["values"], make["bytes"]) == (5, 5 * (100_000 + head))
    assert make["best"]["stored_bytes"] == 100_000 + head  # one child made all of them
    assert found["total"]["best"]["values"] == 8
    assert project.json("ls") == []
