"""`SQLiteStore`, and its pointers, leases, and statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from sqlite3 import Connection

from offload.stores.bases import REMEMBER
from offload.stores.capabilities import SmallFile
from offload.stores.checks import check_name, check_owner, check_ttl, check_value
from offload.stores.protocols import LeaseInfo, SweepItem
from offload.stores.sqlite.blobs import SQLiteBlobs
from offload.stores.sqlite.database import Database
from offload.stores.url import StoreURL, boolean, file_mode, seconds

_POINTER = "SELECT value FROM pointer WHERE name = ?"
_FILE = "SELECT content FROM file WHERE name = ?"


class SQLiteStore:
    """A store in the SQLite file *path*, shared by the processes of one machine.

    Args:
        timeout: seconds to wait for other processes' transactions.
        fsync: whether writes survive a power failure. They always survive the death of a process.
        mode: permissions of the file, such as 0o660 for users of one group; None makes it private
            to its owner.
        clock: returns seconds since 1970.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        timeout: float = 30.0,
        fsync: bool = True,
        mode: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        path = Path(path).absolute()
        self.url = f"sqlite://{path.as_posix()}"
        self.database = Database(
            path, self.url, timeout=timeout, fsync=fsync, mode=mode or 0o600, clock=clock
        )
        self.blobs = SQLiteBlobs(self.database)
        self.pointers = SQLitePointers(self.database)
        self.leases = SQLiteLeases(self.database)
        self.files = SQLiteFiles(self.database)

    def sweep(self, *, dry_run: bool = False) -> Iterator[SweepItem]:
        """Delete what has expired, unless *dry_run*, and free its space; yield it."""
        yield from self.leases.sweep(dry_run=dry_run)
        yield from self.blobs.sweep(dry_run=dry_run)

    def close(self) -> None:
        """Close this process's connection; the next call opens another."""
        self.database.close()


def open_sqlite(url: StoreURL) -> SQLiteStore:
    """Open ``sqlite:///path/offload.db``.

    Options: ``timeout`` (seconds), ``fsync``, ``mode`` (octal, such as ``0660``).
    """
    if url.hosts or not url.path.strip("/") or url.path.endswith("/"):
        url.refuse("expected sqlite:///path/to/offload.db, with three slashes")
    return SQLiteStore(
        Path(url.path),
        timeout=url.take("timeout", seconds, 30.0),
        fsync=url.take("fsync", boolean, True),
        mode=url.take("mode", file_mode, None),
    )


class SQLitePointers:
    """Pointers, one row each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, name: str) -> bytes | None:
        return self.read_all([name])[0]

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        checked = list(map(check_name, names))
        with self._database.reading() as connection:
            return [_value(connection, _POINTER, name) for name in checked]

    def swap(self, name: str, expected: bytes | None, value: bytes | None) -> bool:
        check_name(name)
        if value is not None:
            check_value(value)
        with self._database.writing() as connection:
            if _value(connection, _POINTER, name) != expected:
                return False
            if value is None:
                connection.execute("DELETE FROM pointer WHERE name = ?", (name,))
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO pointer VALUES (?, ?)", (name, bytes(value))
                )
            return True

    def names(self, prefix: str = "") -> Iterator[str]:
        # Not as a range, whose end SQLite compares with whole rows: it would read each value.
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT name FROM pointer WHERE substr(name, 1, ?) = ?", (len(prefix), prefix)
            ).fetchall()
        return (row[0] for row in rows)


class SQLiteLeases:
    """Leases by the machine's clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, name: str, owner: str, ttl: float) -> int | None:
        check_name(name), check_owner(owner)
        ttl = check_ttl(ttl)
        with self._database.writing() as connection:
            now = self._database.now()
            row = connection.execute(
                "SELECT owner, fence, until + 0.0 FROM lease WHERE name = ?", (name,)
            ).fetchone()
            present, fence, until = row or ("", 0, 0.0)
            if until <= now:
                fence = max(fence + 1, int(now * 1e6))  # increases even if a sweep deleted the row
            elif present != owner:
                return None
            connection.execute(
                "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?)", (name, owner, fence, now + ttl)
            )
            number: int = fence
            return number

    def renew(self, name: str, owner: str, ttl: float) -> bool:
        ttl = check_ttl(ttl)
        return self._set_end(name, owner, self._database.now() + ttl)

    def release(self, name: str, owner: str) -> bool:
        return self._set_end(name, owner, 0.0)

    def read(self, name: str) -> LeaseInfo | None:
        check_name(name)
        now = self._database.now()
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT owner, fence, until + 0.0 FROM lease WHERE name = ? AND until > ?",
                (name, now),
            ).fetchone()
        return None if row is None else LeaseInfo(row[0], row[1], row[2] - now)

    def names(self, prefix: str = "") -> Iterator[str]:
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT name FROM lease WHERE substr(name, 1, ?) = ? AND until > ?",
                (len(prefix), prefix, self._database.now()),
            ).fetchall()
        return (row[0] for row in rows)

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete leases that ended a day ago, unless *dry_run*, and yield them."""
        last = self._database.now() - REMEMBER
        ended = "FROM lease WHERE max(until, fence / 1e6) < ?"  # a released lease has only a fence
        access = self._database.reading if dry_run else self._database.writing
        with access() as connection:
            rows = connection.execute(f"SELECT name {ended}", (last,)).fetchall()
            if not dry_run:
                connection.execute(f"DELETE {ended}", (last,))
        for (name,) in rows:
            yield SweepItem("lease", name, 0, "ended a day ago")

    def _set_end(self, name: str, owner: str, until: float) -> bool:
        check_name(name)
        with self._database.writing() as connection:
            changed = connection.execute(
                "UPDATE lease SET until = ? WHERE name = ? AND owner = ? AND until > ?",
                (until, name, owner, self._database.now()),
            )
            return changed.rowcount == 1


class SQLiteFiles:
    """The statistics of processes, each a small file."""

    has_pointers = True

    def __init__(self, database: Database) -> None:
        self.url = database.url
        self._database = database

    def entries(self) -> list[SmallFile]:
        with self._database.reading() as connection:
            rows = connection.execute("SELECT name, length(content), written FROM file").fetchall()
        return [SmallFile(name, size, f"{written}-{size}", written) for name, size, written in rows]

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        with self._database.reading() as connection:
            return [_value(connection, _FILE, name) for name in names]

    def write(self, name: str, content: bytes) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO file VALUES (?, ?, ?)",
                (name, self._database.now(), content),
            )

    def remove(self, names: Sequence[str]) -> None:
        with self._database.writing() as connection:
            connection.executemany("DELETE FROM file WHERE name = ?", [(name,) for name in names])

    def now(self) -> float:
        return self._database.now()

    def sure_time(self) -> float:
        return self._database.now()


def _value(connection: Connection, query: str, name: str) -> bytes | None:
    row = connection.execute(query, (name,)).fetchone()
    return None if row is None else row[0]
