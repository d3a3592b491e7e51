"""``celery offload top``, on a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from offload.stores import open_store
from offload.stores.tallies import LABEL, Tally
from tests.support.processes import wait_until
from tests.support.servers import redis_server
from tests.support.terminal import Terminal, environment

pytestmark = [pytest.mark.integration, pytest.mark.server]

HOSTILE = "shop.[red]report[/] \x1b[31m"
WRITTEN = r"shop.[red]report[/] \x1b[31m"


def count(url, number, **amounts):
    """Count for tasks: ``sum`` has the most bytes, a hostile one the most values."""
    named = {
        "sum": {"values_seen": 10, "values_offloaded": 10, "bytes_offloaded": 9_000_000},
        HOSTILE: {"values_seen": 70, "values_offloaded": 60, "bytes_offloaded": 8_000_000},
    }
    counts = {
        LABEL.join((name, task, "")): amount
        for task, given in named.items()
        for name, amount in {**given, **amounts}.items()
    }
    open_store(url).tallies.add(Tally("a-test", number, counts, counts))


@pytest.fixture
def store(redis):
    url = f"{redis.url}?prefix=top-{os.getpid()}-{os.urandom(3).hex()}"
    count(url, 1, upload_seconds_2=7, upload_microseconds=70_000)
    return url


@pytest.fixture
def top(project):
    """Run ``top`` for an app with a store at *url*, on a terminal."""
    opened = []

    def run(url, *words, columns=120, lines=30, more="", **env):
        project.write(more, store=url, stats_interval=1)
        terminal = Terminal(
            [sys.executable, "-m", "celery", "-A", "proj", "offload", "top", *words],
            cwd=project.folder,
            env=environment(project.environment, **env),
            columns=columns,
            lines=lines,
        )
        opened.append(terminal)
        return terminal.__enter__()

    yield run
    for terminal in opened:
        terminal.__exit__()


def rows(text):
    """The lines of tasks, by name."""
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("TASK"))
    return {line.split("  ")[0]: line for line in lines[at + 1 :] if "  " in line.strip()[:60]}


def in_order(text):
    return [name for name in rows(text) if name in ("sum", WRITTEN)]


def set_back(terminal):
    return terminal.modes == terminal.attributes and terminal.raw.endswith(
        b"\x1b[?25h\x1b[?1049l\x1b]0;end\x07"  # the cursor, and the screen that was there before
    )


def test_what_is_counted_is_shown_until_q(top, store):
    """In all, by step, by task; columns are aligned, and the terminal is left as it was."""
    terminal = top(store)
    text = terminal.wait_for(r"TASK[\s\S]*q ends")
    assert store in text
    assert re.search(r"^in all +80 +70 +17.0 MB", text, re.MULTILINE)
    assert re.search(r"^upload +14 +10.0 ms +16 ms +16 ms", text, re.MULTILINE)
    assert re.search(r"^by reference .*█.* up to 70 a minute", text, re.MULTILINE)
    head = next(line for line in text.splitlines() if line.startswith("TASK"))
    end = head.index("BYTES") + len("BYTES")
    assert rows(text)["sum"][:end].endswith(" 9.0 MB")
    assert rows(text)[WRITTEN][:end].endswith(" 8.0 MB")
    assert b"\x1b[31m" not in terminal.raw
    terminal.press(b"q")
    terminal.ended()
    assert set_back(terminal)


def test_what_comes_is_shown(top, store):
    """Without anybody's doing, and how much of a task it is in a second."""
    terminal = top(store, "--interval", "0.2")
    terminal.wait_for(r"TASK[\s\S]*q ends")
    count(store, 2)
    terminal.wait_for(r"in all +160")
    terminal.wait_for(r"sum .* [\d.]+ [kM]?B/s")
    terminal.press(b"q")
    terminal.ended()


def test_s_sorts_by_something_else(top, store):
    terminal = top(store)
    assert in_order(terminal.wait_for(r"TASK[\s\S]*q ends")) == ["sum", WRITTEN]
    terminal.press(b"ss")
    assert in_order(terminal.wait_for("now by values")) == [WRITTEN, "sum"]


