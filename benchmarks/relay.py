"""A TCP relay that counts the bytes it transfers."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"


class Relay:
    """Relay of connections to *port*.

    Attributes:
        port: the loopback port it listens on.
        sent, received: bytes so far, to and from the server.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.sent = self.received = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        async def listen() -> None:
            server = await asyncio.start_server(self._connect, HOST, 0)
            self.port = server.sockets[0].getsockname()[1]

        self._loop.run_until_complete(listen())
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        self._loop.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self._target)
        await asyncio.gather(
            self._pass(reader, back, "sent"), self._pass(there, writer, "received")
        )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 18):
                setattr(self, name, getattr(self, name) + len(data))
                writer.write(data)
                await writer.drain()
        writer.close()


@contextmanager
def relay(target: int) -> Iterator[Relay]:
    """Run a relay to *target*, a port on loopback."""
    made = Relay(target)
    made.start()
    try:
        yield made
    finally:
        made.stop()
