"""``celery offload catalog …``: list, search, tag, read, write, and remove named objects."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from offload.catalog import Catalog, Record
from offload.catalog.names import DEFAULT, LATEST, split_label
from offload.cli import UNAVAILABLE
from offload.cli.options import DURATION, SIZE, as_json, runtime_of
from offload.cli.output import (
    Column,
    open_output,
    open_stream,
    print_json,
    print_json_list,
    print_pages,
    print_rows,
    write_value,
)
from offload.errors import (
    ObjectNotFound,
    OffloadError,
    StoreUnavailable,
    ValueTooLarge,
    VersionConflict,
)
from offload.inspect.catalog import (
    ObjectState,
    describe_record,
    describe_usage,
    objects_of,
    usage_of,
)
from offload.text import human_duration, human_size, printable, some

_STREAM = Path("-")
_METADATA = 60  # characters of metadata in a row
_FACTS = (Column("SIZE", 9, number=True), Column("AGE", 9, number=True), Column("TYPE", 12))
_OBJECTS = (
    Column("LATEST", 8),
    Column("VERSIONS", 8, number=True),
    *_FACTS,
    Column("OBJECT"),
)
_VERSIONS = (Column("VERSION", 8), *_FACTS, Column("TAGS", 12), Column("METADATA"))
_FOUND = (Column("VERSION", 8), *_FACTS, Column("OBJECT", 24), Column("METADATA"))

in_bucket = click.option(
    "--bucket", default=DEFAULT, show_default=True, help="The bucket that the objects are in."
)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="List at most this many, in order of name."
)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Report invalid names, versions, and metadata as usage errors."""
        try:
            return super().invoke(ctx)
        except ValueError as exc:
            if isinstance(exc, OffloadError):
                raise
            raise click.UsageError(printable(str(exc))) from exc


@click.group(cls=_Group)
def catalog() -> None:
    """List, search, tag, read, write, and remove named objects.

    OBJECT is a name, such as churn:model, for the latest version; or a name with a version or tag,
    such as churn:model@2.1 or churn:model@production.
    """


def _catalog(ctx: click.Context, bucket: str) -> Catalog:
    return runtime_of(ctx).catalog.bucket(bucket)


# -- list


@catalog.command("list")
@click.argument("prefix", default="")
@limit_option
@in_bucket
@as_json
@click.pass_context
def list_(ctx: click.Context, prefix: str, limit: int | None, bucket: str, as_json: bool) -> None:
    """List objects whose names start with PREFIX. SIZE is the size of the latest version."""
    found = objects_of(_catalog(ctx, bucket).find(prefix))[:limit]
    if as_json:
        print_json_list(map(_object, found))
    elif found:
        print_pages(map(_object_row, found), _OBJECTS)
    else:
        which = f" {prefix}…" * bool(prefix)
        click.echo(printable(f"no objects{which} in {_where(ctx, bucket)}"))


def _object(state: ObjectState) -> dict[str, Any]:
    return {
        "bucket": state.latest.bucket,
        "name": state.name,
        "latest": state.latest.version,
        "versions": state.versions,
        "type": state.latest.type,
        "bytes": state.latest.size,
        "bytes_of_all": state.size,
        "created": describe_record(state.latest)["created"],
    }


def _object_row(state: ObjectState) -> list[str]:
    latest = state.latest
    return [latest.version, f"{state.versions:,}", *_facts(latest), state.name]


def _facts(record: Record) -> list[str]:
    age = human_duration(max(0.0, time.time() - record.created))
    return [human_size(record.size), age, record.type]


def _where(ctx: click.Context, bucket: str) -> str:
    url = printable(runtime_of(ctx).store.url)
    return url if bucket == DEFAULT else f"bucket {bucket} in {url}"


@catalog.command()
@click.argument("label", metavar="OBJECT")
@in_bucket
@as_json
@click.pass_context
def show(ctx: click.Context, label: str, bucket: str, as_json: bool) -> None:
    """Show a version's record, and how often its object is used. Doesn't read the content."""
    name, version = split_label(label)
    record = _catalog(ctx, bucket).info(name, version or LATEST)
    described = describe_record(record)
    used = describe_usage(usage_of(runtime_of(ctx)).get((bucket, name)))
    if as_json:
        print_json({**described, "usage": used})
        return
    size = human_size(record.size)
    texts = {
        **described,
        "tags": ", ".join(record.tags) or "-",
        "bytes": f"{size} ({record.size:,} bytes)" if record.size >= 1000 else size,
        "digest": record.digest or "-",
        "metadata": json.dumps(record.metadata, ensure_ascii=False),
        "used": f"{used['loads']:,} loads ({used['hits']:,} from copies), "
        f"{used['refs']:,} references, {used['late']:,} late arguments; all versions, last 90 days",
        "last used": used["last_used"] or "-",
    }
    print_rows((key, str(value)) for key, value in texts.items())


