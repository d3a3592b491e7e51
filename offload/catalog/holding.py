"""Which blobs somebody holds."""

from __future__ import annotations

from itertools import islice

from offload.catalog.listing import account_of
from offload.catalog.snapshot import Snapshot
from offload.content.holds import holder
from offload.stores.protocols import Store

__all__ = ("held_by",)

_TOGETHER = 5000  # blobs that the store is asked about at once


def held_by(store: Store, snapshot: Snapshot, name: str) -> list[int]:
    """Return the places in *snapshot* of blobs that are held now in the name of a task, a result
    or a pin.

    All blobs are asked about that were held when the snapshot was taken: at 100,000 that takes
    seconds. Of which function a task is no holder tells.

    Args:
        name: id of the task, name of the pin, or a holder as `offload inspect` shows it.

    Raises ConfigurationError where no account is kept, StoreUnavailable.
    """
    account = account_of(store, needed=True)
    if account is None or not name:
        return []
    called = holder("", name)[1:]  # a long id is a hash there
    places = snapshot.held()
    found: list[int] = []
    while some := list(islice(places, _TOGETHER)):
        asked = [snapshot.digest(place) for place in some]
        held = account.held_by(asked, called)
        found += [place for place, digest in zip(some, asked, strict=True) if digest in held]
    return found
