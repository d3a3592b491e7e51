"""Send the example's jobs and print the answers: `python -m worker_example.producer`."""

import argparse
import json
import time
from itertools import cycle

import pandas as pd
from celery import chain, chord

from worker_example.flights import load_flights
from worker_example.tasks import clean, delays, features, routes, year

CARRIERS = 13  # those with the most flights, of the 16 that flew from New York
LATE = (0, 15, 60, 180)  # minutes
PATIENCE = 300  # seconds to wait for any answer


def quiet(stage: str, done: int, total: int) -> None:
    """Ignore a job's progress."""


def fan_out(flights: pd.DataFrame, tick=quiet) -> list:
    """Ask many questions about one frame, one task each."""
    carriers = sorted(flights["carrier"].value_counts().index[:CARRIERS])
    questions = [(carrier, late) for carrier in carriers for late in LATE]
    results = []
    for carrier, late in questions:
        results.append(delays.delay(flights, carrier, late=late))
        tick("sent", len(results), len(questions))
    answers = []
    for result in results:
        answers.append(result.get(timeout=PATIENCE))
        tick("answered", len(answers), len(questions))
    return answers


def hand_on(flights: pd.DataFrame, tick=quiet) -> list:
    """Pass large intermediate results from task to task."""
    result = chain(clean.s(flights), features.s(), routes.s(top=5)).apply_async()
    tick("sent", 3, 3)
    answer = result.get(timeout=PATIENCE)
    tick("answered", 3, 3)
    return answer


def gather(flights: pd.DataFrame, tick=quiet) -> dict:
    """Process each month separately, then combine the results."""
    months = [month for _, month in clean(flights).groupby("month")]
    result = chord([features.s(month) for month in months])(year.s())
    tick("sent", len(months) + 1, len(months) + 1)
    answer = result.get(timeout=PATIENCE)
    tick("answered", len(months) + 1, len(months) + 1)
    return answer


JOBS = {"fan-out": fan_out, "chain": hand_on, "chord": gather}


def main() -> None:
    parser = argparse.ArgumentParser(description="Send the example's jobs and print the answers.")
    parser.add_argument("--rows", type=int, help="use only this many of the flights")
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="run forever, each time without another month, so that most data is already stored",
    )
    options = parser.parse_args()
    flights = load_flights(options.rows)
    if options.every is None:
        run(flights)
        return
    for month in cycle(range(1, 13)):
        run(flights[flights["month"] != month].reset_index(drop=True))
        time.sleep(options.every)


def run(flights: pd.DataFrame) -> None:
    for name, job in JOBS.items():
        answer = job(flights)
        print(f"{name}: {json.dumps(answer)[:300]}", flush=True)


if __name__ == "__main__":
    main()