@catalog.command()
@click.argument("name")
@in_bucket
@as_json
@click.pass_context
def versions(ctx: click.Context, name: str, bucket: str, as_json: bool) -> None:
    """List an object's versions, lowest first."""
    found = _catalog(ctx, bucket).info(name)
    if as_json:
        print_json_list(map(describe_record, found))
        return
    rows = (
        [each.version, *_facts(each), ", ".join(each.tags) or "-", _metadata(each)]
        for each in found
    )
    print_pages(rows, _VERSIONS)


def _metadata(record: Record) -> str:
    if record.metadata is None:
        return "-"
    text = json.dumps(record.metadata, ensure_ascii=False)
    return text if len(text) <= _METADATA else f"{text[: _METADATA - 1]}…"


@catalog.command()
@click.argument("prefix", default="")
@click.option("--type", "kind", help="Only values of this type, such as DataFrame.")
@click.option(
    "--metadata",
    "conditions",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only versions with this metadata; VALUE is JSON, or else text. Repeatable.",
)
@click.option("--since", type=DURATION, metavar="TIME", help="Only from the last 30m, 6h, 7d…")
@click.option("--larger-than", type=SIZE, metavar="SIZE", help="Only of more than 500kB, 1.5MB…")
@limit_option
@in_bucket
@as_json
@click.pass_context
def find(
    ctx: click.Context,
    prefix: str,
    kind: str | None,
    conditions: tuple[str, ...],
    since: float | None,
    larger_than: float | None,
    limit: int | None,
    bucket: str,
    as_json: bool,
) -> None:
    """Find versions of objects whose names start with PREFIX, filtered by their records.

    The exit code is 1 if none match.
    """
    found = _catalog(ctx, bucket).find(
        prefix,
        type=kind,
        metadata=dict(map(_condition, conditions)) or None,
        since=None if since is None else time.time() - since,
        larger_than=None if larger_than is None else int(larger_than),
    )[:limit]
    if as_json:
        print_json_list(describe_record(each, tags=False) for each in found)
    else:
        rows = ([each.version, *_facts(each), each.name, _metadata(each)] for each in found)
        print_pages(rows, _FOUND)
    if not found:
        ctx.exit(1)


def _condition(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"--metadata takes KEY=VALUE, not {text[:100]!r}")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


# -- change


@catalog.command()
@click.argument("label", metavar="OBJECT")
@click.argument("tag")
@click.option("--remove", is_flag=True, help="Remove the tag instead.")
@in_bucket
@as_json
@click.pass_context
def tag(ctx: click.Context, label: str, tag: str, remove: bool, bucket: str, as_json: bool) -> None:
    """Point TAG to a version, moving it from any other version of the object.

    With --remove, the exit code is 1 if there was no such tag.
    """
    objects = _catalog(ctx, bucket)
    name, version = split_label(label)
    if remove:
        if version is not None:
            raise click.UsageError("--remove takes a name without a version")
        had = objects.untag(name, tag)
    else:
        objects.tag(name, tag, version or LATEST)
        had = True
    tags = objects.tags(name)
    if as_json:
        print_json({"name": name, "tag": tag, "version": tags.get(tag)})
    elif remove:
        click.echo(printable(f"{name}: {'removed' if had else 'there is no'} tag {tag}"))
    else:
        click.echo(printable(f"{name}: {tag} is {tags.get(tag)}"))
    if not had:
        ctx.exit(1)


@catalog.command()
@click.argument("label", metavar="OBJECT")
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="The file to write, which must not exist; - is standard output.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@in_bucket
@as_json
@click.pass_context
def get(
    ctx: click.Context, label: str, output: Path, force: bool, bucket: str, as_json: bool
) -> None:
    """Write an object to a file.

    Bytes are written unchanged, strings as UTF-8, arrays as .npy, frames and tables as Arrow files,
    and other data as JSON. Other objects are refused. A pickle is read only if the app accepts
    pickle.
    """
    to_stream = output == _STREAM
    if to_stream and as_json:
        raise click.UsageError("--json can't be combined with --output -")
    if not to_stream and output.exists() and not force:
        raise click.UsageError(f"{output} already exists: add --force to replace it")
    objects = _catalog(ctx, bucket)
    name, version = split_label(label)
    record = objects.info(name, version or LATEST)
    value = objects.load(name, record.version)
    if to_stream:
        with open_stream() as file:
            write_value(value, file)
        return
    with open_output(output) as file:
        form = write_value(value, file)
        size = file.tell()
    if as_json:
        print_json(
            {"name": name, "version": record.version, "bytes": size, "output": str(output)}
            | {"form": form}
        )
    else:
        click.echo(printable(f"{output}: {record.label}, {human_size(size)}, {form}"))


