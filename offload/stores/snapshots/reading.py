"""Adding up what lies on a shelf."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from offload.errors import StoreUnavailable
from offload.stores.accounts import Accounts
from offload.stores.processes import PerProcess
from offload.stores.snapshots.names import is_part
from offload.stores.snapshots.shelf import Entry, Head, Shelf
from offload.stores.snapshots.written import FromLater, Snapshot, Unreadable, read

__all__ = ("Found", "Reader")

logger = logging.getLogger(__name__)

_TURNS = 5
_AT_ONCE = 1000

Found = Snapshot | Unreadable | FromLater


class Reader:
    """Reads parts and the head, and remembers those that do not change."""

    def __init__(self, shelf: Shelf, head: Head) -> None:
        self._shelf = shelf
        self._head = head
        self._kept: PerProcess[dict[str, tuple[str, Snapshot]]] = PerProcess(dict)
        self._kept_head: PerProcess[dict[str, Snapshot]] = PerProcess(dict)

    def sum(self) -> Accounts:
        """Return what all processes wrote."""
        entries = [entry for entry in self._shelf.entries() if is_part(entry.name)]
        parts = self._remembered(entries)
        _, head = self.head()  # after the parts: what went meanwhile is in it
        accounts = Accounts()
        covers: Collection[str] = ()
        if isinstance(head, Snapshot):
            accounts.add(head.accounts)
            covers = head.covers
        for name, snapshot in parts.items():
            if name not in covers:
                accounts.add(snapshot.accounts)
        accounts.prune(self._shelf.now())
        return accounts

    def parts(self, names: Sequence[str]) -> dict[str, Found]:
        """Return the content of parts, without those that went meanwhile."""
        found = {}
        for at in range(0, len(names), _AT_ONCE):
            some = names[at : at + _AT_ONCE]
            for name, content in zip(some, self._shelf.read(some), strict=True):
                if content is not None:
                    found[name] = self._read(name, content)
        return found

    def _remembered(self, entries: Sequence[Entry]) -> dict[str, Snapshot]:
        """Return the content of parts that can be read; only what changed is read again."""
        kept = self._kept.get()
        found: dict[str, Snapshot] = {}
        for entry in entries:
            tag, snapshot = kept.get(entry.name, ("", None))
            if snapshot is not None and tag == entry.tag:
                found[entry.name] = snapshot
        rest = self.parts([entry.name for entry in entries if entry.name not in found])
        found.update({name: each for name, each in rest.items() if isinstance(each, Snapshot)})
        tags = {entry.name: entry.tag for entry in entries}
        kept.clear()
        kept.update({name: (tags[name], each) for name, each in found.items()})
        return found

    def head(self) -> tuple[str | None, Found | None]:
        """Return the head's name and content; None if there is none."""
        kept = self._kept_head.get()
        for _ in range(_TURNS):
            name = self._head.find()
            if name is None or name in kept:
                return name, kept.get(name or "")
            (content,) = self._shelf.read([name])
            if content is not None:
                found = self._read(name, content)
                kept.clear()
                if isinstance(found, Snapshot):
                    kept[name] = found
                return name, found
        if name == self._head.find():
            logger.warning("%s: statistics are lost, as %s is gone", self._shelf.url, name)
            return name, Unreadable("it is gone")
        raise StoreUnavailable(
            f"statistics in {self._shelf.url} changed whenever they were looked at, {_TURNS} times",
            store=self._shelf.url,
        )

    def _read(self, name: str, content: bytes) -> Found:
        try:
            return read(content)
        except (FromLater, Unreadable) as exc:
            logger.warning("%s: stats/%s is left out of statistics: %s", self._shelf.url, name, exc)
            return exc
