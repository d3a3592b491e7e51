"""``celery -A proj inspect offload``: what each worker is set to, has, and did."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata, util
from typing import TYPE_CHECKING, Any

from offload.content.cache import open_cache
from offload.content.keyring import fingerprints
from offload.ref import WIRE_VERSION, Keys
from offload.serializers.native import name_of

if TYPE_CHECKING:
    from offload.hooks.app import Offload

__all__ = ("install", "state_of")

_NAME = "offload"
_FILE = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)  # of a value, in the node cache
_UNTOLD = frozenset({"store", "secret", "signing_key", "verify_keys"})  # may hold passwords
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
    hook = getattr(state.app, "_offload", None)
    return {} if hook is None else state_of(hook)


def state_of(hook: Offload, keys: Keys | None = None) -> dict[str, Any]:
    """Return what this process is set to, what its machine has in the node cache, and what the
    process itself counted; plain data without passwords. In a prefork worker the children
    count what they do: see `celery offload stats`.

    Nothing is asked of the store. *keys* are what references are signed with, where that is
    known; else as far as this process knows it already.
    """
    return {
        "version": metadata.version("offload"),
        "wire": WIRE_VERSION,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "app": str(hook.app.main or ""),
        "pid": os.getpid(),
        "store": hook.store.url,
        "references": _references(hook, keys),
        "serializer": name_of(hook.app.conf.task_serializer),
        "accepts": sorted(map(name_of, hook.accepted)),
        "packages": [name for name in _PACKAGES if util.find_spec(name) is not None],
        "settings": _settings(hook),
        "cache": _cache(hook),
        "counters": {name: count for name, count in hook.counters.snapshot().items() if count},
    }


def _references(hook: Offload, keys: Keys | None) -> dict[str, Any]:
    """Tell which keys sign references, the first, and which open them, all, and reveal none.

    *own* is whether they are this app's; else the store's.
    """
    own = bool(hook.settings.secret)
    known = keys or hook.content.known_keys
    return {"own": own, "keys": fingerprints(known) if known is not None else []}


def _settings(hook: Offload) -> dict[str, Any]:
    """Return what can be told of the settings."""
    settings = hook.settings
    told: dict[str, Any] = {
        field.name: _plain(getattr(settings, field.name))
        for field in fields(settings)
        if field.name not in _UNTOLD
    }
    if settings.code != "off":
        told["verify_keys"] = sorted(hook.classes.policy.keys)  # their ids
        told["signing_key"] = hook.classes.signer_id
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, (str, int, float, bool)) else vars(value)


def _cache(hook: Offload) -> Mapping[str, Any] | None:
    cache = open_cache(hook.store.url, hook.settings, hook.counters)
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
