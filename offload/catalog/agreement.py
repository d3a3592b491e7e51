"""Whether workers, and this process, are set to what goes together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from offload.catalog.findings import Finding, Level
from offload.catalog.workers import Asked, Worker

__all__ = ("agreement",)

_NAMED = 3  # workers that a sentence names
_SHOWN = 120  # characters of a value


@dataclass(frozen=True)
class _Rule:
    """What is to be the same everywhere: *value* gives it, None where it is not told."""

    what: str
    value: Callable[[Worker], Any]
    level: Level
    so: str
    remedy: str


def _setting(name: str, level: Level, so: str, remedy: str = "") -> _Rule:
    def value(worker: Worker) -> Any:
        return worker.settings.get(name)

    return _Rule(f"offload_{name}", value, level, so, remedy or f"set offload_{name} alike on all")


def _of_code(name: str) -> Callable[[Worker], Any]:
    """Return what gives this where code is loaded at all."""

    def value(worker: Worker) -> Any:
        if worker.settings.get("code") in (None, "off"):
            return None
        return worker.told.get(name, worker.settings.get(name))

    return value


_RULES = (
    _Rule(
        "the wire version",
        lambda worker: worker.told.get("wire"),
        "error",
        "the older ones refuse what the newer ones publish",
        "upgrade offload on workers before publishers",
    ),
    _Rule(
        "the version of offload",
        lambda worker: worker.version or None,
        "info",
        "they understand one another",
        "finish the upgrade",
    ),
    _Rule(
        "what is accepted",
        lambda worker: worker.told.get("accepts"),
        "warning",
        "a task fails where its values were written by a serializer that is not accepted",
        "set accept_content and offload_accept alike on all",
    ),
    _setting(
        "max_size",
        "warning",
        "larger values are refused where it is smaller, whoever published them",
    ),
    _setting("code", "warning", "shipped classes are loaded by some only"),
    _Rule(
        "offload_code_allow",
        _of_code("code_allow"),
        "warning",
        "a class may be loaded by some only",
        "set offload_code_allow alike on all",
    ),
    _Rule(
        "offload_verify_keys",
        _of_code("verify_keys"),
        "warning",
        "a signed class may be loaded by some only",
        "list the same keys in offload_verify_keys on all",
    ),
    _Rule(
        "the Python",
        _of_code("python"),
        "info",
        "a class is loaded from its source where the Python is another, if that was shipped",
        "set offload_ship_source where classes are pushed",
    ),
    _Rule(
        "the packages for numpy, pandas, polars and Arrow",
        lambda worker: worker.told.get("packages"),
        "info",
        "values of theirs can be read only where they are installed",
        "install them on the workers whose tasks receive such values",
    ),
    _setting("mode", "info", "values are stored by some only"),
    _setting("results", "info", "results are stored by some only"),
    _setting("retention", "info", "how long a value lives depends on who stored it"),
    _setting("grace", "info", "how long a value lives depends on who gave it up"),
)


def agreement(own: Worker, asked: Asked) -> Iterator[Finding]:
    """Yield what does not go together in the workers that were *asked* and in this process.

    What is set apart for good reasons is not compared: thresholds, caches, retries.
    """
    if asked.note:
        yield Finding("info", asked.note)
    yield from _states(asked.workers)
    connected = [worker for worker in asked.workers if worker.state == "connected"]
    alike = [worker for worker in connected if _is_of(own, worker)]
    differences = list(_differences([own, *alike])) if alike else []
    yield from differences
    for worker in connected:
        if worker not in alike:
            yield _of_another(own, worker)
    if alike and not differences:
        yield Finding("ok", f"{_count(alike)} and this process agree")


def _states(workers: Sequence[Worker]) -> Iterator[Finding]:
    without = [worker for worker in workers if worker.state == "without"]
    if without:
        yield Finding(
            "warning",
            f"{_names(without)}: no offload there; a task with a stored value fails on it",
            "install offload there and connect the app by Offload(app); if it takes no tasks of "
            "this app, nothing is to be done",
        )
    for worker in workers:
        if worker.state in ("silent", "unreadable"):
            yield Finding(
                "warning",
                f"{worker.name} could not be compared: {worker.why}",
                "look at its log; a worker that only runs one task at a time answers when that is "
                "done",
            )


def _is_of(own: Worker, worker: Worker) -> bool:
    """Return whether a worker takes tasks of this process' app, whatever its own is called."""
    queues = _list(own.told.get("queues"))
    return worker.app == own.app or any(
        queue in queues for queue in _list(worker.told.get("queues"))
    )


def _of_another(own: Worker, worker: Worker) -> Finding:
    differing = [f.what for f in _differences([own, worker]) if f.level in ("error", "warning")]
    what = f"{worker.name} is of another app, {worker.app!r}"
    if not differing:
        return Finding("ok", f"{what}, and agrees")
    return Finding(
        "info",
        f"{what}, and does not go together with this process: {'; '.join(differing)}",
        "if it takes tasks of this app, have the two agree",
    )


