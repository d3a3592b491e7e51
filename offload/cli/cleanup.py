"""``celery offload gc``, ``purge``, and ``reencrypt``: maintain the store and queues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from offload.cli.options import as_json, runtime_of
from offload.cli.output import Progress, print_json
from offload.errors import ConfigurationError, StoreUnavailable
from offload.gc import SweepReport, sweep
from offload.hooks.message import EMBED, Note, restore_refs, task_holder
from offload.hooks.release import is_only_copy, release
from offload.hooks.runtime import Runtime
from offload.ref import Ref
from offload.stores.protocols import SweepItem
from offload.text import human_count, human_duration, human_size, printable

if TYPE_CHECKING:
    from offload.reencrypt import Report


_RELEASED = "released"
_SHARED = "shared"
_UNREADABLE = "unreadable"
_WITHOUT = "without"


@click.command()
@click.option("--dry-run", "-n", is_flag=True, help="Delete nothing; only report.")
@click.option("--verbose", "-v", is_flag=True, help="List each item with the reason.")
@as_json
@click.pass_context
def gc(ctx: click.Context, dry_run: bool, verbose: bool, as_json: bool) -> None:
    """Delete what has expired from the store.

    File, SQLite, S3, and fsspec stores need this because they don't delete anything by themselves.
    On Redis, it releases what killed savers of a catalog have left. It can run at any time. If
    another sweep of the store is running, this command does nothing and succeeds.
    """
    runtime = runtime_of(ctx)
    listed: list[dict[str, Any]] = []

    def seen(swept: SweepItem) -> None:
        progress.step(swept.size)
        if verbose and as_json:
            listed.append(
                {"kind": swept.kind, "name": swept.name, "bytes": swept.size, "why": swept.why}
            )
        elif verbose:
            line = f"{swept.kind}  {swept.name}  {human_size(swept.size)}  {swept.why}"
            click.echo(printable(line))

    with Progress(f"sweeping {runtime.store.url}", shown=not verbose) as progress:
        collected = sweep(runtime.store, dry_run=dry_run, seen=seen, cipher=runtime.content.cipher)
    if as_json:
        print_json({**collected.as_dict(), **({"swept": listed} if verbose else {})})
    else:
        _print(collected)


def _print(collected: SweepReport) -> None:
    if collected.busy is not None:
        click.echo(f"skipped: {collected.store} is being swept by {collected.busy}")
        return
    did = "would delete" if collected.dry_run else "deleted"
    what = ", ".join(
        f"{total.count} {kind}{'s' * (total.count != 1)}"
        for kind, total in sorted(collected.kinds.items())
    )
    click.echo(
        f"{collected.store}: {did} {what or 'nothing'} "
        f"({human_size(collected.size)}) in {collected.seconds:.1f} s"
    )


@click.command()
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@click.option("--force", "-f", is_flag=True, help="Don't ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; needs --force.")
@click.pass_context
def purge(ctx: click.Context, queues: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Delete all messages from queues, and release the values they hold.

    `celery purge -Q QUEUE` leaves the values in the store until their retention ends. This command
    has them deleted after offload_grace, unless something else holds them. It keeps values of
    messages that may have a copy in another queue. There is no undo.
    """
    if as_json and not force:
        raise click.UsageError("--json can't prompt: add --force")
    runtime = runtime_of(ctx)
    names = list(dict.fromkeys(queues))
    if not force:
        click.confirm(
            f"WARNING: This will remove all tasks from: {printable(', '.join(names))}.\n"
            "         There is no undo for this operation!\n\n"
            "(to skip this prompt use the -f option)\n"
            "Are you sure you want to delete all tasks?",
            abort=True,
        )
    counts = {name: Counter[str]() for name in names}
    with Progress("purging") as progress:
        for queue, holds in _discard(runtime, names):
            counts[queue][holds] += 1
            progress.step(0)
    if as_json:
        print_json({name: {"purged": c.total(), **c} for name, c in counts.items()})
        return
    for name, count in counts.items():
        click.echo(
            printable(f"Purged {human_count(count.total(), 'message')} from {name}{_holds(count)}.")
        )


