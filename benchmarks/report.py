"""Results of a benchmark: rows of figures as JSON, Markdown, and a table on screen."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("array", "str", "frame")
FIELDS = ("question", "what", "unit", "figures", "ratio", "target", "met")
"""Keys of each row in the JSON."""


@dataclass
class Row:
    """One quantity measured in several ways.

    Attributes:
        figures: by way (``plain json``, ``offload``, …), in *unit*.
        ratio: the value that the target bounds.
        target: as text; None if the figure is informational.
        met: whether *ratio* (or the figure) meets the target; None unless this was a full-size
            run.
    """

    question: int
    what: str
    unit: str
    figures: dict[str, float]
    ratio: float | None = None
    target: str | None = None
    met: bool | None = None


@dataclass(frozen=True)
class Scale:
    """Amount of measurements. Targets are checked only if *judged*.

    Attributes:
        end_to_end: small tasks sent at once in end-to-end runs of question 1.
        large, kinds: sizes in bytes, and kinds of values, of question 2.
        again: size of question 4.
        shared: tasks and bytes of question 3.
        result, parts: bytes of a result, and number of parts of a chord, in question 5.
        sizes: sizes of question 6.
        blobs: number of small blobs in questions 9 and 13.
        tiered: tasks, arrays, and bytes of an array, in question 10.
        tasks: small tasks published at once in question 1.
        classes: number of classes in question 11, some of which are pushed.
        kinds_of_tasks: number of task names in questions 12 and 13.
        growth: counts of parts, steps, arguments, and references in question 14.
        network: round-trip times in milliseconds, sizes, tasks at once, and most bytes of these,
            in question 17.
        encrypted: sizes of question 18.
        concurrent: numbers of requests at once, and bytes of each, in question 19.
        rounds: minimum repetitions.
    """

    name: str
    judged: bool
    rounds: int
    tasks: int
    end_to_end: int
    large: Sequence[int]
    kinds: Sequence[str]
    again: int
    shared: tuple[int, int]
    result: int
    parts: int
    sizes: Sequence[int]
    distinct_tasks: int
    blobs: int
    tiered: tuple[int, int, int]
    classes: int
    kinds_of_tasks: int
    growth: tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]
    network: tuple[Sequence[float], Sequence[int], int, int]
    encrypted: Sequence[int]
    concurrent: tuple[Sequence[int], int]


MB = 10**6
FULL = Scale(
    name="full",
    judged=True,
    rounds=5,
    tasks=2000,
    end_to_end=1000,
    large=(10 * MB, 100 * MB),
    kinds=KINDS,
    again=100 * MB,
    shared=(100, MB),
    result=10 * MB,
    parts=20,
    sizes=(1000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, MB, 10 * MB, 100 * MB),
    distinct_tasks=100,
    blobs=100_000,
    tiered=(1000, 8, 20 * MB),
    classes=200,
    kinds_of_tasks=500,
    growth=(
        (10, 100, 1000, 3000),
        (10, 30, 100, 300),
        (1, 10, 100, 500),
        (1, 10, 100, 1000, 10_000),
    ),
    network=((0.2, 1, 10), (10, 1000, 10_000, 100_000, MB, 10 * MB), 200, 200 * MB),
    encrypted=(100_000, MB, 10 * MB, 100 * MB),
    concurrent=((10, 100, 1000), MB),
)
QUICK = Scale(
    name="quick",
    judged=True,
    rounds=3,
    tasks=1000,
    end_to_end=300,
    large=(100 * MB,),
    kinds=KINDS,
    again=100 * MB,
    shared=(100, MB),
    result=10 * MB,
    parts=20,
    sizes=(1000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, MB),
    distinct_tasks=30,
    blobs=100_000,
    tiered=(200, 8, 20 * MB),
    classes=200,
    kinds_of_tasks=500,
    growth=((10, 100, 1000), (10, 100), (1, 100), (1, 100, 10_000)),
    network=((1,), (10, 100_000, MB), 200, 20 * MB),
    encrypted=(100_000, MB, 10 * MB, 100 * MB),
    concurrent=((10, 100, 1000), MB),
)
TINY = Scale(
    name="tiny",
    judged=False,
    rounds=1,
    tasks=20,
    end_to_end=5,
    large=(100_000,),
    kinds=("str",),
    again=100_000,
    shared=(5, 100_000),
    result=100_000,
    parts=3,
    sizes=(1000, 100_000),
    distinct_tasks=4,
    blobs=2000,
    tiered=(20, 2, 2 * MB),
    classes=10,
    kinds_of_tasks=5,
    growth=((2, 3), (2,), (2,), (3,)),
    network=((0.2,), (100_000,), 2, MB),
    encrypted=(100_000,),
    concurrent=((2,), 100_000),
)
SCALES = {scale.name: scale for scale in (FULL, QUICK, TINY)}


@dataclass
class Judge:
    """Builder of rows for one question."""

    question: int
    judged: bool
    rows: list[Row] = field(default_factory=list)

    def row(
        self,
        what: str,
        unit: str,
        figures: dict[str, float],
        *,
        ratio: float | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
        of: str = "",
    ) -> None:
        """Add a row; *at_least* and *at_most* bound the ratio, or else offload's figure."""
        subject = ratio if ratio is not None else figures.get("offload")
        target, met = None, None
        bound = at_least if at_least is not None else at_most
        if bound is not None and subject is not None:
            target = f"{'≥' if at_least is not None else '≤'} {bound:g}{' ' + of if of else ''}"
            met = subject >= bound if at_least is not None else subject <= bound
        self.rows.append(
            Row(self.question, what, unit, figures, ratio, target, met if self.judged else None)
        )


