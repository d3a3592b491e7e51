"""One side of the demo: a producer that runs all jobs and measures their cost.

It runs in its own process, so that its memory can be measured, and writes events to standard output
as lines of JSON.
"""

import argparse
import json
import os
import time

import redis

from worker_example.app import app
from worker_example.demo.counting import counters
from worker_example.demo.memory import peak_memory
from worker_example.flights import load_flights
from worker_example.producer import JOBS

START = 60  # seconds for the worker to reply


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int)
    options = parser.parse_args()

    flights = load_flights(options.rows)
    wait_for_worker()
    tell("ready", rows=len(flights), frame=int(flights.memory_usage(deep=True).sum()))
    servers = {"broker": redis.Redis.from_url(os.environ["BROKER_URL"])}
    if "OFFLOAD_STORE" in os.environ:
        servers["store"] = redis.Redis.from_url(os.environ["OFFLOAD_STORE"])
    for name, job in JOBS.items():
        run(name, job, flights, servers)
    tell(
        "end",
        peak=peak_memory("self"),
        peaks={name: server.info("memory")["used_memory_peak"] for name, server in servers.items()},
        stored=servers["store"].info("memory")["used_memory"] if "store" in servers else 0,
        counters=counters(),
    )


def run(name: str, job, flights, servers: dict) -> None:
    """Run a job and report its time, the servers' traffic, and its answer."""
    sent_after = 0.0
    tasks = 0

    def tick(stage: str, done: int, total: int) -> None:
        nonlocal sent_after, tasks
        tasks = total
        if stage == "sent" and done == total:
            sent_after = time.perf_counter() - started
        tell("tick", job=name, stage=stage, done=done, total=total)

    before = {server: traffic(client) for server, client in servers.items()}
    started = time.perf_counter()
    answer = job(flights, tick)
    seconds = time.perf_counter() - started
    after = {server: traffic(client) for server, client in servers.items()}
    tell(
        "job",
        name=name,
        tasks=tasks,
        seconds=seconds,
        sent_after=sent_after,
        traffic={server: after[server] - before[server] for server in servers},
        answer=answer,
    )


def traffic(server: redis.Redis) -> int:
    """Return the bytes a server has received and sent, by its own count."""
    info = server.info("stats")
    return info["total_net_input_bytes"] + info["total_net_output_bytes"]


def wait_for_worker() -> None:
    """Wait until the worker replies to a ping."""
    deadline = time.monotonic() + START
    while not app.control.ping(timeout=0.5):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the worker didn't reply within {START} s")


def tell(event: str, **what: object) -> None:
    print(json.dumps({"event": event, **what}), flush=True)


if __name__ == "__main__":
    main()
