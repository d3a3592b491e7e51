"""Connections to a SQLite file, one per process, and transactions on them."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from offload.errors import StoreError, StoreUnavailable

_VERSION = 1  # version of the tables
_PAGE_SIZE = 16384  # bytes; larger than the default, because most content is blobs
_LOG_LIMIT = 64 << 20  # bytes of the write-ahead log to keep for reuse
_CREATE = """
CREATE TABLE blob (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, until REAL NOT NULL
);
CREATE INDEX blob_until ON blob (until);
CREATE TABLE content (id INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TRIGGER blob_deleted AFTER DELETE ON blob
    BEGIN DELETE FROM content WHERE id = OLD.id; END;
CREATE TABLE hold (
    digest TEXT NOT NULL, holder TEXT NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (digest, holder)
) WITHOUT ROWID;
CREATE INDEX hold_until ON hold (until);
CREATE TABLE pointer (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE lease (
    name TEXT PRIMARY KEY, owner TEXT NOT NULL, fence INTEGER NOT NULL, until REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE file (name TEXT PRIMARY KEY, written REAL NOT NULL, content BLOB NOT NULL);
"""
_TEMPORARY = {
    "locked": "other processes locked it for too long",
    "full": "its disk is full: make room, or lower offload_retention",
    "disk I/O error": "its disk failed to read or write",
}
_HINTS = {
    "readonly": "this user may not write to it: check its owner and permissions",
    "unable to open": "check the path, its owner, and its permissions",
    "not a database": "another program wrote this file: choose another path",
    "malformed": "the file is damaged: restore it, or delete it to start with an empty store",
}


class Database:
    """A SQLite file.

    Args:
        path: path of the file; the first use creates it and its folder.
        url: the store's URL, for errors.
        timeout: seconds to wait for other processes' transactions.
        fsync: whether committed transactions survive a power failure; they always survive the
            death of a process.
        mode: permissions of the file.
        clock: returns seconds since 1970.
    """

    def __init__(
        self,
        path: Path,
        url: str,
        *,
        timeout: float,
        fsync: bool,
        mode: int,
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self.url = url
        self.now = clock
        self._timeout = timeout
        self._fsync = fsync
        self._mode = mode
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        _opened.add(self)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection; other threads of this process wait until the block ends."""
        with self._lock, self._errors():
            yield self._connect()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection, in a transaction that is rolled back if the block raises."""
        with self._lock, self._errors():
            connection = self._connect()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # it never started, or was already rolled back
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close this process's connection; the next call opens another."""
        with self._lock:
            self._disconnect()

    def _connect(self) -> sqlite3.Connection:
        """Return the connection; open it if there is none, or if the file was replaced."""
        if self._connection is not None:
            with suppress(FileNotFoundError):
                if self.path.stat().st_ino == self._inode:
                    return self._connection
            self._disconnect()
        self._create_file()
        connection = sqlite3.connect(
            self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._inode = self.path.stat().st_ino
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def _create_file(self) -> None:
        """Create the file with its permissions, which SQLite copies to its other files."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, self._mode))
            self.path.chmod(self._mode)  # regardless of the umask

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_LIMIT}")
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if _version(connection) == 0:
            # The tables were counted first. offload creates tables and sets the version in one
            # transaction, so tables without a version belong to another program.
            if tables:
                raise StoreError(
                    f"{self.url} can't be used: {_HINTS['not a database']}", store=self.url
                )
            # These two take effect only before the first table is created.
            connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._use_log(connection)
            connection.execute("BEGIN IMMEDIATE")
            if _version(connection) == 0:  # no other process has created them meanwhile
                for statement in _CREATE.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")
        if _version(connection) != _VERSION:
            raise StoreError(
                f"{self.url} was created by a newer version of offload: upgrade this one",
                store=self.url,
            )

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """Switch to a write-ahead log; retry, as SQLite doesn't wait for other processes here."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert SQLite's and the operating system's errors in this block to a StoreError."""
        try:
            yield
        except sqlite3.Error as exc:
            said = str(exc)
            for word, meaning in _TEMPORARY.items():
                if word in said:
                    raise StoreUnavailable(
                        f"{self.url}: {meaning} ({said})", store=self.url
                    ) from exc
            hint = next((hint for word, hint in _HINTS.items() if word in said), "check the file")
            raise StoreError(f"{self.url} can't be used ({said}): {hint}", store=self.url) from exc
        except OSError as exc:
            said = f"{exc.strerror or exc}: {exc.filename}" if exc.filename else str(exc)
            hint = _HINTS["unable to open"]
            raise StoreError(f"{self.url} can't be used ({said}): {hint}", store=self.url) from exc


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


# A forked child must not use an inherited connection, nor inherit one during a transaction, whose
# locks SQLite would attribute to the child. So connections are closed before a fork.
_opened: weakref.WeakSet[Database] = weakref.WeakSet()
_forking: list[Database] = []
_one_fork = threading.Lock()  # threads may fork at the same time, but `_forking` is for one fork


def _before_fork() -> None:
    _one_fork.acquire()
    for database in list(_opened):
        database._lock.acquire()  # noqa: SLF001 (this module's)
        _forking.append(database)
        database._disconnect()  # noqa: SLF001


def _after_fork() -> None:
    while _forking:
        _forking.pop()._lock.release()  # noqa: SLF001
    _one_fork.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
