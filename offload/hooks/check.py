"""The task of ``celery offload check``, which sends a value to a worker and back.

The task returns its value reversed: so the result is new to the store, and must have passed
through a worker. Besides, it leaves a receipt in the store, by which the command knows the worker,
and distinguishes a message that no worker got from a result that didn't come back. Where results
aren't stored, the receipt has the reference of the value.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from typing import Any

from offload.hooks.runtime import Runtime
from offload.stores.protocols import PointerStore

TASK = "offload.check"
_NAME = "offload/check"
_KEPT = 16  # receipts
_LONGEST = 255  # characters of an id or a name
_RETENTION = 300.0  # seconds


@dataclass(frozen=True)
class Receipt:
    """What a worker says about a check.

    Attributes:
        worker: its name.
        version: of offload there.
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
        ref = runtime.put(result, retention=_RETENTION).wire if by_receipt else ""
        name = str(task.request.hostname or "")[:_LONGEST]
        receipt = Receipt(name, metadata.version("offload"), ref)
        _write_receipt(runtime.store.pointers, str(task.request.id)[:_LONGEST], receipt)
        return None if by_receipt else result

    app.task(
        name=TASK,
        shared=False,  # else every app of the process would have it, also those without offload
        bind=True,
        ignore_result=False,
        resultrepr_maxsize=40,  # in the worker's log
        offload={"threshold": 0},
    )(check)


def _write_receipt(pointers: PointerStore, task_id: str, receipt: Receipt) -> None:
    """Add a receipt to the pointer that has the last ones, so that none has to be cleaned up."""
    while True:
        before = pointers.read(_NAME)
        known = {key: each for key, each in _parse(before).items() if key != task_id}
        last = dict([*known.items(), (task_id, asdict(receipt))][-_KEPT:])
        if pointers.swap(_NAME, before, json.dumps(last).encode()):
            return


def read_receipt(pointers: PointerStore, task_id: str) -> Receipt | None:
    """Return what a worker has left in the store when it ran the task; None if it hasn't."""
    found = _parse(pointers.read(_NAME)).get(task_id)
    if not isinstance(found, dict):
        return None
    texts = (str(found.get(each.name, "")) for each in fields(Receipt))
    return Receipt(*texts)


def _parse(written: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(written or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
