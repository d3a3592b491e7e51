"""Output of commands: JSON for programs; columns, tables, and progress for people; files.

Tables on a terminal need rich (extra ``cli``); otherwise commands print plain columns. Files are
written atomically, and only their owner can read them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar, final

import click

from offload.errors import OffloadError, SerializationError
from offload.text import human_size, printable, type_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


T = TypeVar("T")

_IN_MEMORY = 1 << 24  # bytes of a JSON list to keep in memory before using a temporary file
_PAGE = 1 << 16  # characters to print at a time
_ROWS_AT_ONCE = 500  # writing line by line takes longer than formatting
_REDRAW = 0.2  # seconds between updates of the progress
_GAP = 2  # characters between columns
_MANY = 50  # with more rows than this, rich (0.7 ms per row) is used only if it is needed
_LEAST = 16  # minimum width of a column that wraps
_STYLES = {
    "error": "bold red",
    "refused": "bold red",
    "warning": "yellow",
    "out_of_sync": "yellow",
    "untracked": "yellow",
    "ok": "green",
    "synced": "green",
    "pushed": "green",
    "stored": "green",
}
"""Styles of levels and statuses."""


@dataclass(frozen=True)
class Column:
    """Layout of a column.

    Attributes:
        name: its header.
        width: its width in characters if rows are printed as they arrive; else 0.
        number: whether to align it right on a terminal.
        breaks: whether its text wraps on a terminal; text in the last column always wraps.
    """

    name: str
    width: int = 0
    number: bool = False
    breaks: bool = False


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


def print_json_list(documents: Iterable[Any]) -> None:
    """Print a JSON list, which may be long.

    Nothing is printed until the list is complete, so if *documents* raises, `print_error` can still
    print a single valid document.
    """
    start = "["
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8") as listed:
        for document in documents:
            listed.write(f"{start}\n  {json.dumps(document)}")
            start = ","
        listed.write("[]\n" if start == "[" else "\n]\n")
        listed.seek(0)
        for page in iter(partial(listed.read, _PAGE), ""):
            click.echo(page, nl=False)


def print_error(error: BaseException, message: str) -> None:
    """Print a JSON object that describes *error*, instead of the command's document."""
    kind = click.UsageError if isinstance(error, click.UsageError) else type(error)
    described = {"type": kind.__name__, "message": message}
    if isinstance(error, OffloadError):
        described |= {key: value for key, value in vars(error).items() if value is not None}
    print_json({"error": described})


def print_rows(
    rows: Iterable[Sequence[str]], columns: Sequence[Column] = (), *, levels: bool = False
) -> None:
    """Print rows in columns. Escapes control characters, because text may come from a store.

    Args:
        columns: names and layout of the columns; if empty, no header is printed.
        levels: whether the first text of each row is a level or status, to color on a terminal.
    """
    shown = [[printable(text) for text in row] for row in rows]
    if _print_table(shown, columns, levels=levels):
        return
    if columns:
        shown.insert(0, [column.name for column in columns])
    widths = [max(map(len, texts)) for texts in zip_longest(*shown, fillvalue="")]
    for line in _lines(shown, widths):
        click.echo(line)


def print_pages(
    rows: Iterable[Sequence[str]], columns: Sequence[Column], page: int = _ROWS_AT_ONCE
) -> None:
    """Print rows in columns as they arrive, *page* at a time; print nothing if there are none."""
    rest = iter(rows)
    first = True
    while some := [[printable(text) for text in row] for row in islice(rest, page)]:
        if not _print_table(some, columns, names=first):
            names = [[column.name for column in columns]] if first else []
            click.echo("\n".join(_lines([*names, *some], [column.width for column in columns])))
        first = False


def print_labelled(texts: Iterable[tuple[str, str]], width: int, *, levels: bool = False) -> None:
    """Print pairs of label and text, one per line.

    Args:
        width: characters for the label and the space after it.
        levels: whether the labels are levels, to color on a terminal.
    """
    shown = [(label, printable(text)) for label, text in texts]
    out = _console()
    if out is None or out.width < width + _LEAST:
        for label, text in shown:
            click.echo(f"{label:<{width}}{text}")
        return
    table = _grid(gap=1)
    table.add_column(min_width=width - 1, no_wrap=True, style="" if levels else "bold")
    table.add_column(overflow="fold")
    for row in shown:
        table.add_row(*_texts(row, levels=levels))
    out.print(table)


