"""Read clocks, memory, and servers' counters."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis

TICKS = os.sysconf("SC_CLK_TCK")


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def timed(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    function()
    return clock() - start


def alternately(functions: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each function *rounds* times, alternating, in reverse order every other round."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        names = list(functions) if number % 2 == 0 else list(reversed(functions))
        for name in names:
            found[name].append(functions[name]())
    return found


def ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios one / other of each round."""
    return median([one / other for one, other in zip(ones, others, strict=True)])


def cpu_of_calls(function: Callable[[], Any], number: int) -> float:
    """Return this process's CPU seconds per call, without garbage collections."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        for _ in range(number):
            function()
        return (time.process_time() - start) / number
    finally:
        gc.enable()


# -- memory


def resident(pid: int | str = "self") -> int:
    """Return a process's current memory in bytes."""
    return _status(pid, "VmRSS")


def peak(pid: int | str = "self") -> int:
    """Return a process's peak memory in bytes since `reset_peak`."""
    return _status(pid, "VmHWM")


def reset_peak(pid: int | str = "self") -> None:
    """Reset the kernel's record of peak memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int | str, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_seconds(pid: int) -> float:
    """Return a process's CPU time (in steps of 10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# -- servers


_IN_SCRIPTS = (
    "pttl",
    "pexpire",
    "time",
    "zadd",
    "zrem",
    "zremrangebyscore",
    "zrevrange",
    "exists",
)


def commands(client: redis.Redis) -> dict[str, int]:
    """Return how often each command was called since `reset_counters`.

    Excludes commands called by scripts, which take no round trip.
    """
    stats = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): int(entry["calls"]) for name, entry in stats.items()}
    if "evalsha" in calls or "eval" in calls:
        for inner in _IN_SCRIPTS:
            calls.pop(inner, None)
    for own in ("info", "config|resetstat"):
        calls.pop(own, None)
    return calls


def requests(client: redis.Redis) -> int:
    """Return how many requests a server has read so far; a pipeline of small commands is one."""
    return int(client.info("stats")["total_reads_processed"])


def reset_counters(client: redis.Redis) -> None:
    client.config_resetstat()


def network(client: redis.Redis) -> int:
    """Return bytes in and out since `reset_counters`."""
    info = client.info("stats")
    return int(info["total_net_input_bytes"]) + int(info["total_net_output_bytes"])


def wait_drained(results: Sequence[Any], timeout: float = 120.0) -> None:
    """Wait for the last of *results*, which one worker processes in order."""
    results[-1].get(timeout=timeout)