def document(scale: Scale, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the document to write as JSON."""
    import celery
    import redis

    import offload

    return {
        "scale": scale.name,
        "python": platform.python_version(),
        "celery": celery.__version__,
        "redis-py": redis.__version__,
        "offload": offload.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {_cpus()} CPUs",
        "rows": [asdict(row) for row in rows],
    }


def write(folder: Path, found: dict[str, Any], titles: dict[int, str]) -> tuple[Path, Path]:
    """Write ``results.json`` and ``results.md`` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_markdown = folder / "results.json", folder / "results.md"
    as_json.write_text(json.dumps(found, indent=1) + "\n")
    as_markdown.write_text(markdown(found, titles))
    return as_json, as_markdown


def ways_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(way for row in rows for way in row["figures"]))


def cells(row: dict[str, Any], ways: Sequence[str]) -> list[str]:
    """Return a row of the table as text."""
    unit = row["unit"]
    shown = [number(row["figures"][way]) if way in row["figures"] else "" for way in ways]
    ratio = "" if row["ratio"] is None else number(row["ratio"])
    verdict = {True: "yes", False: "NO", None: ""}[row["met"]]
    return [f"{row['what']}, {unit}", *shown, ratio, row["target"] or "", verdict]


def number(value: float) -> str:
    """Format with three significant digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown(found: dict[str, Any], titles: dict[int, str]) -> str:
    versions = [f"{name} {found[name]}" for name in ("celery", "redis-py", "python")]
    lines = [f"{', '.join(versions)}, {found['machine']}; scale: {found['scale']}."]
    for question in sorted({row["question"] for row in found["rows"]}):
        rows = [row for row in found["rows"] if row["question"] == question]
        ways = ways_of(rows)
        head = ["", *ways, "ratio", "target", "met"]
        lines += ["", f"**{question}. {titles[question]}**", ""]
        lines.append("| " + " | ".join(head) + " |")
        lines.append("|" + "---|" + "---:|" * (len(ways) + 1) + "---|---|")
        lines += ["| " + " | ".join(cells(row, ways)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def show(found: dict[str, Any], titles: dict[int, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for question in sorted({row["question"] for row in found["rows"]}):
        rows = [row for row in found["rows"] if row["question"] == question]
        ways = ways_of(rows)
        table = Table(title=f"{question}. {titles[question]}", title_justify="left")
        table.add_column("")
        for way in [*ways, "ratio"]:
            table.add_column(way, justify="right")
        table.add_column("target")
        table.add_column("met")
        for row in rows:
            style = "bold red" if row["met"] is False else None
            table.add_row(*cells(row, ways), style=style)
        console.print(table)


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