@catalog.command()
@click.argument("label", metavar="OBJECT")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--as",
    "form",
    type=click.Choice(["bytes", "text", "json"]),
    default="bytes",
    show_default=True,
    help="How to read the file.",
)
@click.option("--metadata", metavar="JSON", help="Metadata to store with the version.")
@click.option("--skip", is_flag=True, help="Succeed without saving if the version exists.")
@in_bucket
@as_json
@click.pass_context
def put(
    ctx: click.Context,
    label: str,
    file: Path,
    form: str,
    metadata: str | None,
    skip: bool,
    bucket: str,
    as_json: bool,
) -> None:
    """Save FILE (- is standard input) as a new version of an object.

    If OBJECT has no version, the next number is used. Existing versions are never replaced.
    """
    name, version = split_label(label)
    objects = _catalog(ctx, bucket)
    about = None if metadata is None else _parsed("--metadata", metadata)
    content = _content(file, runtime_of(ctx).settings.max_size)
    value: Any = content
    if form != "bytes":
        try:
            value = content.decode()
        except UnicodeDecodeError as exc:
            raise click.UsageError(f"{file} isn't UTF-8: {exc.reason}") from exc
        if form == "json":
            value = _parsed(str(file), value)
    try:
        record = objects.save(
            name, value, version, metadata=about, on_conflict="skip" if skip else "error"
        )
    except VersionConflict as exc:
        text = str(exc).replace("pass on_conflict='skip'", "pass --skip")
        raise click.ClickException(printable(text)) from exc
    if as_json:
        print_json(describe_record(record, tags=False))
    else:
        click.echo(printable(f"{record.label}: {human_size(record.size)}, {record.type}"))


def _parsed(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise click.UsageError(f"{what} isn't JSON: {exc}") from exc


def _content(path: Path, most: int) -> bytes:
    """Read a file. Raises ValueTooLarge if it has more than *most* bytes."""
    try:
        with sys.stdin.buffer if path == _STREAM else path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as exc:
        raise click.FileError(str(path), exc.strerror or str(exc)) from exc
    if len(content) > most:
        raise ValueTooLarge(f"{path} is over offload_max_size ({human_size(most)})")
    return content


@catalog.command()
@click.argument("labels", nargs=-1, required=True, metavar="OBJECT...")
@click.option("--all", "everything", is_flag=True, help="Remove all versions if none is named.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask for confirmation.")
@in_bucket
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; needs --yes.")
@click.pass_context
def rm(
    ctx: click.Context,
    labels: tuple[str, ...],
    everything: bool,
    yes: bool,
    bucket: str,
    as_json: bool,
) -> None:
    """Remove versions, or whole objects with --all.

    Their content is deleted after a grace period, unless something else needs it. The exit code is
    1 if a version or object doesn't exist, or can't be removed, and 69 if the store is unavailable.
    """
    if as_json and not yes:
        raise click.UsageError("--json can't prompt: add --yes")
    wanted = {label: split_label(label) for label in dict.fromkeys(labels)}
    for label, (_, version) in wanted.items():
        if version is None and not everything:
            raise click.UsageError(
                f"{label}: name a version, such as {label}@1, or add --all to remove all versions"
            )
    objects = _catalog(ctx, bucket)
    if not yes:
        question = f"Remove {some([*wanted])} from {_where(ctx, bucket)}?"
        click.confirm(printable(question), abort=True)
    names, versions = map(list, zip(*wanted.values(), strict=True))
    outcome = objects.remove(names, versions)
    removed = {label: count or 0 for label, count in zip(wanted, outcome.results, strict=True)}
    errors = {
        label: str(error)
        for label, error in outcome.errors.items()
        if not isinstance(error, ObjectNotFound)
    }
    if as_json:
        print_json({"removed": removed, "errors": errors})
    else:
        for label, count in removed.items():
            done = f"removed {count:,} version{'s' * (count != 1)}" if count else "doesn't exist"
            click.echo(printable(f"{label}: {errors.get(label, done)}"))
    if outcome.failed:
        unavailable = any(isinstance(error, StoreUnavailable) for error in outcome.errors.values())
        ctx.exit(UNAVAILABLE if unavailable else 1)