def _lines(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    for row in rows:
        texts = [f"{text:<{width}}" for text, width in zip(row, widths, strict=False)]
        yield "  ".join(texts).rstrip()


def _console() -> Console | None:
    """Return a console for tables on standard output.

    None if that isn't a terminal or is a dumb one, or if rich isn't installed.
    """
    if not _is_terminal(sys.stdout):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    found = Console(markup=False, emoji=False, highlight=False)
    return found if found.is_terminal else None


def _print_table(
    rows: Sequence[Sequence[str]],
    columns: Sequence[Column] = (),
    *,
    names: bool = True,
    levels: bool = False,
) -> bool:
    """Print a table if standard output is a terminal that it fits; return whether it did.

    The texts must be printable.
    """
    out = _console()
    if out is None or not rows:
        return False
    if not columns:
        columns = [Column("")] * max(map(len, rows))
    names = names and any(column.name for column in columns)
    widths = [
        max(column.width, len(column.name), *(len(row[at]) for row in rows if at < len(row)))
        for at, column in enumerate(columns)
    ]
    gaps = _GAP * (len(columns) - 1)
    if len(rows) > _MANY and not levels and sum(widths) + gaps <= out.width and _ascii(rows):
        if names:
            out.print(_line([column.name for column in columns], columns, widths), style="bold")
        out.file.write("".join(f"{_line(row, columns, widths)}\n" for row in rows))
        return True
    table = _grid(header=names)
    least = gaps
    for at, (column, width) in enumerate(zip(columns, widths, strict=True)):
        breaks = column.breaks or at == len(columns) - 1
        least += min(width, _LEAST) if breaks else width
        table.add_column(
            column.name,
            justify="right" if column.number else "left",
            min_width=column.width or None,
            no_wrap=not breaks,
            overflow="fold",
        )
    if least > out.width:
        return False
    for row in rows:
        table.add_row(*_texts(row, levels=levels))
    out.print(table)
    return True


def _ascii(rows: Sequence[Sequence[str]]) -> bool:
    return all(text.isascii() for row in rows for text in row)


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = (
        text.rjust(width) if column.number else text.ljust(width)
        for text, column, width in zip(row, columns, widths, strict=False)
    )
    return (" " * _GAP).join(padded).rstrip()


def _grid(*, gap: int = _GAP, header: bool = False) -> Table:
    from rich.table import Table

    return Table(
        box=None, padding=(0, gap, 0, 0), pad_edge=False, show_header=header, header_style="bold"
    )


def _texts(row: Sequence[str], *, levels: bool) -> list[Any]:
    """Convert a row to rich texts, ignoring markup."""
    from rich.text import Text

    first = _STYLES.get(row[0], "") if levels and row else ""
    return [Text(text, style="" if at else first) for at, text in enumerate(row)]


def _is_terminal(stream: TextIO) -> bool:
    """Return whether *stream* is a terminal that understands control sequences."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@final
class Progress:
    """A line on the terminal with *doing*, the number of items found, and their bytes.

    Use it as a context manager; it erases the line at the end of the block.

    Args:
        doing: the activity, such as "scanning".
        shown: whether to show the line if standard error is a terminal.
    """

    def __init__(self, doing: str, *, shown: bool = True) -> None:
        self._doing = printable(doing)
        self._shown = shown and _is_terminal(sys.stderr)
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


@contextmanager
def open_output(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that only its owner can read, and that appears at *path* once complete."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            file = open(aside, "xb", opener=_private)  # noqa: SIM115 (closed below)
        except OSError as exc:
            raise click.FileError(str(path), exc.strerror or str(exc)) from exc
        with file:
            yield file
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def open_stream() -> Iterator[Any]:
    """Open standard output for bytes; they are written if the block ends without an error."""
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        stream = sys.stdout.buffer
        while piece := file.read(1 << 20):
            stream.write(piece)
        stream.flush()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def write_value(value: Any, file: IO[bytes]) -> str:
    """Write *value* to *file* and return a description of its format.

    Raises SerializationError if no file format fits the value.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        file.write(value)
        return "raw bytes"
    if isinstance(value, str):
        file.write(value.encode("utf-8", "surrogatepass"))
        return "UTF-8 text"
    package = type(value).__module__.partition(".")[0]
    if package == "numpy":
        return _write_array(value, file)
    if package in ("pandas", "polars", "pyarrow"):
        return _write_table(value, file)
    try:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=True).encode())
    except (TypeError, ValueError, RecursionError) as exc:
        raise _no_file(value) from exc
    return "JSON"


def _write_array(value: Any, file: IO[bytes]) -> str:
    import numpy as np

    try:
        np.save(file, value, allow_pickle=False)
    except ValueError as exc:
        raise _no_file(value) from exc
    return "an array for numpy.load"


def _write_table(value: Any, file: IO[bytes]) -> str:
    import pyarrow as pa

    try:
        table = _table(value)
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    except (pa.ArrowException, TypeError, ValueError) as exc:
        raise _no_file(value) from exc
    return "an Arrow file (Feather)"


def _table(value: Any) -> Any:
    import pyarrow as pa

    kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    if kind == "pandas.DataFrame":
        return pa.Table.from_pandas(value)
    if kind == "polars.DataFrame":
        return value.to_arrow()
    if kind == "pyarrow.RecordBatch":
        return pa.Table.from_batches([value])
    if kind == "pyarrow.Table":
        return value
    return pa.table({"values": pa.array(value)})


def _no_file(value: Any) -> SerializationError:
    return SerializationError(
        f"a {type_name(value)} can't be written as a file: write its stored bytes with "
        "celery offload get, without --decode"
    )
