"""What all pages of one dashboard share."""

from __future__ import annotations

import secrets

from starlette.requests import Request

from offload.dashboard.fleet import Fleet
from offload.dashboard.shipped import Classes
from offload.dashboard.statistics import Statistics
from offload.dashboard.stored import Stored
from offload.hooks.runtime import Runtime

__all__ = ("Board", "board_of")


class Board:
    """An app's runtime, and what was read of its store just now.

    Attributes:
        runtime: the app's.
        allow_delete: whether blobs may be removed.
        statistics: what was counted.
        stored: what is in the store.
        fleet: what stores and workers say of themselves.
        classes: those that are shipped.
        secret: of this dashboard; forms are signed by it.
    """

    def __init__(self, runtime: Runtime, *, allow_delete: bool) -> None:
        self.runtime = runtime
        self.allow_delete = allow_delete
        self.statistics = Statistics(runtime)
        self.stored = Stored(runtime)
        self.fleet = Fleet(runtime)
        self.classes = Classes(runtime.classes)
        self.secret = secrets.token_bytes(32)


def board_of(request: Request) -> Board:
    """Return the dashboard's that is asked."""
    board: Board = request.app.state.board
    return board
