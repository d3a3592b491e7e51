"""The measured apps: one for each way to transfer arguments.

A worker imports it as ``benchmarks.app``; environment variables select the way and
the servers.
"""

import os
from typing import Any

from celery import Celery

from offload import Offload

PLAIN_JSON, PLAIN_PICKLE, PROXYSTORE, OFFLOAD, ENCRYPTED = (
    "plain json",
    "plain pickle",
    "proxystore",
    "offload",
    "encrypted",
)
# ProxyStore supports only database 0.
WAYS = (PROXYSTORE, PLAIN_JSON, PLAIN_PICKLE, OFFLOAD, ENCRYPTED)
_PICKLED = (PLAIN_PICKLE, PROXYSTORE)
_ENCRYPTED_WITH = "aes256:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
_SIGNED_WITH = "for these benchmarks only"  # so that a store can be flushed between rounds


def make_app(way: str, urls: dict[str, str], **settings: Any) -> Celery:
    """Return the app; *urls* are of ``broker``, ``backend`` and ``store`` (of tiers: several)."""
    app = Celery("bench", broker=urls["broker"], backend=urls["backend"], set_as_current=False)
    if way in _PICKLED:
        app.conf.update(
            task_serializer="pickle", result_serializer="pickle", accept_content=["pickle", "json"]
        )
    if way in (OFFLOAD, ENCRYPTED):
        if way == ENCRYPTED:
            settings["encryption_keys"] = [_ENCRYPTED_WITH]
        app.offload = Offload(app, store=urls["store"].split(), secret=(_SIGNED_WITH,), **settings)
    for function in (add, take, grow, part, gather, write, turn, join, measure):
        app.task(function, name=function.__name__, shared=False)
    for function in (add, take):
        options = {"memo": 3600} if way in (OFFLOAD, ENCRYPTED) else {}
        app.task(function, name=f"{function.__name__}_once", shared=False, offload=options)
    app.finalize()
    return app


def add(x: float, y: float) -> float:
    return x + y


def take(value: Any, _number: int = 0) -> int:
    """Read a little of *value*, and return its length."""
    return len(value)


def grow(value: Any) -> Any:
    """A step of a chain: a large value in, another one of the same size out."""
    return value + 1


def part(size: int, seed: int) -> Any:
    """Return one of a chord's large parts."""
    from benchmarks.values import array

    return array(size, seed)


def gather(parts: Any) -> float:
    return float(sum(part[0] for part in parts))


def write(size: int, seed: int) -> str:
    """Return *size* bytes of new text."""
    from benchmarks.values import text

    return text(size, seed)


def turn(value: str) -> str:
    """A step of a chain: other text of the same size."""
    return value[1:] + value[:1]


def join(parts: list[str]) -> str:
    return "".join(parts)


def measure(*values: Any) -> list[int]:
    """Return how many texts there are (one list of them, or each an argument), and their length."""
    texts = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    return [len(texts), sum(map(len, texts))]


def from_environment() -> Celery:
    """Return the app of a subprocess."""
    urls = {name: os.environ[f"BENCH_{name.upper()}"] for name in ("broker", "backend", "store")}
    settings = {}
    if threshold := os.environ.get("BENCH_THRESHOLD"):
        settings["threshold"] = int(threshold)
    return make_app(os.environ["BENCH_WAY"], urls, **settings)


if "BENCH_WAY" in os.environ:
    app = from_environment()
