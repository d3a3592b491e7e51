"""Blobs and their holds in a SQLite file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from sqlite3 import Connection

from offload.digest import Buffer, Digest
from offload.stores.capabilities import LISTED_HOLDS, BlobPeek
from offload.stores.checks import (
    check_holder,
    check_limit,
    check_ttl,
    missing_error,
    names_holder,
    size_error,
)
from offload.stores.protocols import PUT, BlobInfo, Parts, SweepItem
from offload.stores.sqlite.database import Database

_TIDIED = 8  # maximum number of expired blobs that a `put` deletes, to slow the file's growth
_SCANNED = 1000  # blobs that one statement reads


class SQLiteBlobs:
    """Blobs that expire with their last hold."""

    tracks_holds = True

    def __init__(self, database: Database) -> None:
        self._database = database

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_holder(holder)
        asked = set(digests)
        ttl = check_ttl(ttl)
        with self._database.writing() as connection:
            now = self._database.now()
            found = _column(
                connection,
                "SELECT digest FROM blob WHERE until > ?"
                " AND digest IN (SELECT value FROM json_each(?))",
                now,
                _listed(asked),
            )
            connection.execute(
                "UPDATE blob SET until = max(until, ?)"
                " WHERE digest IN (SELECT value FROM json_each(?))",
                (now + ttl, _listed(found)),
            )
            connection.executemany(
                "INSERT INTO hold VALUES (?, ?, ?) ON CONFLICT (digest, holder)"
                " DO UPDATE SET until = max(until, excluded.until)",
                [(digest, holder, now + ttl) for digest in asked],
            )
        return asked - found

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        ttl = check_ttl(ttl)
        contents = {digest: b"".join(parts) for digest, parts in blobs.items()}
        with self._database.writing() as connection:
            now = self._database.now()
            for digest, content in contents.items():
                kept = connection.execute(
                    "UPDATE blob SET until = max(until, ?) WHERE digest = ? AND until > ?",
                    (now + ttl, digest, now),
                )
                if kept.rowcount == 0:
                    connection.execute("DELETE FROM blob WHERE digest = ?", (digest,))
                    added = connection.execute(
                        "INSERT INTO blob (digest, size, until) VALUES (?, ?, ?)",
                        (digest, len(content), now + ttl),
                    )
                    connection.execute(
                        "INSERT INTO content VALUES (?, ?)", (added.lastrowid, content)
                    )
            connection.execute(
                "DELETE FROM blob WHERE id IN (SELECT id FROM blob WHERE until <= ? LIMIT ?)",
                (now, _TIDIED),
            )
            connection.execute(
                "DELETE FROM hold WHERE (digest, holder) IN"
                " (SELECT digest, holder FROM hold WHERE until <= ? LIMIT ?)",
                (now, _TIDIED),
            )

    def release(self, digests: Sequence[Digest], holder: str, grace: float) -> None:
        check_holder(holder)
        grace = check_ttl(grace)
        with self._database.writing() as connection:
            now = self._database.now()
            for digest in dict.fromkeys(digests):
                released = connection.execute(
                    "DELETE FROM hold WHERE digest = ? AND holder = ? AND until > ?",
                    (digest, holder, now),
                )
                if released.rowcount:
                    last = max(now + grace, _last_hold(connection, digest))
                    connection.execute(
                        "UPDATE blob SET until = min(until, ?) WHERE digest = ?", (last, digest)
                    )

    def holders(self, digest: Digest) -> Mapping[str, float]:
        return self._holds([digest]).get(digest, {})

    def count_holders(self, digests: Sequence[Digest]) -> list[int]:
        holds = self._holds(digests)
        return [len(holds.get(digest, ())) for digest in digests]

    def longest_holds(self, digests: Sequence[Digest]) -> list[Mapping[str, float]]:
        holds = self._holds(digests)
        return [
            dict(sorted(holds.get(d, {}).items(), key=lambda item: -item[1])[:LISTED_HOLDS])
            for d in digests
        ]

    def held_by(self, digests: Sequence[Digest], name: str) -> set[Digest]:
        holds = self._holds(digests)
        return {d for d, held in holds.items() if any(names_holder(h, name) for h in held)}

    def long_holds(self, least: float) -> Iterator[tuple[Digest, str, float]]:
        now = self._database.now()
        last = (now + least, "", "")
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(
                    "SELECT until, digest, holder FROM hold"
                    " WHERE (until, digest, holder) > (?, ?, ?)"
                    " ORDER BY until, digest, holder LIMIT ?",
                    (*last, _SCANNED),
                ).fetchall()
            if not rows:
                return
            last = rows[-1]
            for until, digest, holder in rows:
                yield digest, holder, until - now

    def delete_unheld(self, digests: Sequence[Digest]) -> set[Digest]:
        stay: set[Digest] = set()
        with self._database.writing() as connection:
            now = self._database.now()
            for digest in dict.fromkeys(digests):
                if _last_hold(connection, digest) > now:
                    stay.add(digest)
                else:
                    connection.execute("DELETE FROM blob WHERE digest = ?", (digest,))
        return stay

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        return (self._get(digest, limit) for digest in digests)

    def _get(self, digest: Digest, limit: int) -> Buffer:
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT size, content FROM blob LEFT JOIN content"
                " ON content.id = blob.id AND size <= ? WHERE digest = ? AND until > ?",
                (limit, digest, self._database.now()),
            ).fetchone()
        if found is None:
            raise missing_error(digest, self._database.url)
        if found[1] is None:
            raise size_error(digest, self._database.url, limit)
        content: bytes = found[1]
        return content

    def delete(self, digests: Iterable[Digest]) -> None:
        with self._database.writing() as connection:
            connection.executemany("DELETE FROM blob WHERE digest = ?", [(d,) for d in digests])

    def scan(self) -> Iterator[BlobInfo]:
        last = 0
        while True:
            now = self._database.now()
            with self._database.reading() as connection:
                rows = connection.execute(
                    "SELECT id, digest, size, until + 0.0 FROM blob WHERE id > ? AND until > ?"
                    " ORDER BY id LIMIT ?",
                    (last, now, _SCANNED),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            for _, digest, size, until in rows:
                yield BlobInfo(digest, size, until - now)

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        now = self._database.now()
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT digest, size, until + 0.0, substr(content, 1, ?)"
                " FROM blob JOIN content USING (id)"
                " WHERE until > ? AND digest IN (SELECT value FROM json_each(?))",
                (size, now, _listed(digests)),
            ).fetchall()
        found = {d: BlobPeek(length, until - now, part or b"") for d, length, until, part in rows}
        return [found.get(digest) for digest in digests]

    def find(self, prefix: str) -> Iterator[Digest]:
        with self._database.reading() as connection:
            found = _column(
                connection,
                "SELECT digest FROM blob WHERE digest >= ? AND digest < ?",
                prefix,
                prefix + "~",  # sorts after all characters of digests
            )
        return iter(found)

    def sweep(self, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete expired blobs and holds, unless *dry_run*, and free their space; yield blobs."""
        now = self._database.now()
        last = 0
        access = self._database.reading if dry_run else self._database.writing
        while True:
            with access() as connection:
                rows = connection.execute(
                    "SELECT id, digest, size FROM blob WHERE until <= ? AND id > ?"
                    " ORDER BY id LIMIT ?",
                    (now, last, _SCANNED),
                ).fetchall()
                if not dry_run:
                    connection.executemany(
                        "DELETE FROM blob WHERE id = ?", [(row[0],) for row in rows]
                    )
            if not rows:
                break
            last = rows[-1][0]
            for _, digest, size in rows:
                yield SweepItem("blob", digest, size, "expired")
        if not dry_run:
            with self._database.writing() as connection:
                connection.execute("DELETE FROM hold WHERE until <= ?", (now,))
            self._free()

    def _free(self) -> None:
        before = sys.maxsize
        while True:
            with self._database.reading() as connection:
                free = connection.execute("PRAGMA freelist_count").fetchone()[0]
                # Nothing is free, or an operator's VACUUM turned freeing off.
                if not 0 < free < before:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                    return
                before = free
                connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()  # pages

    def _holds(self, digests: Sequence[Digest]) -> dict[Digest, dict[str, float]]:
        """Return the holders of each held blob, with seconds left."""
        found: dict[Digest, dict[str, float]] = {}
        with self._database.reading() as connection:
            now = self._database.now()
            rows = connection.execute(
                "SELECT digest, holder, until + 0.0 FROM hold"
                " WHERE until > ? AND digest IN (SELECT value FROM json_each(?))",
                (now, _listed(digests)),
            ).fetchall()
        for digest, holder, until in rows:
            found.setdefault(digest, {})[holder] = until - now
        return found


def _last_hold(connection: Connection, digest: Digest) -> float:
    found = connection.execute("SELECT max(until) FROM hold WHERE digest = ?", (digest,))
    return float(found.fetchone()[0] or 0.0)


def _column(connection: Connection, query: str, *values: object) -> set[Digest]:
    # Don't read row by row: an interruption would leave the statement, and its snapshot, open.
    return {row[0] for row in connection.execute(query, values).fetchall()}


def _listed(digests: Iterable[Digest]) -> str:
    """Return digests as a parameter for ``json_each``, which accepts any number of them."""
    return json.dumps(list(digests))
