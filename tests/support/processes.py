"""Real Celery processes for tests: started, waited for, shown when a test fails, ended by id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
READY = 60.0  # seconds within which a worker must be ready
PATIENCE = 20.0  # seconds that `wait_until` waits, if not told otherwise
END = 20.0  # seconds within which it must have ended


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> None:
    """Return when *condition* is true; raises TimeoutError, naming *what*, after *timeout* s.

    An exception in the condition counts as "not yet" and is the cause of the TimeoutError.
    """
    deadline = time.monotonic() + timeout
    error: Exception | None = None
    while True:
        try:
            if condition():
                return
            error = None
        except Exception as exc:
            error = exc
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}") from error
        time.sleep(0.01)


def end_process(process: subprocess.Popen[Any], sig: int) -> None:
    """Send *sig*, kill after 10 seconds what has not ended, and wait for the end."""
    if process.poll() is None:
        process.send_signal(sig)
        if sig != signal.SIGKILL:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        process.kill()
    process.wait()


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment in which `tests.integration.app` is configured by *config*."""
    return {
        **os.environ,
        "OFFLOAD_TEST_APP": json.dumps(dict(config)),
        "C_FORCE_ROOT": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


class Process:
    """A process whose output goes to a file."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str]) -> None:
        self.command = command
        self.log_path = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], Any], what: str, timeout: float) -> Any:
        """Return what *condition* gives once it is true; the log is shown if it never is."""
        deadline = time.monotonic() + timeout
        while not (result := condition()):
            ended = self.popen.poll()
            if ended is not None or time.monotonic() > deadline:
                how = f"ended with {ended}" if ended is not None else f"not within {timeout:g} s"
                raise AssertionError(f"{what}: {how}\n{self.log()[-8000:]}")
            time.sleep(0.02)
        return result

    def finish(self, timeout: float) -> None:
        """Wait until the process has ended well; its log is shown if it does not."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            code = f"no end within {timeout:g} s"
        assert code == 0, f"{self.command}: {code}\n{self.log()[-8000:]}"

    def stop(self) -> None:
        """End the process, gently at first, and what it started with it."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(END)
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)  # the group is this process' own
        self.popen.wait()


@contextmanager
def worker(
    folder: Path,
    config: Mapping[str, Any],
    *,
    pool: str = "prefork",
    concurrency: int = 2,
    args: tuple[str, ...] = (),
    app: str = "tests.integration.app",
    name: str = "worker",
    python: str = sys.executable,
) -> Iterator[Process]:
    """A worker that takes tasks; its log is printed when the block raises."""
    command = [python, "-m", "celery", "-A", app, "worker", "-P", pool]
    command += ["-c", str(concurrency), "-l", "INFO", "-n", f"{name}-{os.getpid()}@%h"]
    command += ["--without-mingle", "--without-gossip", *args]
    process = Process(command, folder / f"{name}.log", environment(config))
    try:
        process.wait_for(lambda: " ready." in process.log(), "the worker is ready", READY)
        yield process
    except BaseException:
        print(f"--- log of {name}\n{process.log()[-20000:]}")
        raise
    finally:
        process.stop()
