"""Tasks that change large arguments in place: ``-A tests.integration.pools``."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np
from celery import Celery

from offload import Offload, Ref
from tests.support.processes import wait_until

MB = 1024**2
SIZES = (1, 1, 2, 1, 4, 8)  # MB


def large(number: int) -> Any:
    """Return a value of 1 to 8 MB that is unique to a number: arrays, bytes, or both."""
    random = np.random.default_rng(number)
    size = SIZES[number % len(SIZES)] * MB
    content = bytearray(random.bytes(size))
    match number % 5:
        case 0:
            return np.frombuffer(content, np.uint8)
        case 1:
            return np.frombuffer(content, np.int64).reshape(-1, 64)
        case 2:
            return content
        case 3:
            return bytes(content)
        case _:
            half = np.frombuffer(content[: size // 2], np.float32)
            return {"half": half, "rest": content[size // 2 :], "number": number}


def common(number: int) -> Any:
    """Return an array of 2 MB that depends on a number."""
    return np.random.default_rng(1000 + number).integers(0, 1 << 40, 2 * MB // 8)


def spoil(value: Any, mark: int) -> None:
    """Change everything that is mutable, differently for each *mark*."""
    if isinstance(value, dict):
        for item in value.values():
            spoil(item, mark)
    elif isinstance(value, bytearray):
        value[:: 1 << 12] = bytes([mark]) * len(value[:: 1 << 12])
    elif isinstance(value, np.ndarray):
        value.reshape(-1)[::512] = mark


def digest(value: Any) -> str:
    """Return a hash of type and content."""
    found = hashlib.sha1()
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    found.update(type(value).__name__.encode())
    if isinstance(value, dict):
        for key, item in value.items():
            found.update(key.encode())
            _add(found, item)
    elif isinstance(value, np.ndarray):
        found.update(f"{value.dtype}{value.shape}".encode())
        found.update(np.ascontiguousarray(value).data)
    else:
        found.update(value if isinstance(value, (bytes, bytearray)) else repr(value).encode())


def spoiled(value: Any, mark: int) -> Any:
    """Return *value* after `spoil`."""
    spoil(value, mark % 256)
    return value


def create(config: dict[str, Any]) -> Any:
    """Return the app, the same in the publisher and in the worker."""
    app = Celery("pools", broker=config["broker"], backend=config["backend"])
    app.conf.update(
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        task_default_queue="pools",
    )
    app.offload = Offload(app, **config["offload"])

    @app.task(name="mix", shared=False, resultrepr_maxsize=100)
    def mix(own: Any, shared: Any, number: int) -> Any:
        """Change both values while a partner changes the same *shared*; return their hashes.

        The tasks 2n and 2n + 1 meet: both have their arguments and have changed them before either
        reads its own again.
        """
        seen = [digest(own), digest(shared)]
        spoil(own, number)
        spoil(shared, number)
        changed = [digest(own), digest(shared)]
        app.backend.client.rpush(f"changed-{number}", 1)
        if app.backend.client.blpop(f"changed-{number ^ 1}", timeout=30) is None:
            raise TimeoutError(f"task {number ^ 1} has not come")
        return {
            "own": own,
            "seen": seen,
            "changed": changed,
            "later": [digest(own), digest(shared)],
        }

    @app.task(name="change", shared=False, resultrepr_maxsize=100)
    def change(value: Any, mark: int) -> Any:
        app.backend.client.incr("entered")
        spoil(value, mark % 256)
        return value

    @app.task(name="outlasts", shared=False)
    def outlasts(value: Ref[Any]) -> int:
        """Run until this message's hold was renewed, then read the value."""
        blobs = app.offload.store.blobs
        published = app.offload._runtime.grace + 120  # seconds; a message's hold lasts a bit less

        def left() -> float:
            return max(blobs.holders(value.digest).values())

        wait_until(lambda: left() > published, "the hold is renewed")
        return len(value.get())

    @app.task(name="small", shared=False, resultrepr_maxsize=100)
    def small(number: int) -> int:
        return number

    return app


if "OFFLOAD_TEST_APP" in os.environ:
    app = create(json.loads(os.environ["OFFLOAD_TEST_APP"]))
