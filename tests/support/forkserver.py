"""Fork Celery commands, other modules, and scripts from a process that has done their imports.

The imports of ``python -m celery`` take longer than most tests. `start` runs it in a fork of a
server that has done them; each process of pytest has one such server::

    process = start(["-A", "proj", "worker"], cwd=folder, env=env, stdout=log, stderr=log)

Each fork leads its own session and has its own working directory, environment, import path,
and files; it only inherits the imports. Where that makes a difference, start the command with
`subprocess` instead.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_REQUEST = 1 << 20  # bytes
SHARED = "OFFLOAD_TEST_FORK_SERVER"
"""Environment variable with the id of a process that shares its parent's server, and a socket."""
IMPORTED = (
    "boto3", "celery.app.amqp", "celery.app.control", "celery.app.events", "celery.app.log",
    "celery.apps.beat", "celery.apps.worker", "celery.backends.redis", "celery.bin.celery",
    "celery.concurrency.prefork", "celery.concurrency.solo", "celery.concurrency.thread",
    "celery.events.snapshot", "celery.events.state", "celery.worker.consumer",
    "celery.worker.strategy", "kombu.transport.redis",
)  # fmt: skip


class Forked:
    """A forked command; offers the methods of `subprocess.Popen` that tests use."""

    def __init__(self, args, pid, status):
        self.args = args
        self.pid = pid
        self.returncode = None
        self._status = status

    def poll(self):
        """Return the exit code, or None while the process runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._read()
        return self.returncode

    def wait(self, timeout=None):
        """Return the exit code; raise `subprocess.TimeoutExpired` after *timeout* seconds."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._read()
        return self.returncode

    def send_signal(self, sig):
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def _read(self):
        code = os.read(self._status, 4)
        os.close(self._status)
        assert code, "the fork server ended"
        (self.returncode,) = struct.unpack("i", code)


class _Server:
    """Client side of a server, in the process that started it or one that shares it."""

    def __init__(self, connection):
        self.socket = connection
        self.pid = os.getpid()

    @classmethod
    def launch(cls, names=()):
        """Start a server that also imports *names*."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REQUEST)
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        server = cls(ours)
        with theirs:
            server.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *names],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return server

    def start(self, args, cwd, env, files):
        ours, theirs = os.pipe()
        request = json.dumps([args, os.fspath(cwd), dict(env)]).encode()
        try:
            socket.send_fds(self.socket, [request], [theirs, *files])
        finally:
            os.close(theirs)
        (pid,) = struct.unpack("i", self.socket.recv(4))
        return Forked(args, pid, ours)

    def close(self):
        """End the server, which kills what it has forked."""
        self.socket.close()
        self.process.wait()


_server: _Server | None = None


def _current():
    """Return this process's server: shared by its parent, or started on first use."""
    global _server
    if _server is None or _server.pid != os.getpid():
        pid, _, fd = os.environ.get(SHARED, "").partition(" ")
        if pid == str(os.getpid()):
            _server = _Server(socket.socket(fileno=int(fd)))
        else:
            _server = _Server.launch()
    return _server


@contextmanager
def preloaded(*names):
    """Use another server, which also imports *names*, and kill what it has forked at the end."""
    global _server
    before, _server = _server, _Server.launch(names)
    try:
        yield
    finally:
        _server.close()
        _server = before


def start(
    args, *, module="celery", cwd=ROOT, env=None, stdin=None, stdout=None, stderr=None, share=False
):
    """Start ``python -m`` *module*, or a script's path, with *args*; None as a file is /dev/null.

    With *share*, the command uses this server, too; start nothing else before it has ended.
    """
    if sys.platform != "linux":
        what = [module] if module.endswith(".py") else ["-m", module]
        command = [sys.executable, *what, *map(str, args)]
        given = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        streams = {name: each or subprocess.DEVNULL for name, each in given.items()}
        return subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True, **streams)
    server = _current()
    with open(os.devnull, "r+b") as nothing:  # noqa: PTH123 (not a file)
        files = [(each or nothing).fileno() for each in (stdin, stdout, stderr)]
        files += [server.socket.fileno()] * share
        return server.start(
            [module, *map(str, args)], cwd, os.environ if env is None else env, files
        )


def run(args, *, module="celery", cwd=ROOT, env=None, timeout=120, share=False):
    """Run ``python -m`` *module* with *args*; return a result like that of `subprocess.run`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(args, module=module, cwd=cwd, env=env, stdout=out, stderr=err, share=share)
        try:
            code = process.wait(timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(process.args, code, *printed)


def as_module(command):
    """Return the module or script that *command* runs, and its arguments.

    Return None unless it runs one on this Python.
    """
    python, first, *rest = map(str, command)
    if python != sys.executable:
        return None
    if first == "-m":
        return rest[0], rest[1:]
    return (first, rest) if first.endswith(".py") else None


# -- inside the server


def serve(connection):
    """Fork a process for each request and report its exit; return the request in each fork.

    Return None in the server once its pytest has exited.
    """
    woken, wakes = os.pipe()
    for fd in (woken, wakes):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    running = {}
    while True:
        ready, _, _ = select.select([connection, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            report_exits(running)
        if connection not in ready:
            continue
        request, files, _, _ = socket.recv_fds(connection, MAX_REQUEST, 5)
        if not request:
            for pid in running:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            return None
        status, *streams = files
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (woken, wakes, status, *running.values()):
                os.close(fd)
            connection.close()
            os.setsid()
            for number, fd in enumerate(streams[:3]):
                os.dup2(fd, number)
                os.close(fd)
            args, cwd, env = json.loads(request)
            if streams[3:]:
                env[SHARED] = f"{os.getpid()} {streams[3]}"
            return args, cwd, env
        running[pid] = status
        for fd in streams:
            os.close(fd)
        connection.send(struct.pack("i", pid))


def report_exits(running):
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        fd = running.pop(pid)
        with suppress(BrokenPipeError):
            os.write(fd, struct.pack("i", os.waitstatus_to_exitcode(status)))
        os.close(fd)


def import_offload():
    """Import the modules that an app with offload imports until it has opened a store."""
    import offload
    from offload.stores import open_store

    _ = offload.Offload
    open_store("redis://127.0.0.1:1/0")  # connects to nothing


def become(args, cwd, env, path):
    """Run a module or script with these arguments, directory, and environment in this process."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    folders = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    is_script = args[0].endswith(".py")
    sys.path[:] = [os.path.dirname(args[0]) if is_script else cwd, *folders, *path]  # noqa: PTH120
    now = bool(env.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = open(0)  # noqa: SIM115 (streams)
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1 if now else -1)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = args
    if is_script:
        runpy.run_path(args[0], run_name="__main__")
    else:
        runpy.run_module(args[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    path = sys.path[1:]
    sys.path[0] = str(ROOT)
    for name in (*IMPORTED, *sys.argv[2:]):
        import_module(name)
    import_offload()
    gc.collect()
    gc.freeze()  # otherwise, each fork goes through all modules again: 0.3 s of CPU at its exit
    sys.path[:] = path
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if command is not None:
        become(*command, path)
