"""Compare settings of workers and this process, to find what fails or differs by accident."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from offload.inspect import Finding, Level
from offload.inspect.workers import Worker, Workers

_NAMED = 3  # workers to name in a sentence
_SHORT_REFS = 3  # version of the note in messages with short references
_SHOWN = 120  # characters of a value to show


@dataclass(frozen=True)
class _Rule:
    """A value that should be the same everywhere.

    Attributes:
        what: the value's name.
        value: returns a worker's value; None if it doesn't report one.
        level: the severity of a difference.
        effect: what a difference causes.
        remedy: what to do about it.
    """

    what: str
    value: Callable[[Worker], Any]
    level: Level
    effect: str
    remedy: str


def _setting(name: str, level: Level, effect: str) -> _Rule:
    def value(worker: Worker) -> Any:
        return worker.settings.get(name)

    return _Rule(f"offload_{name}", value, level, effect, f"set the same offload_{name} everywhere")


def _of_code(name: str) -> Callable[[Worker], Any]:
    """Return a function that reads a value from workers that load code."""

    def value(worker: Worker) -> Any:
        if worker.settings.get("code") in (None, "off"):
            return None
        return worker.reply.get(name, worker.settings.get(name))

    return value


_RULES = (
    _Rule(
        "the wire version",
        lambda worker: worker.reply.get("wire"),
        "error",
        "older versions refuse what newer ones publish",
        "upgrade offload on workers before publishers",
    ),
    _Rule(
        "the version of offload",
        lambda worker: worker.version or None,
        "info",
        "they are compatible",
        "finish the upgrade",
    ),
    _Rule(
        "the list of accepted serializers",
        lambda worker: worker.reply.get("accepts"),
        "warning",
        "a task fails if its values were written by a serializer that its worker doesn't accept",
        "set the same accept_content and offload_accept everywhere",
    ),
    _setting(
        "max_size",
        "warning",
        "processes with a smaller limit refuse larger values, no matter who published them",
    ),
    _setting("code", "warning", "only some processes load shipped classes"),
    _Rule(
        "offload_code_allow",
        _of_code("code_allow"),
        "warning",
        "only some processes may load a class",
        "set the same offload_code_allow everywhere",
    ),
    _Rule(
        "offload_verify_keys",
        _of_code("verify_keys"),
        "warning",
        "only some processes may load a signed class",
        "list the same keys in offload_verify_keys everywhere",
    ),
    _Rule(
        "the Python version",
        _of_code("python"),
        "info",
        "where the Python version differs, a class is loaded from its source, if that was shipped",
        "set offload_ship_source where classes are pushed",
    ),
    _Rule(
        "the packages for numpy, pandas, polars, and Arrow",
        lambda worker: worker.reply.get("packages"),
        "info",
        "their values can be read only where they are installed",
        "install them on the workers whose tasks receive such values",
    ),
    _setting("mode", "info", "only some processes store values"),
    _setting("results", "info", "only some processes store results"),
    _setting("retention", "info", "how long a value lives depends on who stored it"),
    _setting("grace", "info", "how long a value lives depends on who released it"),
)


def config_drift(own: Worker, found: Workers) -> Iterator[Finding]:
    """Yield the differences between this process (*own*) and the workers *found*.

    Doesn't compare settings that may differ on purpose: thresholds, caches, and retries.
    """
    if found.note:
        yield Finding("info", found.note)
    yield from _states(found.workers)
    connected = [worker for worker in found.workers if worker.state == "connected"]
    same_app = [worker for worker in connected if _is_of_app(own, worker)]
    differences = list(_differences([own, *same_app])) if same_app else []
    yield from differences
    for worker in connected:
        if worker not in same_app:
            yield _of_another_app(own, worker)
    if same_app and not differences:
        yield Finding("ok", f"{_count(same_app)} and this process agree")


_COMPARED = ("version", "python", "store", "serializer", "accepts", "packages")  # keys of a reply


def differing_settings(own: Worker, worker: Worker) -> dict[str, tuple[Any, Any]]:
    """Return settings that differ from this process (*own*), as (worker's value, own value).

    Compares all settings, including those that may differ on purpose. The value of a setting that
    one side doesn't know is None. The result is empty if the worker didn't reply.
    """
    if not worker.reply:
        return {}
    pairs = {name: (worker.reply.get(name), own.reply.get(name)) for name in _COMPARED}
    for name in sorted({*worker.settings, *own.settings}):
        pairs[f"offload_{name}"] = (worker.settings.get(name), own.settings.get(name))
    return {name: pair for name, pair in pairs.items() if _plain(pair[0]) != _plain(pair[1])}


def _plain(value: Any) -> str:
    """Return a value as JSON, which makes lists and tuples equal."""
    return json.dumps(value, sort_keys=True, default=str)


def _states(workers: Sequence[Worker]) -> Iterator[Finding]:
    without = [worker for worker in workers if worker.state == "without"]
    if without:
        yield Finding(
            "warning",
            f"{_names(without)}: offload is missing; tasks with stored values fail there",
            "install offload there and connect the app with Offload(app), unless the workers run "
            "no tasks of this app",
        )
    for worker in workers:
        if worker.state in ("silent", "unreadable"):
            yield Finding(
                "warning",
                f"{worker.name} can't be compared: {worker.reason}",
                "check its log; a worker with the solo pool replies once its task is done",
            )


def _is_of_app(own: Worker, worker: Worker) -> bool:
    """Return whether a worker runs tasks of this process's app, even if its app's name differs."""
    queues = _list(own.reply.get("queues"))
    return worker.app == own.app or any(
        queue in queues for queue in _list(worker.reply.get("queues"))
    )


def _of_another_app(own: Worker, worker: Worker) -> Finding:
    differing = [f.what for f in _differences([own, worker]) if f.level in ("error", "warning")]
    what = f"{worker.name} belongs to another app, {worker.app!r}"
    if not differing:
        return Finding("ok", f"{what}, and agrees")
    return Finding(
        "info",
        f"{what}, and differs from this process: {'; '.join(differing)}",
        "if it runs tasks of this app, use the same settings for both",
    )


def _differences(workers: Sequence[Worker]) -> Iterator[Finding]:
    yield from _keys(workers)
    yield from _stores(workers)
    yield from _signers(workers)
    yield from _writers(workers)
    yield from _short_refs(workers)
    for rule in _RULES:
        groups = _groups(workers, rule.value)
        if len(groups) > 1:
            what = f"{rule.what} differs: {_format_groups(groups)}; {rule.effect}"
            yield Finding(rule.level, what, rule.remedy)


# -- checks that compare more than one value


def _keys(workers: Sequence[Worker]) -> Iterator[Finding]:
    """Check that each process accepts the references that the others sign."""
    reporting = [worker for worker in workers if worker.mapping("references")]
    kinds = _groups(reporting, lambda worker: worker.mapping("references").get("own") is True)
    remedy = (
        "set the same offload_secret everywhere (or the same offload_encryption_keys, from which "
        "keys are derived); to change it, list the new one last everywhere, and then first"
    )
    if len(kinds) > 1:
        yield Finding(
            "error",
            "references are signed with offload_secret, or with a key derived from "
            f"offload_encryption_keys, by {_names(kinds['true'])}, and with the store's key by "
            f"{_names(kinds['false'])}: each refuses the other's (InvalidRef)",
            remedy,
        )
        return
    if "true" not in kinds:
        return  # all use the store's key, and `_stores` compares stores
    for key, signers in _groups(reporting, _first_key).items():
        signing = json.loads(key)
        others = [w for w in reporting if (known := _known(w)) and signing not in known]
        if others:
            yield Finding(
                "error",
                f"references signed by {_names(signers)} are refused by {_names(others)}: their "
                "offload_secret, or offload_encryption_keys, differ",
                remedy,
            )


def _stores(workers: Sequence[Worker]) -> Iterator[Finding]:
    """Check that all use one store, identified by the key in it, or else by its URL."""
    stores = _groups(workers, _store_key)
    if len(stores) > 1:
        named = "; ".join(
            f"{_cut(_store_urls(users))} in {_names(users)}" for users in stores.values()
        )
        yield Finding(
            "error",
            f"offload_store names different stores: {named}; a value can be read only from the "
            "store that it was written to",
            "set the same offload_store everywhere",
        )
        return
    compared = {worker.store for worker in workers if _store_key(worker)}
    urls = _groups(workers, lambda worker: worker.store or None)
    if len(urls) > 1 and not compared.issuperset(map(json.loads, urls)):
        yield Finding(
            "warning",
            f"offload_store differs: {_format_groups(urls)}; a value can be read only from the "
            "store that it was written to",
            "set the same offload_store everywhere; ignore this if both URLs name the same store",
        )


def _signers(workers: Sequence[Worker]) -> Iterator[Finding]:
    """Check that each process that loads signed classes accepts the keys of all signers."""
    readers = [worker for worker in workers if worker.settings.get("code") == "signed"]
    for key, signers in _groups(workers, lambda w: w.settings.get("signing_key")).items():
        others = [
            reader
            for reader in readers
            if json.loads(key) not in _list(reader.settings.get("verify_keys"))
        ]
        if others:
            yield Finding(
                "error",
                f"classes signed by {_names(signers)}, with key {json.loads(key)}, aren't loaded "
                f"by {_names(others)}",
                "add the public key that `celery offload classes keygen` printed with it to "
                "offload_verify_keys",
            )


def _writers(workers: Sequence[Worker]) -> Iterator[Finding]:
    """Check that all processes accept the serializers that the others write with."""
    for key, writers in _groups(workers, lambda worker: worker.text("serializer") or None).items():
        name = json.loads(key)
        others = [
            worker
            for worker in workers
            if (accepts := _list(worker.reply.get("accepts"))) and name not in accepts
        ]
        if others:
            yield Finding(
                "error",
                f"values written in {name} (task_serializer) by {_names(writers)} aren't accepted "
                f"by {_names(others)}",
                f"add {name} to accept_content there, or use another serializer",
            )


def _short_refs(workers: Sequence[Worker]) -> Iterator[Finding]:
    """Check that all processes can read short references if any writes them."""
    writers = [worker for worker in workers if worker.settings.get("short_refs") is True]
    others = [worker for worker in workers if not _reads_short_refs(worker)]
    if writers and others:
        yield Finding(
            "error",
            f"messages of {_names(writers)} have short references (offload_short_refs), which "
            f"{_names(others)} with an older offload can't read",
            "upgrade offload there, or unset offload_short_refs until then",
        )


def _reads_short_refs(worker: Worker) -> bool:
    note = worker.reply.get("note")
    return isinstance(note, int) and note >= _SHORT_REFS


def _known(worker: Worker) -> list[Any]:
    return _list(worker.mapping("references").get("keys"))


def _first_key(worker: Worker) -> Any:
    return next(iter(_known(worker)), None)


def _store_key(worker: Worker) -> Any:
    references = worker.mapping("references")
    if "store" in references or references.get("own") is True:
        return references.get("store")
    return _first_key(worker)  # older versions report the store's key only here


def _store_urls(workers: Sequence[Worker]) -> str:
    return ", ".join(dict.fromkeys(worker.store for worker in workers))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# -- formatting


def _groups(workers: Sequence[Worker], value: Callable[[Worker], Any]) -> dict[str, list[Worker]]:
    """Group workers by a value, as JSON; skip workers that don't report it."""
    groups: dict[str, list[Worker]] = {}
    for worker in workers:
        reported = value(worker)
        if reported is not None:
            groups.setdefault(json.dumps(reported, sort_keys=True), []).append(worker)
    return groups


def _format_groups(groups: dict[str, list[Worker]]) -> str:
    return "; ".join(f"{_cut(value)} in {_names(workers)}" for value, workers in groups.items())


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _names(workers: Sequence[Worker]) -> str:
    names = [worker.name for worker in workers[:_NAMED]]
    rest = len(workers) - len(names)
    return ", ".join(names) + (f" and {rest} others" if rest else "")


def _count(workers: Sequence[Worker]) -> str:
    return f"{len(workers)} worker{'s' * (len(workers) != 1)}"
