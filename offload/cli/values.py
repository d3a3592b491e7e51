"""``celery offload inspect``, ``get``, and ``types``: describe values, and write them to files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import click

from offload.cli.options import as_json, runtime_of
from offload.cli.output import Column, open_output, print_json, print_rows, write_value
from offload.errors import InvalidRef
from offload.hooks.runtime import Runtime
from offload.inspect.blobs import digest_prefix, find_digest, is_ref
from offload.inspect.content import BlobContent, read_content
from offload.inspect.values import describe, json_finite, supported_types
from offload.ref import Ref
from offload.text import human_duration, human_size, printable

_SHOWN = 20  # chunks and holders listed without --json


@click.command()
@click.argument("what", metavar="REF|DIGEST|TASK-ID")
@as_json
@click.pass_context
def inspect(ctx: click.Context, what: str, as_json: bool) -> None:
    """Describe a reference, a blob, or a task, and list its holders.

    WHAT is a reference (its whole text, offload:1?…), a digest (at least its first 8 digits), or
    a task ID; the exit code is 1 if it is unknown. Values aren't decoded, and no code runs. The
    preview shows the start of strings and JSON, the dtype and shape of arrays, and the columns of
    frames, but nothing of pickles. For a task, the command shows what the result backend knows,
    without fetching the result. It can't look up the arguments of a task that waits in a queue.
    """
    runtime = runtime_of(ctx)
    described = describe(runtime, what)
    if as_json:
        print_json(json_finite(described))
    else:
        print_rows(_rows(described))
    if "not_known" in described:
        ctx.exit(1)


def _rows(described: Mapping[str, Any], indent: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in described.items():
        label = indent + name.replace("_", " ")
        if name == "holders":
            rows += _holders(value, label)
        elif name == "chunks":
            rows += _listed(
                label, [f"{each['digest']}  {human_size(each['bytes'])}" for each in value]
            )
        elif name == "buffers":
            rows += _listed(label, [human_size(size) for size in value], together=True)
        elif name == "columns":
            rows += _listed(label, [f"{name or '?'} {dtype}" for name, dtype in value], True)
        elif isinstance(value, Mapping):
            rows += [(label, ""), *_rows(value, indent + "  ")]
        elif isinstance(value, list):
            rows += _listed(label, list(map(str, value)), together=True)
        elif value is not None and name != "cut":
            rows.append((label, _shown(name, value) + ("…" if _is_cut(name, described) else "")))
    return rows


def _is_cut(name: str, described: Mapping[str, Any]) -> bool:
    return name == "text" and bool(described.get("cut"))


def _shown(name: str, value: Any) -> str:
    if name.endswith("bytes"):
        return f"{human_size(value)} ({value:,} bytes)" if value >= 1000 else human_size(value)
    if name in ("ttl", "age"):
        return human_duration(value)
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _holders(holders: Mapping[str, float] | None, label: str) -> list[tuple[str, str]]:
    if holders is None:
        return [(label, "unknown: this store doesn't track holds")]
    longest = sorted(holders.items(), key=lambda item: (-item[1], item[0]))
    return _listed(label, [f"{name}  for {human_duration(left)}" for name, left in longest]) or [
        (label, "none")
    ]


def _listed(label: str, texts: list[str], together: bool = False) -> list[tuple[str, str]]:
    more = len(texts) - _SHOWN
    shown = texts[:_SHOWN] + ([f"… and {more:,} more (--json lists all)"] if more > 0 else [])
    if together:
        return [(label, ", ".join(shown))] if shown else []
    return [(label if at == 0 else "", text) for at, text in enumerate(shown)]


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
@as_json
@click.pass_context
def get(
    ctx: click.Context, what: str, output: Path, force: bool, decode: bool, as_json: bool
) -> None:
    """Verify the content of a value and write it to a file.

    By default it writes the serialized bytes: bytes unchanged, strings as UTF-8, data as JSON, the
    memory of arrays, or a pickle. If a value has several buffers, it concatenates them. For a
    chunk, it writes the chunk. Nothing is decoded, and no code runs.

    With --decode, arrays are written as .npy, frames and tables as Arrow files, and other values
    as JSON. This needs a reference, whose signature proves that the app wrote the value. A pickle
    is decoded only if the app accepts pickle.
    """
    if output.exists() and not force:
        raise click.UsageError(f"{output} already exists: add --force to replace it")
    runtime = runtime_of(ctx)
    ref = runtime.content.open(what) if is_ref(what) else None
    if decode and ref is None:
        raise InvalidRef(
            f"--decode requires a signed reference (offload:…), not {what[:100]!r}: a digest "
            "doesn't prove who wrote the value; omit --decode to get the raw bytes"
        )
    if ref is not None and ref.late is not None:
        raise InvalidRef(f"{ref!r} has no content of its own: use celery offload catalog get")
    content = _content(runtime, what, ref)
    with open_output(output) as file:
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
    cipher = runtime.content.cipher
    if ref is not None:
        return read_content(runtime.store, ref.digest, data=ref.data, size=ref.size, cipher=cipher)
    prefix = digest_prefix(what)
    if prefix is None:
        raise InvalidRef(
            f"{what[:100]!r} is neither a reference nor at least the first 8 digits of a digest"
        )
    return read_content(runtime.store, find_digest(runtime.store, prefix), cipher=cipher)


def _form(content: BlobContent) -> str:
    manifest = content.manifest
    if manifest is None:
        return "a chunk"
    parts = len(manifest.sizes) - content.first
    concatenated = f", {parts} buffers concatenated" if parts > 1 else ""
    return f"serialized by {manifest.serializer}{concatenated}"


def _pieces(content: BlobContent) -> Iterable[bytes | memoryview]:
    """Return the bytes to write; include the head if it is of a pickle or there are no buffers."""
    manifest = content.manifest
    if manifest is None:
        return content.buffers()
    pickled = manifest.serializer == "pickle"
    if pickled or len(manifest.sizes) == content.first:
        return chain([content.head()], content.buffers())
    return content.buffers()


_COLUMNS = (Column("NAME"), Column("VERSION"), Column("HOW"), Column("TYPE"))


@click.command()
@as_json
@click.pass_context
def types(ctx: click.Context, as_json: bool) -> None:
    """List the registered types.

    This process can serialize them in addition to Python's own types, arrays, and frames. The app
    registered them, a package that it may import brings them, or kombu's register_type added them
    to Celery's JSON.
    """
    runtime = runtime_of(ctx)
    _ = runtime.settings  # reading the settings also registers their types
    found = supported_types(runtime.accepted)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    rows = [
        (
            each.name,
            "" if each.version is None else str(each.version),
            each.how,
            each.type or each.advice,
        )
        for each in found
    ]
    print_rows(rows, _COLUMNS)
