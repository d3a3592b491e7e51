"""What the terminal shows of a state: nothing in it is markup."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from offload.catalog.times import lasts
from offload.cli.output import printable
from offload.cli.top.columns import COLUMNS, NOW, SORTS, Column
from offload.cli.top.reading import LINE, Reading, State
from offload.counters import STEPS
from offload.stats import Figures
from offload.stats.recent import Recent
from offload.stats.told import bound
from offload.text import human_size

__all__ = ("view",)

_MINUTE = 60
_NAME = 16  # characters that a task's name has at least
_MUST = 5  # the last rank of columns for which a name is not given twice as many
_ERRORS = 3  # minutes with errors that are shown
_ALONE = 40  # characters of a line's label and of what is told behind it
_BARS = {True: "▁▂▃▄▅▆▇█", False: "._-=+*%#"}  # by whether the terminal has others than ASCII


def view(
    state: State, console: Console, *, url: str, sort: str, since: float | None, whole: bool = False
) -> RenderableType:
    """Return what is shown.

    Args:
        sort: one of `SORTS`.
        since: seconds that are summed up; None: all time.
        whole: all tasks, else what there is room for.
    """
    head = _head(state, url)
    parts: list[RenderableType] = [head]
    last = state.last
    if last is None:
        return Group(*parts, Text("nothing was read yet" if state.away else "reading …"))
    columns = _chosen(console.width)
    errors = list(islice(_errors(last.line), _ERRORS))
    steps = [step for step in STEPS if last.report.total.times(step)[-1]]
    tasks = _sorted(last, sort)
    room = console.height - 9 - len(errors) - len(head.wrap(console, console.width))
    if whole:
        room = len(tasks) + len(steps) + 3
    if steps and room >= len(steps) + 6:
        room -= len(steps) + 2
    else:
        steps = []
    parts += [
        Text(),
        _summary(last, columns, since),
        Text(),
        *_lines(last, console),
        *errors,
        Text(),
    ]
    if steps:
        parts += [_steps(last, steps), Text()]
    parts += [_tasks(tasks, last.tasks, columns, room)]
    if not whole:
        parts.append(_foot(tasks, sort))
    return Group(*parts)


def _head(state: State, url: str) -> Text:
    if state.away:
        gone = lasts(time.time() - state.away_since)
        return Text(f"nothing is read for {gone}: {printable(state.away)}", "red")
    if state.last is None:
        return Text(printable(url), "bold")
    at = time.strftime("%H:%M:%S", time.localtime(state.last.at))
    read = f"  {at}, read in {state.last.took * 1e3:,.0f} ms"
    return Text.assemble((printable(url), "bold"), read, no_wrap=True, overflow="ellipsis")


def _chosen(width: int) -> list[Column]:
    """Return the columns that there is room for."""
    chosen: set[str] = set()
    left = width
    for column in sorted((*COLUMNS, NOW), key=lambda column: column.rank):
        left -= column.width + 2
        if left < (_NAME if column.rank <= _MUST else 2 * _NAME):
            break
        chosen.add(column.name)
    return [column for column in (*COLUMNS, NOW) if column.name in chosen]


def _grid(columns: Sequence[Column], name: str) -> Table:
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(name, ratio=1, no_wrap=True, overflow="ellipsis")
    for column in columns:
        table.add_column(column.name, justify="right", width=column.width, no_wrap=True)
    return table


def _summary(last: Reading, columns: Sequence[Column], since: float | None) -> Table:
    table = _grid(columns, "")
    total = last.report.total
    table.add_row("now", *(Text(column.rate(last.now)) for column in columns))
    what = (
        "in all"
        if since is None
        else time.strftime("since %F %H:%M", time.localtime(last.report.begin))
    )
    table.add_row(what, *(Text(column.show(total)) for column in columns))
    return table


def _lines(last: Reading, console: Console) -> Iterator[Text]:
    """Yield the last hour, a bar for each minute, as many as there is room for."""
    this = int(last.at) // _MINUTE * _MINUTE
    room = max(min(int(LINE) // _MINUTE, console.width - _ALONE), 1)
    minutes = [this - at * _MINUTE for at in reversed(range(room))]
    bars = _BARS[console.encoding.startswith("utf")]
    nothing = Figures({})
    for label, name in (("by reference", "values_offloaded"), ("bytes", "bytes_offloaded")):
        amounts = [last.line.get(minute, nothing)[name] for minute in minutes]
        most = max(amounts)
        said = human_size(most) if name.startswith("bytes") else f"{most:,}"
        yield Text.assemble(
            f"{label:<14}",
            ("".join(_bar(amount, most, bars) for amount in amounts), "cyan"),
            f"  up to {said} a minute",
            no_wrap=True,
            overflow="ellipsis",
        )


def _bar(amount: int, most: int, bars: str) -> str:
    return " " if not amount else bars[(amount * len(bars) - 1) // most]


def _errors(line: Mapping[int, Figures]) -> Iterator[Text]:
    """Yield the minutes that had errors, the last first."""
    for minute, figures in sorted(line.items(), reverse=True):
        if figures.errors:
            at = time.strftime("%H:%M", time.localtime(minute))
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in figures.errors.items())
            yield Text(
                f"{'errors ' + at:<14}{printable(kinds)}", "red", no_wrap=True, overflow="ellipsis"
            )


def _steps(last: Reading, steps: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("STEP")
    for name in ("TIMES", "AVERAGE", "HALF WITHIN", "99 % WITHIN"):
        table.add_column(name, justify="right", no_wrap=True)
    total = last.report.total
    for step in steps:
        count = total.times(step)[-1]
        table.add_row(
            step,
            f"{count:,}",
            f"{total.seconds(step) / count * 1e3:,.1f} ms",
            bound(total.quantile(step, 0.5)),
            bound(total.quantile(step, 0.99)),
        )
    return table


def _sorted(last: Reading, sort: str) -> list[tuple[str, Figures]]:
    order = SORTS[sort]
    return sorted(
        last.report.tasks.items(),
        key=lambda item: order(item[0], item[1], last.tasks.get(item[0])),
    )


def _tasks(
    tasks: Sequence[tuple[str, Figures]],
    lately: Mapping[str, Recent],
    columns: Sequence[Column],
    room: int,
) -> Table:
    table = _grid(columns, "TASK")
    for name, figures in tasks[: max(room - 1, 0)]:
        recent = lately.get(name)
        table.add_row(
            Text(printable(name) or "-"),
            *(Text(_cell(column, figures, recent)) for column in columns),
            style="red" if figures.errors else "",
        )
    return table


def _cell(column: Column, figures: Figures, recent: Recent | None) -> str:
    if column is not NOW:
        return column.show(figures)
    return "…" if recent is None else column.rate(recent)


def _foot(tasks: Sequence[object], sort: str) -> Text:
    return Text(f"q ends   s sorts, now by {sort}   {len(tasks):,} tasks", "dim", no_wrap=True)