def _holds(count: Counter[str]) -> str:
    """Describe what happened to the messages' values."""
    texts = {
        _RELEASED: "released the values of {}",
        _SHARED: "{} may have a copy in another queue, and their values expire by time",
        _UNREADABLE: "{} can't be read, and their values expire by time",
    }
    return "".join(f"; {text.format(count[kind])}" for kind, text in texts.items() if count[kind])


def _discard(runtime: Runtime, queues: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Discard the messages now in *queues*; yield each one's queue and what became of its holds.

    Holds are released, except those of messages that may have a copy in another queue (shared) or
    that this app can't read (unreadable); these expire by time. If the caller stops iterating, only
    the messages yielded so far are discarded. A queue that doesn't exist has no messages.

    Raises StoreUnavailable if the broker is unavailable.
    """
    app = runtime.app
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1)
            for name in queues:
                for message in _messages(connection, name, app.conf.accept_content):
                    yield name, _release(runtime, message)
        except (*connection.recoverable_connection_errors, OperationalError) as exc:
            raise StoreUnavailable(
                f"the broker {connection.as_uri()} is unavailable: {exc}"
            ) from exc


def _messages(connection: Any, name: str, accept: Any) -> Iterator[Any]:
    """Take messages from a queue and yield them; yield None for data that isn't a message."""
    channel = connection.channel()
    try:
        count = channel.queue_declare(name, passive=True).message_count
    except connection.channel_errors:
        return
    queue = Queue(name)(channel)
    for _ in range(count):  # not messages published meanwhile
        try:
            message = queue.get(no_ack=True, accept=accept)
        except (ValueError, LookupError, TypeError, AttributeError):  # not a kombu message
            yield None
            continue
        if message is None:
            return
        yield message


def _release(runtime: Runtime, message: Any) -> str:
    try:
        args, kwargs, embed = message.payload
        if EMBED not in embed:
            return _WITHOUT
        Note.read(embed[EMBED])
        parts = {**embed, "args": args, "kwargs": kwargs}
        _, name, wires = restore_refs(parts, parts.pop(EMBED))
        task_id = message.headers["id"]
    except Exception:  # another protocol, a serializer that isn't accepted, a broken note
        return _UNREADABLE
    if not (name and wires):
        return _WITHOUT
    if not is_only_copy(runtime.app, message.delivery_info):
        return _SHARED
    release(runtime, map(Ref.unbound, wires), task_holder(task_id, name))
    return _RELEASED


@click.command()
@click.option("--dry-run", "-n", is_flag=True, help="Move nothing; only count by key.")
@as_json
@click.pass_context
def reencrypt(ctx: click.Context, dry_run: bool, as_json: bool) -> None:
    """Encrypt catalogs, pins, and shipped classes again, with the first key.

    Messages and results keep their old keys until they expire. The report counts the blobs under
    each key. Once an old key has none, and no message from before the first key was added is
    waiting, you can remove it. The command can run at any time, and again after an interruption.
    The exit code is 1 if something couldn't be moved.
    """
    try:
        from offload.reencrypt import reencrypt as move
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "cryptography":
            raise
        raise ConfigurationError(
            'encryption needs cryptography: pip install "offload[encryption]"'
        ) from exc
    runtime = runtime_of(ctx)
    with Progress(f"reencrypting {runtime.store.url}") as progress:
        report = move(
            runtime.content,
            grace=runtime.grace,
            dry_run=dry_run,
            seen=lambda _: progress.step(0),
        )
    if as_json:
        print_json(report.as_dict())
    else:
        _print_moved(report)
    if report.failed:
        ctx.exit(1)


def _print_moved(report: Report) -> None:
    from offload.reencrypt import PLAIN

    moved = ", ".join(f"{count} {kind}s" for kind, count in sorted(report.moved.items()) if count)
    click.echo(f"moved to key {report.key}: {moved or 'nothing'}")
    for failure in report.failures:
        click.echo(printable(f"not moved: {failure}"))
    for key, under in sorted(report.keys.items()):
        name = "not encrypted" if key == PLAIN else f"key {key}"
        until = human_duration(under.ttl) if under.ttl < 1e9 else "never"
        last = "" if key == report.key else f"; the last expires: {until}"
        click.echo(f"{name}: {human_count(under.count, 'blob')}, {human_size(under.size)}{last}")
    if not report.failed and not report.others:
        click.echo(
            "no blob uses another key: once all messages sent before the first key was added "
            "are processed, you can remove the other keys"
        )