def test_it_follows_the_size_of_the_terminal(top, store):
    """Of columns those go first that say least."""
    terminal = top(store)
    assert "UPLOADED" in terminal.wait_for(r"TASK[\s\S]*q ends")
    terminal.resize(60, 15)
    text = terminal.wait_for(r"\Aredis[\s\S]*ERRORS[\s\S]*q ends")
    assert "BYTES" in text
    assert "UPLOADED" not in text
    assert "STEP" not in text


@pytest.mark.parametrize("how", ("ctrl-c", "SIGTERM", "failure"))
def test_however_it_ends_the_terminal_is_set_back(top, store, how):
    """Also if what is shown cannot be."""
    if how == "failure":
        broken = "import offload.cli.top.view as v\nv._foot = lambda *a: 1 / 0\n"
        terminal = top(store, more=broken)
        terminal.ended(1)
    else:
        terminal = top(store)
        terminal.wait_for(r"TASK[\s\S]*q ends")
        if how == "ctrl-c":
            terminal.press(b"\x03")
            terminal.ended()
        else:
            terminal.process.send_signal(signal.SIGTERM)
            terminal.ended(128 + signal.SIGTERM)
    assert terminal.modes == terminal.attributes
    assert b"\x1b[?1049l" in terminal.raw


def test_errors_are_told_by_the_minute(top, store):
    count(store, 2, errors_missing=3)
    text = top(store).wait_for(r"TASK[\s\S]*q ends")
    assert re.search(r"^errors \d\d:\d\d +6 missing", text, re.MULTILINE)


def test_a_store_that_is_away_is_told_and_comes_back(top, tmp_path):
    """What was read last stays; keys are heard meanwhile."""
    with redis_server() as server:
        count(server.url, 1)
        terminal = top(server.url, "--interval", "0.2")
        terminal.wait_for(r"TASK[\s\S]*q ends")
        server.stop()
        text = terminal.wait_for("nothing is read for .* does not answer")
        assert "17.0 MB" in text
        terminal.press(b"s")
        terminal.wait_for("now by now")
        server.start()
        wait_until(lambda: "nothing is read" not in terminal.text, "it is back")
        count(server.url, 2)
        terminal.wait_for("in all +80 ")
        terminal.press(b"q")
        terminal.ended()


def test_a_store_that_is_away_at_first_is_waited_for(top):
    """As one that hangs: q is heard all the same."""
    terminal = top("redis://localhost:1/0")
    terminal.wait_for("nothing was read yet")
    terminal.press(b"q")
    terminal.ended()


def test_thousands_of_tasks_take_no_more_room(top, store):
    """What does not fit is not shown, and how many there are is."""
    many = {LABEL.join(("values_seen", f"task {n}", "")): 1 for n in range(2000)}
    open_store(store).tallies.add(Tally("many", 1, many, many))
    terminal = top(store, lines=24)
    text = terminal.wait_for("2,002 tasks")
    assert text.startswith("redis://")
    assert "q ends" in text


def run(project, *words, code, env=None):
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "proj", "offload", "top", *words],
        cwd=project.folder,
        env=environment(project.environment, **(env or {})),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_once_prints_all_where_there_is_no_terminal(project, store):
    """Nothing but text, and nothing is left out."""
    project.write(store=store)
    out, _ = run(project, "--once", "--since", "1h", code=0, env={"COLUMNS": "120"})
    assert "\x1b" not in out
    assert in_order(out) == ["sum", WRITTEN]
    assert re.search(r"^since [-\d]+ [:\d]+ +80", out, re.MULTILINE)


def test_without_a_terminal_it_says_what_to_do(project, store):
    project.write(store=store)
    _, err = run(project, code=1)
    assert "--once" in err
    assert "stats --watch" in err


def test_without_rich_it_says_what_to_install(project, store):
    project.write("import sys; sys.modules['rich'] = None\n", store=store)
    assert 'pip install "offload[cli]"' in run(project, "--once", code=1)[1]


def test_where_nothing_was_counted_there_is_nothing(project, tmp_path):
    project.write(store=f"file://{tmp_path}/store")
    out, _ = run(project, "--once", code=0)
    assert re.search(r"^in all +0 +0 B +- +- +0$", out, re.MULTILINE)
