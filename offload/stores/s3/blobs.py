"""Blobs in S3: one object each, which tells its life itself. See `offload.stores.s3`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from offload.digest import Buffer, Digest, parse_digest
from offload.errors import StoreError, StoreUnavailable
from offload.stores.capabilities import BlobPeek, Known, Version
from offload.stores.checks import check_holder, check_limit, check_ttl
from offload.stores.errors import contention_error, missing_error, size_error
from offload.stores.protocols import PUT, BlobInfo, Parts, SweepItem
from offload.stores.s3.body import Body, body_of, size_of
from offload.stores.s3.client import GONE_OR_CHANGED, Response, S3Client
from offload.stores.s3.driver_errors import driver_errors
from offload.stores.s3.records import Conditions

__all__ = ("BLOB", "S3Blobs")

NONCE = 16
"""Random bytes that follow a blob, so that no two writes of it have the same ETag."""
WINDOW = 32 << 20
"""Bytes read ahead (or one blob, if that is more)."""
LARGEST = 5 << 30
"""Bytes that S3 takes in one request, and copies in one."""
DELETES = 1000
"""Objects that one request deletes."""
_TURNS = 20
_TTL, _BEFORE = "offload-ttl", "offload-before"
BLOB = re.compile(r"b3-[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Life:
    """What an answer says about a blob.

    Attributes:
        size: bytes of the object; None if the answer does not say.
        now: when the answer was made.
        modified: when the object was written, or copied onto itself.
        ends: when the blob expires. An object that does not say (others put it there) is
            taken to live for ever: better kept than lost.
    """

    size: int | None
    etag: str
    now: float
    modified: datetime
    ends: float

    @property
    def is_live(self) -> bool:
        return self.now < self.ends


class S3Blobs:
    tracks_holds = False

    def __init__(
        self, client: S3Client, conditions: Conditions, *, skew: float, ahead: float
    ) -> None:
        self._client = client
        self._conditions = conditions
        self._skew = skew
        self._ahead = ahead

    def hold(self, digests: Sequence[Digest], ttl: float, holder: str = PUT) -> set[Digest]:
        check_holder(holder)
        check_ttl(ttl)
        asked = list(dict.fromkeys(digests))
        kept = self._client.threads.each(lambda digest: self.keep(digest, ttl), asked)
        return {digest for digest, left in zip(asked, kept, strict=True) if left is None}

    def release(
        self,
        digests: Sequence[Digest],  # noqa: ARG002
        holder: str,
        grace: float,  # noqa: ARG002
    ) -> None:
        """Do nothing: a blob lives as long as was ever asked for."""
        check_holder(holder)

    def holders(self, digest: Digest) -> dict[str, float]:  # noqa: ARG002
        return {}

    def put(
        self,
        blobs: Mapping[Digest, Parts],
        ttl: float,
        *,
        value_size: int | None = None,  # noqa: ARG002
    ) -> None:
        self._store_all(blobs, ttl, anew=False)

    def _store_all(
        self, blobs: Mapping[Digest, Parts], ttl: float, *, anew: bool
    ) -> dict[Digest, float]:
        """Store blobs; return for how many seconds each is sure to exist.

        *anew* replaces every object that existed before, without shortening any life.
        """
        check_ttl(ttl)
        for digest, parts in blobs.items():
            if size_of(parts) + NONCE > LARGEST:
                raise StoreError(
                    f"{digest} has {size_of(parts)} bytes; "
                    f"{self._client.url} takes up to {LARGEST}",
                    digest=digest,
                    store=self._client.url,
                )
        kept = self._client.threads.each(
            lambda blob: self._store(*blob, ttl, anew=anew), blobs.items()
        )
        return dict(zip(blobs, kept, strict=True))

    def get(self, digests: Sequence[Digest], limit: int) -> Iterator[Buffer]:
        check_limit(limit)
        window = max(WINDOW // max(limit, 1), 1)
        return self._client.threads.ahead(lambda digest: self._get(digest, limit), digests, window)

    def delete(self, digests: Iterable[Digest]) -> None:
        keys = [{"Key": self._key(digest)} for digest in digests]
        batches = [keys[at : at + DELETES] for at in range(0, len(keys), DELETES)]
        self._client.threads.each(self._delete, batches)

    def scan(self) -> Iterator[BlobInfo]:
        for digest, life in self._lives():
            if life.is_live and life.size is not None:
                yield BlobInfo(digest, max(life.size - NONCE, 0), life.ends - life.now)

    def look_at(self, digest: Digest, size: int) -> BlobPeek | None:
        """Return what there is of a blob, with its first *size* bytes; None if it has ended."""
        key = self._key(digest)
        # An object is never empty (see NONCE), so a range of it is never refused.
        status, answer = self._client.ask(
            "get_object", (404,), Key=key, Range=f"bytes=0-{max(size, 1) - 1}"
        )
        if status == 404:
            return None
        life = self._life_of(answer)
        with closing(answer["Body"]) as body, driver_errors(self._client.url):
            begin: bytes = body.read(size)
        whole = _whole(answer)
        if not life.is_live or whole is None:
            return None
        length = max(whole - NONCE, 0)
        age = max(life.now - life.modified.timestamp(), 0.0)
        return BlobPeek(length, life.ends - life.now, begin[:length], age)

    def peek(self, digests: Sequence[Digest], size: int) -> list[BlobPeek | None]:
        check_limit(size)
        return self._client.threads.each(lambda digest: self.look_at(digest, size), digests)

    def find(self, begin: str) -> Iterator[Digest]:
        for page in self._client.pages("blobs", begin.replace(":", "-")):
            yield from _digests(page)

    def sweep(self, known: Known | None = None, *, dry_run: bool) -> Iterator[SweepItem]:
        """Delete expired blobs, unless *dry_run*, and yield them; leave those *known*.

        The server must keep conditions on deletions: see `Conditions.require_deletes`.
        """
        expired = (
            (digest, life)
            for digest, life in self._lives(known)
            if life.now >= life.ends + self._skew
        )
        while some := list(islice(expired, DELETES)):
            gone = [True] * len(some)
            if not dry_run:
                seen = [(digest, life.etag) for digest, life in some]
                gone = self._client.threads.each(lambda found: self.remove(*found), seen)
            for (digest, life), is_gone in zip(some, gone, strict=True):
                if is_gone:
                    size = max((life.size or 0) - NONCE, 0)
                    yield SweepItem(
                        "blob", digest, size, f"expired {life.now - life.ends:.0f} s ago"
                    )

    def life(self, ttl: float) -> float:
        """Return the seconds for which a blob is written that is asked for for *ttl* seconds."""
        return self.promise(ttl) + self._skew

    def promise(self, ttl: float) -> float:
        """Return the seconds for which such a blob is sure to be there."""
        return check_ttl(check_ttl(ttl) * (1 + self._ahead))

    # -- versions: an ETag tells one write of a blob from another

    def extend(self, digests: Sequence[Digest], ttl: float) -> dict[Digest, float]:
        kept = self._client.threads.each(lambda digest: self.keep(digest, ttl), digests)
        return {d: left for d, left in zip(digests, kept, strict=True) if left is not None}

    def replace(self, blobs: Mapping[Digest, Parts], ttl: float) -> dict[Digest, float]:
        return self._store_all(blobs, ttl, anew=True)

    def versions(self, digests: Sequence[Digest]) -> dict[Digest, Version]:
        lives = self._client.threads.each(self.life_at, digests)
        return {
            digest: Version(life.etag, max((life.size or 0) - NONCE, 0))
            for digest, life in zip(digests, lives, strict=True)
            if life is not None
        }

    def delete_versions(self, versions: Mapping[Digest, Version]) -> set[Digest]:
        self._conditions.require_deletes()
        tags = [(digest, version.tag) for digest, version in versions.items()]
        done = self._client.threads.each(lambda seen: self.remove(*seen), tags)
        return {digest for digest, is_gone in zip(versions, done, strict=True) if is_gone}

    # -- one blob

    def keep(self, digest: Digest, ttl: float) -> float | None:
        """Keep a blob for *ttl* seconds at least; return for how many, None if it is not there."""
        for _ in range(_TURNS):
            life = self.life_at(digest)
            if life is None or not life.is_live:
                return None
            if self._lasts(life, ttl):
                return life.ends - life.now - self._skew
            done = self._prolong(digest, life, ttl)
            if done is not None:
                return self.promise(ttl) if done else None
        raise contention_error(digest, self._client.url, _TURNS)

    def _lasts(self, life: Life, ttl: float) -> bool:
        return life.ends >= life.now + check_ttl(ttl) + self._skew

    def _prolong(self, digest: Digest, life: Life, ttl: float) -> bool | None:
        """Copy a blob onto itself, with a longer life; return whether it is there.

        None: it changed since it was looked at.
        """
        # The condition is of whole seconds: in the second in which the object was written
        # it could not tell that it was written again.
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
            Metadata={_TTL: self._life(ttl), _BEFORE: f"{life.ends:.3f}"},
        )
        if status == 404:
            return False
        if status != 200:
            return None
        stamped: datetime | None = answer.get("CopyObjectResult", {}).get("LastModified")
        return stamped is None or int(stamped.timestamp()) < life.ends

    def _store(self, digest: Digest, parts: Parts, ttl: float, *, anew: bool) -> float:
        key = self._key(digest)
        body = body_of([*parts, os.urandom(NONCE)])
        condition: dict[str, Any] = {"IfNoneMatch": "*"}
        written = self.life(ttl)
        for _ in range(_TURNS):
            status, _answer = self._client.ask(
                "put_object",
                GONE_OR_CHANGED,
                Key=key,
                Body=body,
                Metadata={_TTL: f"{written:.3f}"},
                **condition,
            )
            if status == 200:
                return written - self._skew
            # It is there: stored by others, or by ourselves if an answer got lost; or it is
            # what is left of one that expired.
            life = self.life_at(digest)
            if life is None:
                condition = {"IfNoneMatch": "*"}
            elif anew or not life.is_live:
                condition = {"IfMatch": life.etag}
                written = max(self.life(ttl), life.ends - life.now)
                anew = False  # if it changes now, others have written it anew
            elif self._lasts(life, ttl) or self._prolong(digest, life, ttl):
                return check_ttl(ttl)
            if isinstance(body, Body):
                body.seek(0)
        raise contention_error(digest, self._client.url, _TURNS)

    def _get(self, digest: Digest, limit: int) -> Buffer:
        url = self._client.url
        status, answer = self._client.ask("get_object", (404,), Key=self._key(digest))
        if status == 200:
            life = self._life_of(answer)
            # Closing what was not read to its end closes the connection.
            with closing(answer["Body"]) as body, driver_errors(url):
                if life.is_live:
                    most = limit + NONCE
                    size = most + 1 if life.size is None else life.size
                    content: bytes = body.read() if size <= most else b""
                    if life.size is None:  # a server that sends chunks does not say
                        content = body.read(size)
                        size = len(content)
                    if size > most:
                        raise size_error(digest, url, limit)
                    return memoryview(content)[:-NONCE]
        raise missing_error(digest, url)

    def life_at(self, digest: Digest) -> Life | None:
        """Return what is there of a blob, expired or not."""
        status, answer = self._client.ask("head_object", (404,), Key=self._key(digest))
        return None if status == 404 else self._life_of(answer)

    def _life_of(self, answer: Response) -> Life:
        told: Mapping[str, str] = answer.get("Metadata", {})
        modified: datetime = answer["LastModified"]
        try:
            ends = modified.timestamp() + float(told[_TTL])
            if float(told.get(_BEFORE, math.inf)) <= modified.timestamp():
                ends = -math.inf  # what was copied had expired: see the package
        except (KeyError, ValueError):
            ends = math.inf
        return Life(
            size=answer.get("ContentLength"),
            etag=answer.get("ETag", ""),
            now=self._client.now(answer),
            modified=modified,
            ends=ends,
        )

    def _life(self, ttl: float) -> str:
        return f"{self.life(ttl):.3f}"

    # -- many

    def _lives(self, known: Known | None = None) -> Iterator[tuple[Digest, Life]]:
        """Yield the life of every blob but those *known*, by one request each: a list doesn't
        show metadata.
        """
        for page in self._client.pages("blobs"):
            found = _digests(page)
            if known is not None and found:
                others = known(found)
                found = [digest for digest in found if digest not in others]
            for digest, life in zip(
                found, self._client.threads.each(self.life_at, found), strict=True
            ):
                if life is not None:
                    yield digest, life

    def _delete(self, keys: list[dict[str, str]]) -> None:
        _, answer = self._client.ask("delete_objects", Delete={"Objects": keys, "Quiet": True})
        for error in answer.get("Errors", []):
            url, code, said = self._client.url, error.get("Code", ""), error.get("Message", "")
            kind = StoreError if code == "AccessDenied" else StoreUnavailable
            raise kind(f"{url} did not delete {error.get('Key')}: {code} {said}", store=url)

    def remove(self, digest: Digest, etag: str) -> bool:
        """Delete a blob's object if it is the one that was seen."""
        status, _ = self._client.ask(
            "delete_object", GONE_OR_CHANGED, Key=self._key(digest), IfMatch=etag
        )
        return status in (200, 204)

    def _key(self, digest: Digest) -> str:
        name = digest.replace(":", "-")
        if not BLOB.fullmatch(name):
            raise StoreError(f"not a content digest: {digest[:100]!r}", store=self._client.url)
        return f"{self._client.begin}blobs/{name}"


def _digests(page: Iterable[Mapping[str, Any]]) -> list[Digest]:
    names = [entry["Key"].rpartition("/")[2] for entry in page]
    return [parse_digest(n.replace("-", ":")) for n in names if BLOB.fullmatch(n)]


def _whole(answer: Response) -> int | None:
    """Return the size of an object of which a part was asked for."""
    told = str(answer.get("ContentRange", "")).rpartition("/")[2]
    size = int(told) if told.isdigit() else answer.get("ContentLength")
    return None if size is None else int(size)
