"""Start processes for tests, wait for them, show their logs on failure, and stop them by id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support import forkserver

ROOT = Path(__file__).parents[2]
READY = 60.0  # seconds within which a worker must be ready
PATIENCE = 20.0  # default timeout of `wait_until`, in seconds
END = 45.0
"""Seconds to exit after SIGTERM; a child that billiard replaces at that moment may wait 30 seconds
for its parent to read its last result."""


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> None:
    """Poll *condition* until it is true; raise TimeoutError with *what* after *timeout* seconds.

    An exception in the condition counts as false, and is the cause of the TimeoutError. A condition
    that takes long, such as a command, is checked less often: it must not keep a core busy.
    """
    deadline = time.monotonic() + timeout
    error: Exception | None = None
    while True:
        start = time.monotonic()
        try:
            if condition():
                return
            error = None
        except Exception as exc:
            error = exc
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}") from error
        _pause_after(start)


def _pause_after(start: float) -> None:
    """Sleep three times as long as a check took that began at *start*, but 10 ms to 1 s."""
    time.sleep(min(1.0, max(0.01, 3 * (time.monotonic() - start))))


def end_process(process: subprocess.Popen[Any], sig: int) -> None:
    """Send *sig* and wait for the process to exit; kill it after 10 seconds."""
    if process.poll() is None:
        process.send_signal(sig)
        if sig != signal.SIGKILL:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        process.kill()
    process.wait()


def environment(config: Mapping[str, Any] = (), *folders: Path) -> dict[str, str]:
    """Return the environment of an app configured by *config*.

    The app is importable from the root of the repository, or from *folders*.
    """
    return {
        **os.environ,
        "OFFLOAD_TEST_APP": json.dumps(dict(config)),
        "C_FORCE_ROOT": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT))),
        "PYTHONUNBUFFERED": "1",
    }


def start(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, output: Any, *, fork: bool
) -> Any:
    """Start *command* as the leader of a session; with *fork*, from the fork server if it can.

    The pools ``gevent`` and ``custom`` patch modules on import, so their workers must import
    everything themselves.
    """
    found = forkserver.as_module(command) if fork else None
    if found and not {"gevent", "custom"} & {*command}:
        module, args = found
        return forkserver.start(args, module=module, cwd=cwd, env=env, stdout=output, stderr=output)
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


class Process:
    """A process whose output is appended to a file."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        cwd: Path = ROOT,
        *,
        fork: bool = False,
    ) -> None:
        self.command = command
        self.log_path = log
        with log.open("ab") as output:
            self._begin = output.tell()
            self.popen = start(command, env, cwd, output, fork=fork)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def ended(self) -> bool:
        return self.popen.poll() is not None

    def log(self) -> str:
        """Return what this process has printed so far."""
        return self.log_path.read_bytes()[self._begin :].decode(errors="replace")

    def children(self) -> list[int]:
        """Return the ids of its child processes; none if it has exited."""
        with suppress(OSError):
            path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
            return [int(pid) for pid in path.read_text().split()]
        return []

    def wait_for(self, condition: Callable[[], Any], what: str, timeout: float) -> Any:
        """Poll *condition* and return its first true result; on failure, show the log."""
        deadline = time.monotonic() + timeout
        start = time.monotonic()
        while not (result := condition()):
            ended = self.popen.poll()
            if ended is not None or time.monotonic() > deadline:
                how = f"ended with {ended}" if ended is not None else f"not within {timeout:g} s"
                raise AssertionError(f"{what}: {how}\n{self.log()[-8000:]}")
            _pause_after(start)
            start = time.monotonic()
        return result

    def finish(self, timeout: float) -> None:
        """Wait for the process to exit with code 0; on failure, show its log."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            code = f"still running after {timeout:g} s"
        assert code == 0, f"{self.command}: {code}\n{self.log()[-8000:]}"

    def stop(self) -> None:
        """Send SIGTERM; then kill the process, if it is still running, and its children."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(END)
        self.kill()

    def kill(self) -> None:
        """Kill the process and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)  # it leads a group of its own
        self.popen.wait()


class JsonProcess:
    """A process that reads and prints lines of JSON."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.popen = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def send(self, message: Any) -> None:
        self.popen.stdin.write(json.dumps(message) + "\n")
        self.popen.stdin.flush()

    def receive(self) -> Any:
        line = self.popen.stdout.readline()
        assert line, f"ended with {self.popen.wait()}"
        return json.loads(line)

    def close(self) -> None:
        end_process(self.popen, signal.SIGTERM)
        self.popen.stdin.close()
        self.popen.stdout.close()


def start_worker(
    app: str,
    *args: str,
    folder: Path,
    env: Mapping[str, str],
    name: str = "worker",
    cwd: Path = ROOT,
    python: str = sys.executable,
    wait: bool = True,
    fork: bool = True,
) -> Process:
    """Start a worker of *app* that logs to *folder*, and *wait* until it is ready.

    Pass ``fork=False`` if offload must not be imported before the app: with *fork*, the worker
    is forked from a process that has imported it.
    """
    command = [python, "-m", "celery", "-A", app, "worker", "-l", "INFO"]
    command += ["--without-mingle", "--without-gossip", *args]
    process = Process(command, folder / f"{name}.log", env, cwd, fork=fork)
    if wait:
        try:
            process.wait_for(lambda: " ready." in process.log(), "the worker is ready", READY)
        except BaseException:
            process.kill()
            raise
    return process


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
    fork: bool | None = None,
) -> Iterator[Process]:
    """Run a worker; print its log if the block raises.

    Without offload in its configuration, it isn't forked by default.
    """
    options = ("-P", pool, "-c", str(concurrency), "-n", f"{name}-{os.getpid()}@%h", *args)
    process = start_worker(
        app,
        *options,
        folder=folder,
        env=environment(config),
        name=name,
        python=python,
        fork=bool(config.get("offload")) if fork is None else fork,
    )
    try:
        yield process
    except BaseException:
        print(f"--- log of {name}\n{process.log()[-20000:]}")
        raise
    finally:
        process.stop()
