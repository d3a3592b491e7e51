"""What a process reports about itself: its settings, node cache, and counters, without secrets."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata, util
from typing import Any

from offload.content.cache import open_cache
from offload.content.signing import fingerprints
from offload.hooks.message import NOTE_VERSION
from offload.hooks.runtime import Runtime
from offload.ref import WIRE_VERSION, Keys
from offload.serializers.kombu import name_of

__all__ = ("state_of",)

_CACHE_FILE = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)
_PACKAGES = ("numpy", "pandas", "polars", "pyarrow")
_QUEUES_SHOWN = 100


def state_of(runtime: Runtime, keys: Keys | None = None) -> dict[str, Any]:
    """Return the settings, node cache, and counters of this process as plain data without secrets.

    In a prefork worker each child has counters of its own; `celery offload stats` adds them up.
    The store isn't asked.

    Args:
        keys: the keys kept in the store, if they are known.
    """
    return {
        "version": metadata.version("offload"),
        "wire": WIRE_VERSION,
        "note": NOTE_VERSION,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "app": str(runtime.app.main or ""),
        "pid": os.getpid(),
        "store": runtime.store.url,
        "references": _key_state(runtime, keys),
        "queues": sorted(map(str, runtime.app.amqp.queues.consume_from))[:_QUEUES_SHOWN],
        "serializer": name_of(runtime.app.conf.task_serializer),
        "accepts": sorted(map(name_of, runtime.accepted)),
        "packages": [name for name in _PACKAGES if util.find_spec(name) is not None],
        "settings": _settings(runtime),
        "cache": _cache(runtime),
        "counters": {name: count for name, count in runtime.counters.snapshot().items() if count},
    }


def _key_state(runtime: Runtime, keys: Keys | None) -> dict[str, Any]:
    """Describe the keys of references by their fingerprints; the first key signs.

    ``own`` says whether the keys come from ``offload_secret`` or the encryption keys, rather than
    from the store.
    ``store`` is the fingerprint of the store's own key: "" if it has none, None if unknown.
    """
    own = bool(runtime.settings.secret or runtime.settings.encryption_keys)
    known = runtime.content.signing.known if own else keys or runtime.content.signing.known
    return {
        "own": own,
        "keys": [] if known is None else fingerprints(known),
        "store": None if keys is None else next(iter(fingerprints(keys)), ""),
    }


def _settings(runtime: Runtime) -> dict[str, Any]:
    """Return the settings that hold no passwords and keys."""
    settings = runtime.settings
    shown: dict[str, Any] = {
        field.name: _plain(getattr(settings, field.name))
        for field in fields(settings)
        if field.repr and field.name != "retention"
    }
    shown["retention"] = runtime.retention
    if settings.code != "off":
        shown["verify_keys"] = sorted(runtime.classes.policy.keys)  # their ids
        shown["signing_key"] = runtime.classes.signer_id
    return shown


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
            sizes = [entry.stat().st_size for entry in entries if _CACHE_FILE.fullmatch(entry.name)]
        limit = folder.limit()
    except OSError:  # nothing has been cached yet, or a file was removed just now
        return {"folder": str(folder.path)}
    return {"folder": str(folder.path), "values": len(sizes), "bytes": sum(sizes), "limit": limit}
