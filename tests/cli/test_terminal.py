"""Output of commands on a terminal and without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from offload.cli.output import Column, Progress, print_pages, print_rows
from tests.support.processes import ROOT
from tests.support.terminal import Terminal, environment

HOSTILE = "shop.[red]report[/] \x1b[31m\u202e:smile:"
ROWS = [["sum", "1,200", "12 kB"], [HOSTILE, "7", "3.1 MB"]]
HOSTILE_WRITTEN = r"shop.[red]report[/] \x1b[31m\u202e:smile:"
PRINT_ROWS = f"""
from offload.cli.output import Column, print_rows
print_rows({ROWS!r}, [Column("TASK", breaks=True), Column("VALUES", number=True), Column("BYTES")])
"""
PLAIN = [
    "TASK                                       VALUES  BYTES",
    "sum                                        1,200   12 kB",
    f"{HOSTILE_WRITTEN}  7       3.1 MB",
]
PRINT_LEVELS = """
from offload.cli.output import print_labelled
print_labelled([("error", "the store is away " * 6), ("", "-> start [bold]it")], 9, levels=True)
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def shown(tmp_path):
    """Run code on a terminal; return the lines on its screen and the raw output."""

    def run(code, columns=100, lines=40, **env):
        env = environment(ENVIRONMENT, **env)
        with Terminal(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, columns=columns, lines=lines
        ) as terminal:
            lines = terminal.wait().rstrip().splitlines()
            return lines, terminal.raw

    return run


def test_columns_are_aligned(shown):
    """Numbers are right-aligned, and texts left-aligned."""
    head, *rows = shown(PRINT_ROWS)[0]
    assert [row.split()[-3:] for row in rows] == [
        ["1,200", "12", "kB"],
        ["7", "3.1", "MB"],
    ]
    end = head.index("VALUES") + len("VALUES")
    assert rows[0][:end].endswith(" 1,200")
    assert rows[1][:end].endswith("  7")
    assert rows[0].index("12 kB") == rows[1].index("3.1 MB") == head.index("BYTES")


def test_names_are_printed_as_text(shown):
    """Markup, emoji codes, and control characters in a task's name are printed as text."""
    lines, raw = shown(PRINT_ROWS)
    assert HOSTILE_WRITTEN in lines[2]
    assert b"\x1b[31m" not in raw


def test_a_narrow_terminal_wraps_names_only(shown):
    """On a narrow terminal, names wrap, and numbers stay whole."""
    lines, _ = shown(PRINT_ROWS, columns=40)
    assert all(len(line) <= 40 for line in lines)
    assert sum(line.split()[-1:] in (["kB"], ["MB"]) for line in lines) == 2
    name = "".join(line[: lines[0].index("VALUES")].strip() for line in lines[2:])
    assert name == HOSTILE_WRITTEN.replace(" ", "")


def test_a_terminal_too_narrow_for_columns_has_plain_ones(shown):
    """On a terminal too narrow for columns, all text of the plain table is printed."""
    lines, _ = shown(PRINT_ROWS, columns=25)
    assert "".join(f"{line:<25}" for line in lines).split() == " ".join(PLAIN).split()


def test_texts_wrap_next_to_their_labels(shown):
    """Texts wrap next to their labels, and levels have colors."""
    lines, raw = shown(PRINT_LEVELS, columns=60)
    assert [line[:9].strip() for line in lines] == ["error", *[""] * (len(lines) - 1)]
    assert len(lines) > 2
    assert lines[-1] == "         -> start [bold]it"
    assert b"\x1b[1;31merror" in raw


def test_no_color_on_request(shown):
    """With `NO_COLOR` set, a terminal receives no color codes."""
    _, raw = shown(PRINT_LEVELS, NO_COLOR="1")
    assert b"31m" not in raw


@pytest.mark.parametrize("how", ("dumb", "without rich"))
def test_a_dumb_terminal_has_plain_columns(shown, how):
    """A dumb terminal, or one without rich, gets plain columns."""
    code = f"import sys; sys.modules['rich'] = None\n{PRINT_ROWS}"
    lines, raw = shown(PRINT_ROWS, TERM="dumb") if how == "dumb" else shown(code)
    assert lines == PLAIN
    assert raw.replace(b"\x1b]0;end\x07", b"").count(b"\x1b") == 0


@pytest.mark.parametrize("env", ({}, {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}))
def test_plain_columns_when_piped(env):
    """Piped output is the same byte for byte, whatever the environment says about rich."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_ROWS],
        env=environment(ENVIRONMENT, **env),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == "\n".join(PLAIN) + "\n"


def test_pages_are_printed_as_they_arrive(capsys):
    """Pages are printed as they arrive, with the same columns."""

    def rows():
        for number in range(1001):
            if number in (500, 1000):
                printed.append(capsys.readouterr().out.splitlines())
            yield [f"b{number}", "a chunk"]

    printed = []
    print_pages(rows(), [Column("DIGEST", 8), Column("KIND")])
    printed.append(capsys.readouterr().out.splitlines())
    assert printed[0][:2] == ["DIGEST    KIND", "b0        a chunk"]
    assert list(map(len, printed)) == [501, 500, 1]
    assert printed[2] == ["b1000     a chunk"]


@pytest.mark.parametrize("page", (3, 60))
def test_pages_on_a_terminal_have_one_heading(shown, page):
    """On a terminal, pages have one heading and the same layout, also with many rows, which bypass
    rich.
    """
    code = f"""
from offload.cli.output import Column, print_pages
columns = [Column("DIGEST", 12), Column("SIZE", 9, number=True), Column("KIND")]
print_pages(([f"b{{n}}", f"{{n}} B", "chunk"] for n in range(70)), columns, {page})
"""
    lines, raw = shown(code, lines=80)
    assert lines[0] == "DIGEST             SIZE  KIND"
    assert lines[1:] == [f"{f'b{n}':<12}  {f'{n} B':>9}  chunk" for n in range(70)]
    assert b"\x1b[1mDIGEST" in raw


def test_empty_rows_and_names(capsys):
    """Rows without headings and tables without rows are printed, too."""
    print_rows([("tags", "a, b"), ("python", "\n3.11")])
    print_rows([])
    print_rows([], [Column("NAME"), Column("SIZE")])
    assert capsys.readouterr().out == "tags    a, b\npython  \\n3.11\nNAME  SIZE\n"


def test_progress_is_shown_on_a_terminal(shown):
    """Progress is one line within the terminal's width, and is erased at the end."""
    code = """
from offload.cli import output
output._REDRAW = 0
with output.Progress("sweeping s3://a\\x1b[31m" + "b" * 80) as done:
    for _ in done.over(range(3), lambda n: 1000): pass
print("done")
"""
    lines, raw = shown(code, columns=60)
    assert lines == ["done"]
    assert rb"sweeping s3://a\x1b[31mbbb" in raw
    assert b"b\x1b[31m" not in raw
    assert b"b: 3 found, 3.0 kB" in raw
    assert max(map(len, re.findall(rb"\x1b\[K([^\r]+)", raw))) < 60


def test_no_progress_without_a_terminal(capsys):
    """Where stderr isn't a terminal, progress prints nothing."""
    with Progress("sweeping") as progress:
        progress.step(1)
    assert capsys.readouterr().err == ""
