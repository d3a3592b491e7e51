"""Show the progress of an upload with tqdm or rich, whichever is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from offload.errors import ConfigurationError

Shown = tuple[Callable[[int], Any], Callable[[], Any]]
"""Functions that advance a bar by a number of bytes, and close it."""


class _Bar:
    """A bar that appears when the upload starts. What is stored already isn't uploaded."""

    def __init__(self, start: Callable[[int], Shown]) -> None:
        self._start = start
        self._shown: Shown | None = None
        self._left = 0

    def add(self, size: int, total: int) -> None:
        """Note that *size* of *total* bytes are stored."""
        if self._shown is None:
            self._left = total
            self._shown = self._start(total)
        size = min(size, self._left)
        self._left -= size
        self._shown[0](size)

    def end(self, *, done: bool) -> None:
        if self._shown is not None:
            advance, close = self._shown
            if done:
                advance(self._left)
            close()


uploading: ContextVar[_Bar | None] = ContextVar("offload_uploading", default=None)
"""The bar of the upload in this context."""


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[None]:
    """Show the progress of uploads in this block, if *shown*.

    Raises ConfigurationError if neither tqdm nor rich is installed.
    """
    if not shown:
        yield
        return
    bar = _Bar(_starter())
    token = uploading.set(bar)
    done = False
    try:
        yield
        done = True
    finally:
        uploading.reset(token)
        bar.end(done=done)


def _starter() -> Callable[[int], Shown]:
    if find_spec("tqdm") is not None:
        return _tqdm
    if find_spec("rich") is not None:
        return _rich
    raise ConfigurationError(
        "progress=True needs tqdm or rich: pip install 'offload[progress]', or omit progress"
    )


def _tqdm(total: int) -> Shown:
    from tqdm.auto import tqdm

    bar = tqdm(total=total, desc="uploading", unit="B", unit_scale=True, leave=False)
    return bar.update, bar.close


def _rich(total: int) -> Shown:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("uploading"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    bar = Progress(*columns, transient=True)
    bar.start()
    task = bar.add_task("uploading", total=total)
    return (lambda size: bar.advance(task, size)), bar.stop
