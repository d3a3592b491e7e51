"""Extend Celery's own commands for operators, and register two tasks.

- ``celery inspect offload`` reports the settings, node cache, and counters of each worker, without
  secrets.
- ``celery report`` and ``celery inspect conf`` show store URLs without their credentials.
- The task ``offload.gc``, registered on every app with offload, sweeps the store.
- The task ``offload.check``, also registered on each, answers ``celery offload check``. It returns
  its value reversed, so that the result is new to the store, and proves that a worker made it. It
  also leaves a receipt in the store, which names the worker. So the command can distinguish a
  message that no worker got from a result that didn't come back. If results aren't stored, the
  receipt has the result's reference.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib import metadata, util
from typing import Any

from celery.app import utils
from celery.utils.log import get_task_logger

from offload.content.cache import open_cache
from offload.content.signing import fingerprints, keys_from_store, stored_keys
from offload.errors import OffloadError
from offload.forks import start_thread
from offload.gc import sweep
from offload.hooks.celery_internals import patch
from offload.hooks.message import NOTE_VERSION
from offload.hooks.runtime import Runtime
from offload.ref import WIRE_VERSION, Keys
from offload.serializers.kombu import name_of
from offload.stores.protocols import PointerStore
from offload.stores.url import shown_url

_CACHE_FILE = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)
_PACKAGES = ("numpy", "pandas", "polars", "pyarrow")
_QUEUES_SHOWN = 100


def state_of(runtime: Runtime, keys: Keys | None = None) -> dict[str, Any]:
    """Return the settings, node cache, and counters of this process as plain data without secrets.

    In a prefork worker each child has counters of its own; `celery offload stats` adds them up.
    Doesn't contact the store.

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
    """Return the settings that contain no passwords or keys."""
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


_COMMAND = "offload"
_GC_TASK = "offload.gc"
_STORE_TIMEOUT = 0.5  # seconds that a reply waits for the store
_FILTER = "filter_hidden_settings"
_MASK = "********"
_STORE_KEY = re.compile(r"(?:.*_)?offload_store", re.IGNORECASE)
_OPTIONS_KEY = re.compile(r"(?:.*_)?offload_store_options", re.IGNORECASE)

_logger = get_task_logger(__name__)


def install() -> None:
    """Add the inspect command, and mask store credentials; once per process.

    The command is added only in processes that have imported Celery's control commands (workers
    and ``celery inspect``), so that publishers don't import them.
    """
    patch(utils, _FILTER, _masking_filter)
    control = sys.modules.get("celery.worker.control")
    if control is not None and _COMMAND not in control.Panel.data:
        title = "Show offload's settings, node cache, and counters."
        control.inspect_command(name=_COMMAND, help=title)(_reply)


# -- celery inspect offload


def _reply(state: Any, **_: Any) -> dict[str, Any]:
    runtime = getattr(state.app, "_offload", None)
    return {} if runtime is None else state_of(runtime, _store_keys(runtime))


_asking = threading.Lock()


def _store_keys(runtime: Runtime) -> Keys | None:
    """Return the key kept in the store, which identifies the store; provision it if necessary.

    With encryption keys, it isn't provisioned, as it would sign nothing.

    Return None if the store doesn't reply soon, as a worker's main process must not wait.
    """
    if not _asking.acquire(blocking=False):
        return None  # an earlier reply is still waiting
    found: list[Keys] = []

    def ask() -> None:
        try:
            with suppress(OffloadError):
                pointers = runtime.store.pointers
                if runtime.keyring is None:
                    found.append(keys_from_store(pointers))
                else:
                    found.append(stored_keys(pointers) or Keys(()))
        finally:
            _asking.release()

    start_thread(ask, "offload-control").join(_STORE_TIMEOUT)
    return found[0] if found else None


# -- celery report, celery inspect conf


def _masking_filter(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Extend Celery's filter, which masks passwords in the broker's and the backend's URL and
    settings whose names look like secrets; it doesn't know store URLs.
    """

    def filter_hidden_settings(conf: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _masked(key, value) for key, value in original(conf).items()}

    return filter_hidden_settings


def _masked(key: object, value: Any) -> Any:
    if not isinstance(key, str) or value is None:
        return value
    if _OPTIONS_KEY.fullmatch(key):
        return _MASK
    if _STORE_KEY.fullmatch(key):
        is_list = isinstance(value, (list, tuple))
        return [shown_url(url) for url in value] if is_list else shown_url(value)
    return value


# -- celery beat


def register_gc_task(runtime: Runtime, app: Any) -> None:
    """Register the task ``offload.gc`` on *app*, which may be finalized already."""

    def gc(dry_run: bool = False) -> dict[str, Any]:
        """Delete expired blobs from the store; see `offload.gc.sweep`."""
        collected = sweep(runtime.store, dry_run=dry_run, cipher=runtime.content.cipher)
        if collected.busy is not None:
            _logger.info("skipped: %s is being swept by %s", collected.store, collected.busy)
        return collected.as_dict()

    # Not shared: otherwise, apps without offload in the same process would have it, too.
    app.task(name=_GC_TASK, shared=False, ignore_result=True, offload=False)(gc)


# -- celery offload check

CHECK_TASK = "offload.check"
_RECEIPTS = "offload/check"
_RECEIPTS_KEPT = 16
_LONGEST_NAME = 255  # characters of an id or a name
_RESULT_RETENTION = 300.0  # seconds


@dataclass(frozen=True)
class Receipt:
    """A worker's record of the check that it ran.

    Attributes:
        worker: the worker's name.
        version: the version of offload that it has.
        ref: wire text of the result's reference; "" if the result backend has the result.
    """

    worker: str
    version: str
    ref: str = ""


def register_check_task(runtime: Runtime, app: Any) -> None:
    """Register the task ``offload.check`` on *app*, which may be finalized already."""

    def check(task: Any, value: Any, by_receipt: bool = False) -> Any:
        """Return *value* reversed; with *by_receipt*, through the store alone."""
        result = value[::-1]
        ref = runtime.put(result, retention=_RESULT_RETENTION).wire if by_receipt else ""
        name = str(task.request.hostname or "")[:_LONGEST_NAME]
        receipt = Receipt(name, metadata.version("offload"), ref)
        _write_receipt(runtime.store.pointers, str(task.request.id)[:_LONGEST_NAME], receipt)
        return None if by_receipt else result

    app.task(
        name=CHECK_TASK,
        shared=False,  # otherwise, apps without offload in the same process would have it, too
        bind=True,
        ignore_result=False,
        resultrepr_maxsize=40,  # in the worker's log
        offload={"threshold": 0},
    )(check)


def _write_receipt(pointers: PointerStore, task_id: str, receipt: Receipt) -> None:
    """Add a receipt to the pointer that keeps only the last few, so that none must be deleted."""
    while True:
        before = pointers.read(_RECEIPTS)
        known = {key: each for key, each in _parse_receipts(before).items() if key != task_id}
        last = dict([*known.items(), (task_id, asdict(receipt))][-_RECEIPTS_KEPT:])
        if pointers.swap(_RECEIPTS, before, json.dumps(last).encode()):
            return


def read_receipt(pointers: PointerStore, task_id: str) -> Receipt | None:
    """Return the receipt that a worker wrote when it ran the task; None if there is none."""
    found = _parse_receipts(pointers.read(_RECEIPTS)).get(task_id)
    if not isinstance(found, dict):
        return None
    texts = (str(found.get(each.name, "")) for each in fields(Receipt))
    return Receipt(*texts)


def _parse_receipts(written: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(written or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
