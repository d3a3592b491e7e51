"""``celery offload get``: write the content of a value to a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import click

from offload.cli.context import runtime_of
from offload.cli.output import print_json
from offload.cli.written import write_value
from offload.errors import InvalidRef
from offload.hooks.runtime import Runtime
from offload.inspect.blobs import digest_prefix, find_digest, is_ref
from offload.inspect.content import BlobContent, read_content
from offload.ref import Ref
from offload.text import human_size, printable

__all__ = ("get",)


@click.command()
@click.argument("what", metavar="REF|DIGEST")
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; it must not exist.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--decode", is_flag=True, help="Write the decoded value instead of its stored bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def get(
    ctx: click.Context, what: str, output: Path, force: bool, decode: bool, as_json: bool
) -> None:
    """Verify the content of a value and write it to a file.

    By default this writes the stored bytes: the bytes of bytes, UTF-8 for strings, JSON, the
    memory of arrays, or a pickle. Several buffers of one value are concatenated; for a chunk, its
    bytes are written. Nothing is decoded, and no code runs.

    With --decode, arrays are written as .npy, frames and tables as Arrow files, and other values
    as JSON. This needs a reference, whose signature proves that the app made the value. A pickle
    is decoded only if the app accepts pickle.
    """
    if output.exists() and not force:
        raise click.UsageError(f"{output} already exists: add --force to replace it")
    runtime = runtime_of(ctx)
    ref = runtime.content.open(what) if is_ref(what) else None
    if decode and ref is None:
        raise InvalidRef(
            f"--decode requires a signed reference (offload:…), not {what[:100]!r}: a digest "
            "doesn't say who wrote the value; omit --decode to get the raw bytes"
        )
    content = _content(runtime, what, ref)
    with _file(output) as file:
        if decode and ref is not None:
            form = write_value(runtime.content.reader.get(ref), file)
        else:
            form = _form(content)
            for piece in _pieces(content):
                file.write(piece)
        size = file.tell()
    written = {"digest": content.digest, "bytes": size, "output": str(output), "form": form}
    if as_json:
        print_json(written)
    else:
        click.echo(printable(f"{output}: {human_size(size)}, {form}"))


def _content(runtime: Runtime, what: str, ref: Ref[Any] | None) -> BlobContent:
    if ref is not None:
        return read_content(runtime.store, ref.digest, data=ref.data, size=ref.size)
    prefix = digest_prefix(what)
    if prefix is None:
        raise InvalidRef(
            f"{what[:100]!r} is neither a reference nor at least the first 8 digits of a digest"
        )
    return read_content(runtime.store, find_digest(runtime.store, prefix))


def _form(content: BlobContent) -> str:
    manifest = content.manifest
    if manifest is None:
        return "a chunk"
    parts = len(manifest.sizes) - content.first
    concatenated = f", {parts} buffers concatenated" if parts > 1 else ""
    return f"serialized by {manifest.serializer}{concatenated}"


def _pieces(content: BlobContent) -> Iterable[bytes | memoryview]:
    """Return the bytes to write; with the head if it is all there is, or starts a pickle."""
    manifest = content.manifest
    if manifest is None:
        return content.buffers()
    pickled = manifest.serializer == "pickle"
    if pickled or len(manifest.sizes) == content.first:
        return chain([content.head()], content.buffers())
    return content.buffers()


@contextmanager
def _file(path: Path) -> Iterator[IO[bytes]]:
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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
