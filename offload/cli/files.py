"""Files that commands write: complete or not at all, readable by their owner alone."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from offload.errors import SerializationError
from offload.text import type_name

__all__ = ("open_output", "open_stream", "write_value")


@contextmanager
def open_output(path: Path) -> Iterator[IO[bytes]]:
    """Write a temporary file that only its owner can read, and rename it when it is complete."""
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
    """Open standard output for bytes, which are written when the block ends without an error."""
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
        f"a {type_name(value)} can't be written as a file: write its stored bytes, by "
        "celery offload get without --decode"
    )
