"""``celery -A proj inspect offload``: what each worker is set to, has, and did."""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from importlib import metadata, util
from typing import Any

from offload.content.cache import open_cache
from offload.content.keyring import fingerprints, keys_from_store
from offload.errors import OffloadError
from offload.forks import guard_forks
from offload.hooks.runtime import Runtime
from offload.ref import WIRE_VERSION, Keys
from offload.serializers.native import name_of

__all__ = ("NO_KEYS", "install", "state_of")

NO_KEYS = Keys(())
"""Of a store that has none yet."""

_NAME = "offload"
_FILE = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)  # of a value, in the node cache
_MOST = 100  # queues
_PATIENCE = 0.5  # seconds for which an answer waits for the store
_PACKAGES = ("numpy", "pandas", "polars", "pyarrow")


def install() -> None:
    """Have workers answer, and ``celery inspect`` know it; once per process.

    Only those two have imported what knows the commands: publishers shall not.
    """
    control = sys.modules.get("celery.worker.control")
    if control is not None and _NAME not in control.Panel.data:
        told = "What offload is set to, has in its cache, and did."
        control.inspect_command(name=_NAME, help=told)(_answer)


def _answer(state: Any, **_: Any) -> dict[str, Any]:
    runtime = getattr(state.app, "_offload", None)
    return {} if runtime is None else state_of(runtime, _store_keys(runtime))


_asking = threading.Lock()


def _store_keys(runtime: Runtime) -> Keys | None:
    """Return the key that the store keeps, by which stores are told apart; the first to ask
    provisions it. None if the store doesn't answer soon: a worker's main process must not wait.
    """
    if not _asking.acquire(blocking=False):
        return None  # an answer before is still waiting
    found: list[Keys] = []

    def ask() -> None:
        try:
            with suppress(OffloadError):
                found.append(keys_from_store(runtime.store.pointers))
        finally:
            _asking.release()

    guard_forks()
    thread = threading.Thread(target=ask, name="offload-control", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return found[0] if found else None


def state_of(runtime: Runtime, keys: Keys | None = None) -> dict[str, Any]:
    """Return what this process is set to, what its machine has in the node cache, and what the
    process itself counted; plain data without passwords. In a prefork worker the children
    count what they do: see `celery offload stats`.

    Nothing is asked of the store. *keys* are those that it keeps, if that is known.
    """
    return {
        "version": metadata.version("offload"),
        "wire": WIRE_VERSION,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "app": str(runtime.app.main or ""),
        "pid": os.getpid(),
        "store": runtime.store.url,
        "references": _references(runtime, keys),
        "queues": sorted(map(str, runtime.app.amqp.queues.consume_from))[:_MOST],
        "serializer": name_of(runtime.app.conf.task_serializer),
        "accepts": sorted(map(name_of, runtime.accepted)),
        "packages": [name for name in _PACKAGES if util.find_spec(name) is not None],
        "settings": _settings(runtime),
        "cache": _cache(runtime),
        "counters": {name: count for name, count in runtime.counters.snapshot().items() if count},
    }


def _references(runtime: Runtime, keys: Keys | None) -> dict[str, Any]:
    """Tell which keys sign references, the first, and which open them, all, and reveal none.

    *own* is whether they are this app's; else the store's. *store* tells stores apart: the
    fingerprint of the key that each keeps, "" if it has none yet, None if that isn't known.
    """
    own = bool(runtime.settings.secret)
    known = runtime.content.known_keys if own else keys or runtime.content.known_keys
    return {
        "own": own,
        "keys": [] if known is None else fingerprints(known),
        "store": None if keys is None else next(iter(fingerprints(keys)), ""),
    }


def _settings(runtime: Runtime) -> dict[str, Any]:
    """Return what can be told of the settings."""
    settings = runtime.settings
    told: dict[str, Any] = {
        field.name: _plain(getattr(settings, field.name))
        for field in fields(settings)
        if field.repr and field.name != "retention"  # others may hold passwords and keys
    }
    told["retention"] = runtime.retention
    if settings.code != "off":
        told["verify_keys"] = sorted(runtime.classes.policy.keys)  # their ids
        told["signing_key"] = runtime.classes.signer_id
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, (str, int, float, bool)) else vars(value)


def _cache(runtime: Runtime) -> Mapping[str, Any] | None:
    cache = open_cache(runtime.store.url, runtime.settings, runtime.counters)
    if cache is None:
        return None
    folder = cache.folder
    try:
        with os.scandir(folder.path) as entries:
            sizes = [entry.stat().st_size for entry in entries if _FILE.fullmatch(entry.name)]
        limit = folder.limit()
    except OSError:  # nothing was kept in it yet, or a file went just now
        return {"folder": str(folder.path)}
    return {"folder": str(folder.path), "values": len(sizes), "bytes": sum(sizes), "limit": limit}