def _differences(workers: Sequence[Worker]) -> Iterator[Finding]:
    yield from _keys(workers)
    yield from _stores(workers)
    yield from _signers(workers)
    yield from _writers(workers)
    for rule in _RULES:
        groups = _groups(workers, rule.value)
        if len(groups) > 1:
            yield Finding(
                rule.level, f"{rule.what} differs: {_told(groups)}; {rule.so}", rule.remedy
            )


# -- what more than equality decides


def _keys(workers: Sequence[Worker]) -> Iterator[Finding]:
    """Whether references that one signs are opened by all."""
    told = [worker for worker in workers if worker.mapping("references")]
    kinds = _groups(told, lambda worker: worker.mapping("references").get("own") is True)
    remedy = (
        "set offload_secret alike on all; while it is changed, have all accept the new one "
        "(listed last) before any signs with it (listed first)"
    )
    if len(kinds) > 1:
        yield Finding(
            "error",
            f"references are signed with offload_secret by {_names(kinds['true'])}, and with the "
            f"store's key by {_names(kinds['false'])}: each refuses the other's (InvalidRef)",
            remedy,
        )
        return
    if "true" not in kinds:
        return  # it is the store's key, and stores are compared
    for key, signers in _groups(told, _first_key).items():
        opened = json.loads(key)
        others = [w for w in told if (known := _known(w)) and opened not in known]
        if not others:
            continue
        yield Finding(
            "error",
            f"references signed by {_names(signers)} are refused by {_names(others)}: another "
            "offload_secret",
            remedy,
        )


def _stores(workers: Sequence[Worker]) -> Iterator[Finding]:
    """Whether all use one store: known by the key that it keeps, else by its URL."""
    stores = _groups(workers, _store_key)
    if len(stores) > 1:
        named = "; ".join(
            f"{_cut(_names_of_stores(users))} in {_names(users)}" for users in stores.values()
        )
        yield Finding(
            "error",
            f"offload_store names different stores: {named}; a value is found only in the store "
            "that it was put into",
            "have offload_store name the same store on all",
        )
        return
    known = {worker.store for worker in workers if _store_key(worker)}  # and compared
    urls = _groups(workers, lambda worker: worker.store or None)
    if len(urls) > 1 and not known.issuperset(map(json.loads, urls)):
        yield Finding(
            "warning",
            f"offload_store differs: {_told(urls)}; a value is found only in the store that it "
            "was put into",
            "have offload_store name the same store on all; if these are names of one and the "
            "same, nothing is to be done",
        )


def _signers(workers: Sequence[Worker]) -> Iterator[Finding]:
    """Whether classes that one signs are loaded by all that load signed ones."""
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
                f"classes signed by {_names(signers)}, with key {json.loads(key)}, are not loaded "
                f"by {_names(others)}",
                "add what `celery offload classes keygen` printed for it to offload_verify_keys",
            )


def _writers(workers: Sequence[Worker]) -> Iterator[Finding]:
    """Whether what one writes is accepted by all."""
    for key, writers in _groups(workers, lambda worker: worker.text("serializer") or None).items():
        name = json.loads(key)
        others = [
            worker
            for worker in workers
            if (accepts := _list(worker.told.get("accepts"))) and name not in accepts
        ]
        if others:
            yield Finding(
                "error",
                f"what is written in {name} (task_serializer) by {_names(writers)} is not accepted "
                f"by {_names(others)}",
                f"add {name} to accept_content there, or write by another",
            )


def _known(worker: Worker) -> list[Any]:
    return _list(worker.mapping("references").get("keys"))


def _first_key(worker: Worker) -> Any:
    return next(iter(_known(worker)), None)


def _store_key(worker: Worker) -> Any:
    references = worker.mapping("references")
    if "store" in references or references.get("own") is True:
        return references.get("store")
    return _first_key(worker)  # of an older offload


def _names_of_stores(workers: Sequence[Worker]) -> str:
    return ", ".join(dict.fromkeys(worker.store for worker in workers))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# -- words


def _groups(workers: Sequence[Worker], value: Callable[[Worker], Any]) -> dict[str, list[Worker]]:
    """Return who has which value, as JSON; without those that do not tell."""
    groups: dict[str, list[Worker]] = {}
    for worker in workers:
        told = value(worker)
        if told is not None:
            groups.setdefault(json.dumps(told, sort_keys=True), []).append(worker)
    return groups


def _told(groups: dict[str, list[Worker]]) -> str:
    return "; ".join(f"{_cut(value)} in {_names(workers)}" for value, workers in groups.items())


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _names(workers: Sequence[Worker]) -> str:
    names = [worker.name for worker in workers[:_NAMED]]
    rest = len(workers) - len(names)
    return ", ".join(names) + (f" and {rest} others" if rest else "")


def _count(workers: Sequence[Worker]) -> str:
    return f"{len(workers)} worker{'s' * (len(workers) != 1)}"
