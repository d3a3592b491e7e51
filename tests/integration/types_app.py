"""Tasks on values of registered types: ``-A tests.integration.types_app``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from celery import Celery

from offload import Offload, register_type


class Track:
    """Registered with functions, in version 1 by workers and in version 2 by publishers."""

    def __init__(self, points: Any, unit: str = "m") -> None:
        self.points = points
        self.unit = unit


@dataclass
class Line:
    product: str
    track: Track | None = None


@dataclass
class Order:
    number: int
    lines: list[Line]


@dataclass
class Sent:
    """Registered by publishers only."""

    content: list[int]


@dataclass
class Made:
    """Registered by workers only."""

    content: list[int]


def encode(track: Track) -> Any:
    return {"points": track.points, "unit": track.unit}


def decode(data: Any, version: int) -> Track:
    return Track(data["points"], data["unit"])


def register(*, worker: bool) -> None:
    """Register the types of a worker, or of a publisher."""
    register_type(Track, encode=encode, decode=decode, name="tests.track")
    register_type(Order)
    register_type(Made if worker else Sent)
    register_type(Newer, encode=vars, decode=decode_newer, version=1 if worker else 2)


class Newer:
    """Registered in version 1 by workers, and in version 2 by publishers."""

    def __init__(self, content: list[int]) -> None:
        self.content = content


def decode_newer(data: Any, version: int) -> Newer:
    return Newer(data["content"])


def create(config: dict[str, Any]) -> Any:
    """Return the app, the same in the publisher and in the worker."""
    app = Celery("types", broker=config["url"], backend=config["url"], set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        task_default_queue=config["queue"],
        accept_content=["json"],
    )
    app.offload = Offload(app, store=config["url"], threshold=1000)

    @app.task(name="echo", shared=False)
    def echo(value: Any, **_more: Any) -> Any:
        return value

    @app.task(name="describe", shared=False)
    def describe(order: Order, tracks: dict[str, Track]) -> Any:
        lines = [(type(line).__name__, type(line.track).__name__) for line in order.lines]
        return (
            type(order).__name__,
            lines,
            {key: float(t.points.sum()) for key, t in tracks.items()},
        )

    @app.task(name="make", shared=False)
    def make(size: int) -> Made:
        return Made([size] * size)

    @app.task(name="once", shared=False, offload={"memo": 3600, "version": "1"})
    def once(track: Track) -> Any:
        return [os.urandom(8).hex(), Track(track.points * 2, track.unit)]

    @app.task(name="save", shared=False, offload={"save_as": "doubled"})
    def save(name: str) -> Track:
        track = app.offload.catalog.load(name)
        return Track(track.points * 2, track.unit)

    return app


def numbers(start: int = 0) -> Any:
    return np.arange(start, start + 5000, dtype=np.float64)


if "OFFLOAD_TEST_APP" in os.environ:
    register(worker=True)
    app = create(json.loads(os.environ["OFFLOAD_TEST_APP"]))
