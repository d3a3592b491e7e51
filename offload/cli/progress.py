"""Progress of long commands: one line on standard error, if that is a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, final

import click

from offload.cli.terminal import is_terminal
from offload.text import human_size, printable

__all__ = ("Progress",)

T = TypeVar("T")

_REDRAW = 0.2  # seconds


@final
class Progress:
    """Show *doing*, the number of items found, and their bytes; erase the line when the block ends.

    Args:
        shown: False shows nothing, even on a terminal.
    """

    def __init__(self, doing: str, *, shown: bool = True) -> None:
        self._doing = printable(doing)
        self._shown = shown and is_terminal(sys.stderr)
        self._count = self._size = 0
        self._next = 0.0  # when to redraw

    def __enter__(self) -> Progress:
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo("\r\033[K", err=True, nl=False)

    def step(self, size: int) -> None:
        """Count another item of *size* bytes."""
        self._count += 1
        self._size += size
        self._draw()

    def over(self, items: Iterable[T], size: Callable[[T], int]) -> Iterator[T]:
        """Yield *items*, counting each."""
        for item in items:
            self.step(size(item))
            yield item

    def _draw(self) -> None:
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + _REDRAW
        found = f": {self._count:,} found, {human_size(self._size)}"
        width = os.get_terminal_size(sys.stderr.fileno()).columns  # 0 if unknown
        doing = self._doing[: max(width - 1 - len(found), 0)] if width else self._doing
        click.echo(f"\r\033[K{doing}{found}", err=True, nl=False)
