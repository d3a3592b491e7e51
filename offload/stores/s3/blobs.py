"""Blobs in S3: one object per blob, with its life in metadata. See `offload.stores.s3`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from offload.digest import Buffer, Digest
from offload.errors import StoreError, StoreUnavailable
from offload.stores.bases import ExpiringBlobs, blob_digest, blob_name
from offload.stores.capabilities import BlobPeek, Known, Named, Version, Wanted
from offload.stores.checks import (
    check_holder,
    check_ttl,
    contention_error,
    missing_error,
    size_error,
)
from offload.stores.protocols import FOREVER, BlobInfo, Parts, SweepItem, size_of
from offload.stores.s3.client import GONE_OR_CHANGED, Body, Conditions, Response, S3Client, body_of
from offload.stores.s3.driver_errors import driver_errors

NONCE = 16
"""Number of random bytes after a blob, so that no two writes of it have the same ETag."""
LARGEST = 5 << 30
"""Maximum bytes that S3 accepts, and copies, in one request."""
DELETES = 1000
"""Maximum number of objects that one request deletes."""
_TURNS = 20  # attempts to write a blob that others change at the same time
_TTL, _BEFORE, _ASKED = "offload-ttl", "offload-before", "offload-asked"
_CANDIDATES = 50_000  # blobs to check in one call whether something names them


@dataclass(frozen=True)
class Life:
    """State of a blob according to a response.

    Attributes:
        size: bytes of the object; None if the response doesn't include it.
        etag: the object's ETag.
        now: when the response was sent, in seconds since 1970.
        modified: when the object was written, or copied onto itself.
        ends: when the blob expires, in seconds since 1970; infinite for an object without metadata,
            which offload didn't write.
        asked: the end of the longest time requested: the same as `ends`, unless the blob was held
            `FOREVER`. After that, a sweep deletes it if nothing names it.
        is_kept: whether it was held `FOREVER`.
    """

    size: int | None
    etag: str
    now: float
    modified: datetime
    ends: float
    asked: float
    is_kept: bool

    @property
    def is_live(self) -> bool:
        return self.now < self.ends

    @property
    def can_extend(self) -> bool:
        """Whether it is certain that no sweep is about to delete it."""
        return self.now < self.asked


class S3Blobs(ExpiringBlobs):
    """Blobs as objects of a bucket; see `offload.stores.s3`, and `S3Store` for the arguments."""

    def __init__(
        self, client: S3Client, conditions: Conditions, *, skew: float, ahead: float, unnamed: float
    ) -> None:
        super().__init__(client.threads)
        self._client = client
        self._conditions = conditions
        self._skew = skew
        self._ahead = ahead
        self._unnamed = unnamed

    def put(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, value_size: int | None = None
    ) -> None:
        self._store(blobs, ttl, replace=False)

    def hold_and_put(self, blobs: Mapping[Digest, Wanted], holder: str) -> set[Digest]:
        check_holder(holder)

        def one(blob: tuple[Digest, Wanted]) -> bool:
            digest, wanted = blob
            if wanted.parts is None:
                return not self._extend_one(digest, wanted.ttl)
            return self._store_one(digest, wanted.parts, wanted.ttl, replace=False)[1]

        missing = self._threads.each(one, blobs.items())
        return {digest for digest, was in zip(blobs, missing, strict=True) if was}

    def delete(self, digests: Iterable[Digest]) -> None:
        keys = [{"Key": self._key(digest)} for digest in digests]
        batches = [keys[at : at + DELETES] for at in range(0, len(keys), DELETES)]
        self._threads.each(self._delete, batches)

    def scan(self) -> Iterator[BlobInfo]:
        for digest, life in self._lives():
            if life.is_live and life.size is not None:
                yield BlobInfo(digest, max(life.size - NONCE, 0), life.ends - life.now)

    def find(self, prefix: str) -> Iterator[Digest]:
        for page in self._client.pages("blobs", prefix.replace(":", "-")):
            yield from _digests(page)

    def sweep(
        self, known: Known | None = None, named: Named | None = None, *, dry_run: bool
    ) -> Iterator[SweepItem]:
        """Delete expired blobs, unless *dry_run*, and yield them; skip those that are *known*.

        If *named* is given, also delete blobs that were held `FOREVER` and aren't named. The server
        must support conditional deletes; see `Conditions.require_deletes`.
        """
        kept: dict[Digest, Life] = {}

        def expired() -> Iterator[tuple[Digest, Life]]:
            for digest, life in self._lives(known):
                if life.now >= life.ends + self._skew:
                    yield digest, life
                elif named is not None and life.is_kept and life.now >= life.asked + self._skew:
                    kept[digest] = life
                    if len(kept) == _CANDIDATES:
                        yield from unnamed()
            yield from unnamed()

        def unnamed() -> Iterator[tuple[Digest, Life]]:
            # The order matters: a writer that names one of these from now on has stored it again.
            stay = named(kept.keys()) if named is not None and kept else ()
            found = [(digest, life) for digest, life in kept.items() if digest not in stay]
            kept.clear()
            yield from found

        rest = expired()
        while some := list(islice(rest, DELETES)):
            gone = [True] * len(some)
            if not dry_run:
                seen = [(digest, life.etag) for digest, life in some]
                gone = self._threads.each(lambda found: self._remove(*found), seen)
            for (digest, life), is_gone in zip(some, gone, strict=True):
                if is_gone:
                    size = max((life.size or 0) - NONCE, 0)
                    why = f"expired {life.now - life.ends:.0f} s ago"
                    yield SweepItem(
                        "blob", digest, size, "nothing names it" if life.is_kept else why
                    )

    # -- versions: an ETag tells one write of a blob from another

    def extend(self, digests: Sequence[Digest], ttl: float) -> dict[Digest, float]:
        kept = self._threads.each(lambda digest: self._extend(digest, ttl), digests)
        return {d: left for d, left in zip(digests, kept, strict=True) if left is not None}

    def replace(self, blobs: Mapping[Digest, Parts], ttl: float) -> dict[Digest, float]:
        return self._store(blobs, ttl, replace=True)

    def versions(self, digests: Sequence[Digest]) -> dict[Digest, Version]:
        lives = self._threads.each(self.life_at, digests)
        return {
            digest: Version(life.etag, max((life.size or 0) - NONCE, 0))
            for digest, life in zip(digests, lives, strict=True)
            if life is not None
        }

    def delete_versions(self, versions: Mapping[Digest, Version]) -> set[Digest]:
        self._conditions.require_deletes()
        tags = [(digest, version.tag) for digest, version in versions.items()]
        done = self._threads.each(lambda seen: self._remove(*seen), tags)
        return {digest for digest, is_gone in zip(versions, done, strict=True) if is_gone}

    # -- lives

    def life(self, ttl: float) -> float:
        """Return the life in seconds to write for a blob that is requested for *ttl* seconds."""
        return self._promise(ttl) + self._skew

    def _promise(self, ttl: float) -> float:
        """Return the seconds for which such a blob certainly exists."""
        return check_ttl(check_ttl(ttl) * (1 + self._ahead))

    def _lasts(self, life: Life, ttl: float) -> bool:
        if ttl == FOREVER:
            return life.is_kept and life.asked >= life.now + self._unnamed + self._skew
        return life.asked >= life.now + check_ttl(ttl) + self._skew

    def _metadata(self, ttl: float, old: Life | None) -> dict[str, str]:
        """Return metadata for a blob requested for *ttl* seconds, without shortening its life."""
        asked = self.life(self._unnamed if ttl == FOREVER else ttl)
        if old is not None:
            asked = max(asked, old.asked - old.now)
        if ttl == FOREVER or (old is not None and old.is_kept):
            return {_TTL: f"{check_ttl(FOREVER):.3f}", _ASKED: f"{asked:.3f}"}
        return {_TTL: f"{asked:.3f}"}

    def _extend_one(self, digest: Digest, ttl: float) -> bool:
        return self._extend(digest, ttl) is not None

    def _extend(self, digest: Digest, ttl: float) -> float | None:
        """Keep a blob for at least *ttl* seconds; return how long it is kept, None if missing."""
        for _ in range(_TURNS):
            life = self.life_at(digest)
            if life is None or not life.is_live:
                return None
            if not life.can_extend:
                if self._rewrite(digest, life, ttl):
                    return self._promise(self._unnamed if ttl == FOREVER else ttl)
                continue
            if self._lasts(life, ttl):
                return life.asked - life.now - self._skew
            done = self._prolong(digest, life, ttl)
            if done is not None:
                return self._promise(ttl) if done else None
        raise contention_error(digest, self._client.url, _TURNS)

    def _prolong(self, digest: Digest, life: Life, ttl: float) -> bool | None:
        """Copy a blob onto itself, with a longer life; return whether it exists.

        Return None if it changed after *life* was read.
        """
        # The condition has a resolution of a second: within the second of the last write, it
        # can't tell whether the object was written again.
        if (early := life.modified.timestamp() + 1 - life.now) > 0:
            self._client.sleep(early)
        key = self._key(digest)
        status, answer = self._client.ask(
            "copy_object",
            GONE_OR_CHANGED,
            Key=key,
            CopySource={"Bucket": self._client.bucket, "Key": key},
            CopySourceIfUnmodifiedSince=life.modified,
            MetadataDirective="REPLACE",
            Metadata={**self._metadata(ttl, life), _BEFORE: f"{life.asked:.3f}"},
        )
        if status == 404:
            return False
        if status != 200:
            return None
        stamped: datetime | None = answer.get("CopyObjectResult", {}).get("LastModified")
        return stamped is None or int(stamped.timestamp()) < life.asked

    def _rewrite(self, digest: Digest, life: Life, ttl: float) -> bool:
        """Store a blob's content again, with other random bytes; return False if it changed.

        A sweep may have found that nothing names it, and may be about to delete the version with
        this ETag, which a copy onto itself would keep.
        """
        key = self._key(digest)
        status, answer = self._client.ask("get_object", GONE_OR_CHANGED, Key=key, IfMatch=life.etag)
        if status != 200:
            return False
        with closing(answer["Body"]) as body, driver_errors(self._client.url):
            content: bytes = body.read()
        status, _ = self._client.ask(
            "put_object",
            GONE_OR_CHANGED,
            Key=key,
            Body=body_of([memoryview(content)[:-NONCE], os.urandom(NONCE)]),
            Metadata=self._metadata(ttl, life),
            IfMatch=life.etag,
        )
        return status == 200

    def life_at(self, digest: Digest) -> Life | None:
        """Return the life of an existing object, expired or not."""
        status, answer = self._client.ask("head_object", (404,), Key=self._key(digest))
        return None if status == 404 else self._parse(answer)

    def _parse(self, answer: Response) -> Life:
        metadata: Mapping[str, str] = answer.get("Metadata", {})
        modified: datetime = answer["LastModified"]
        is_kept = _ASKED in metadata
        try:
            ends = modified.timestamp() + float(metadata[_TTL])
            asked = modified.timestamp() + float(metadata[_ASKED]) if is_kept else ends
            if float(metadata.get(_BEFORE, math.inf)) <= modified.timestamp():
                asked = -math.inf  # it was copied after it had expired; see `offload.stores.s3`
                ends = ends if is_kept else asked
        except (KeyError, ValueError):
            ends = asked = math.inf
            is_kept = False
        return Life(
            size=answer.get("ContentLength"),
            etag=answer.get("ETag", ""),
            now=self._client.now(answer),
            modified=modified,
            ends=ends,
            asked=asked,
            is_kept=is_kept,
        )

    def _lives(self, known: Known | None = None) -> Iterator[tuple[Digest, Life]]:
        """Yield the life of every blob that isn't *known*.

        Takes one request per blob, because listings don't include metadata.
        """
        for page in self._client.pages("blobs"):
            found = _digests(page)
            if known is not None and found:
                others = known(found)
                found = [digest for digest in found if digest not in others]
            lives = self._threads.each(self.life_at, found)
            for digest, life in zip(found, lives, strict=True):
                if life is not None:
                    yield digest, life

    # -- one object

    def _store(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, replace: bool
    ) -> dict[Digest, float]:
        """Store blobs; return for how many seconds each certainly exists.

        With *replace*, replace objects that already exist, without shortening their lives.
        """
        check_ttl(ttl)
        for digest, parts in blobs.items():
            if size_of(parts) + NONCE > LARGEST:
                raise StoreError(
                    f"{digest} has {size_of(parts)} bytes; "
                    f"{self._client.url} accepts up to {LARGEST}",
                    digest=digest,
                    store=self._client.url,
                )
        kept = self._threads.each(
            lambda blob: self._store_one(*blob, ttl, replace=replace)[0], blobs.items()
        )
        return dict(zip(blobs, kept, strict=True))

    def _store_one(
        self, digest: Digest, parts: Parts, ttl: float, *, replace: bool
    ) -> tuple[float, bool]:
        """Return for how many seconds the blob certainly exists, and whether this stored it."""
        key = self._key(digest)
        body = body_of([*parts, os.urandom(NONCE)])
        condition: dict[str, Any] = {"IfNoneMatch": "*"}
        metadata = self._metadata(ttl, None)
        for _ in range(_TURNS):
            status, _answer = self._client.ask(
                "put_object", GONE_OR_CHANGED, Key=key, Body=body, Metadata=metadata, **condition
            )
            if status == 200:
                return float(metadata.get(_ASKED, metadata[_TTL])) - self._skew, True
            # The object exists. Another client stored it, or this call did and the response was
            # lost, or the blob has expired.
            life = self.life_at(digest)
            if life is None:
                condition = {"IfNoneMatch": "*"}
            elif replace or not life.can_extend:
                condition = {"IfMatch": life.etag}
                metadata = self._metadata(ttl, life)
                replace = False  # if it changes now, another client has written it again
            elif self._lasts(life, ttl) or self._prolong(digest, life, ttl):
                return check_ttl(ttl), False
            if isinstance(body, Body):
                body.seek(0)
        raise contention_error(digest, self._client.url, _TURNS)

    def _get_one(self, digest: Digest, limit: int) -> Buffer:
        url = self._client.url
        status, answer = self._client.ask("get_object", (404,), Key=self._key(digest))
        if status == 200:
            life = self._parse(answer)
            # Closing a body before reading all of it closes the connection.
            with closing(answer["Body"]) as body, driver_errors(url):
                if life.is_live:
                    most = limit + NONCE
                    size = most + 1 if life.size is None else life.size
                    content: bytes = body.read() if size <= most else b""
                    if life.size is None:  # unknown if the server sends chunks
                        content = body.read(size)
                        size = len(content)
                    if size > most:
                        raise size_error(digest, url, limit)
                    return memoryview(content)[:-NONCE]
        raise missing_error(digest, url)

    def _peek_one(self, digest: Digest, size: int) -> BlobPeek | None:
        key = self._key(digest)
        # An object is never empty (see NONCE), so requesting a range never fails.
        status, answer = self._client.ask(
            "get_object", (404,), Key=key, Range=f"bytes=0-{max(size, 1) - 1}"
        )
        if status == 404:
            return None
        life = self._parse(answer)
        with closing(answer["Body"]) as body, driver_errors(self._client.url):
            prefix: bytes = body.read(size)
        whole = _whole_size(answer)
        if not life.is_live or whole is None:
            return None
        length = max(whole - NONCE, 0)
        age = max(life.now - life.modified.timestamp(), 0.0)
        return BlobPeek(length, life.ends - life.now, prefix[:length], age)

    def _remove(self, digest: Digest, etag: str) -> bool:
        """Delete a blob's object if it still has this ETag."""
        status, _ = self._client.ask(
            "delete_object", GONE_OR_CHANGED, Key=self._key(digest), IfMatch=etag
        )
        return status in (200, 204)

    def _delete(self, keys: list[dict[str, str]]) -> None:
        _, answer = self._client.ask("delete_objects", Delete={"Objects": keys, "Quiet": True})
        for error in answer.get("Errors", []):
            url, code, said = self._client.url, error.get("Code", ""), error.get("Message", "")
            kind = StoreError if code == "AccessDenied" else StoreUnavailable
            raise kind(f"{url} did not delete {error.get('Key')}: {code} {said}", store=url)

    def _key(self, digest: Digest) -> str:
        return f"{self._client.prefix}blobs/{blob_name(digest, self._client.url)}"


def _digests(page: Iterable[Mapping[str, Any]]) -> list[Digest]:
    names = (entry["Key"].rpartition("/")[2] for entry in page)
    return [digest for name in names if (digest := blob_digest(name)) is not None]


def _whole_size(answer: Response) -> int | None:
    """Return the full size of an object from the response to a range request."""
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    size = int(total) if total.isdigit() else answer.get("ContentLength")
    return None if size is None else int(size)
