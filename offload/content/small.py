"""Small values: those of one message are held, and stored where missing, in one round trip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from offload.content.encoding import BlobEncoder
from offload.content.holds import Hold, Holds
from offload.content.manifest import Packed, pack
from offload.content.retrying import Retrying
from offload.digest import Digest
from offload.metrics.counters import Counters
from offload.serializers.base import Payload
from offload.stores.capabilities import HoldsAndPuts, Wanted, chunk_size_of, tiers_of
from offload.stores.protocols import Parts, Store, size_of

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher
    from offload.encryption.keys import EncryptionKey

SMALL = 256 * 1024
"""Total bytes of a message's small values from which the store is first asked whether it has them.
At 1 Gbit/s, sending fewer takes at most 2 ms, about as long as that round trip."""
_SENT_AT_ONCE = 4 << 20  # bytes; bounds the memory of compressed copies


@dataclass
class Upload:
    """Count of the blobs written for a value, with their plain and stored bytes."""

    blobs: int = 0
    plain: int = 0
    stored: int = 0


@dataclass(frozen=True)
class Stored:
    """A value that is held and in the store.

    Attributes:
        missing: its blobs that weren't there.
        ttl: seconds for which the store was asked to hold it.
    """

    packed: Packed
    missing: AbstractSet[Digest]
    ttl: float
    upload: Upload


class SmallWriter:
    """Stores values of less than `SMALL` bytes each, all of a message at once.

    Args:
        cipher: encrypts blobs; None without encryption.
    """

    def __init__(
        self,
        store: Store,
        counters: Counters,
        encoder: BlobEncoder,
        *,
        holds: Holds,
        retrying: Retrying,
        cipher: BlobCipher | None = None,
    ) -> None:
        self._store = store
        self._counters = counters
        self._encoder = encoder
        self._holds = holds
        self._retrying = retrying
        self._cipher = cipher
        self._blob_limit = chunk_size_of(store)
        if self._blob_limit is not None:
            self._blob_limit -= encoder.overhead
        # `isinstance` with a protocol is slow, so it is checked once.
        self._combining = store.blobs if isinstance(store.blobs, HoldsAndPuts) else None
        self._has_tiers = len(tiers_of(store)) > 1

    def store(self, payloads: Sequence[Payload], holds: Sequence[Hold]) -> list[Stored]:
        """Store and hold values, each by its own hold; all of *holds* have one holder.

        A missing blob that several values share is reported for the first of them only.

        Raises: StoreUnavailable, KeyUnavailable, StoreError.
        """
        keys = (None,) if self._cipher is None else self._cipher.keyring.keys
        ttls = [self._holds.store_ttl(hold) for hold in holds]
        holder, asked = holds[0].holder, None
        size = sum(payload.size for payload in payloads)
        with self._counters.timed("hash") as step:
            packed = [pack(payload, limit=self._blob_limit, key=keys[0]) for payload in payloads]
            step.note(size, packed[0].digest if len(packed) == 1 else None)
        if len(keys) > 1:
            packed, asked = self._find_older(payloads, packed, keys[1:], ttls, holder)
        uploads = [Upload() for _ in payloads]
        wanted: dict[Digest, Wanted] = {}
        owners: dict[Digest, Upload] = {}
        for payload, each, ttl, upload in zip(payloads, packed, ttls, uploads, strict=True):
            for digest, parts in _blobs(each):
                same = wanted.setdefault(digest, Wanted(ttl, parts, payload.size))
                if same.ttl < ttl:
                    wanted[digest] = replace(same, ttl=ttl)
                owners.setdefault(digest, upload)
        with self._counters.timed("upload") as step:
            step.note(size, packed[0].digest if len(packed) == 1 else None)
            missing = self._store_wanted(wanted, holder, owners, keys[0], asked)
            step.note(hit=not missing)
        stored = []
        for each, ttl, upload in zip(packed, ttls, uploads, strict=True):
            own = missing.intersection(each.digests)
            missing -= own
            stored.append(Stored(each, own, ttl, upload))
        return stored

    def _find_older(
        self,
        payloads: Sequence[Payload],
        packed: Sequence[Packed],
        older: Sequence[EncryptionKey],
        ttls: Sequence[float],
        holder: str,
    ) -> tuple[list[Packed], set[Digest]]:
        """Return each value as it is stored, under its name by the first key or by another.

        While keys are rotated, a value isn't stored again only because of its new name. Holds all
        names of all values in one round trip, and also returns those that are missing.
        """
        with self._counters.timed("hash"):
            forms = [
                [first, *(pack(payload, limit=self._blob_limit, key=key) for key in older)]
                for payload, first in zip(payloads, packed, strict=True)
            ]
        lives: dict[Digest, float] = {}
        for names, ttl in zip(forms, ttls, strict=True):
            for digest in chain.from_iterable(form.digests for form in names):
                lives[digest] = max(ttl, lives.get(digest, 0.0))
        with self._counters.timed("upload"):
            missing = self._hold(lives, holder)
        found = [
            next((form for form in names if missing.isdisjoint(form.digests)), names[0])
            for names in forms
        ]
        return found, missing

    def _hold(self, lives: Mapping[Digest, float], holder: str) -> set[Digest]:
        """Hold each blob for its number of seconds; return the missing ones.

        Takes one round trip for each different number.
        """
        missing: set[Digest] = set()
        for ttl in dict.fromkeys(lives.values()):
            digests = [digest for digest, life in lives.items() if life == ttl]
            missing |= self._retrying(
                lambda digests=digests, ttl=ttl: self._store.blobs.hold(digests, ttl, holder)  # type: ignore[misc]
            )
        return missing

    def _store_wanted(
        self,
        wanted: Mapping[Digest, Wanted],
        holder: str,
        owners: Mapping[Digest, Upload],
        key: EncryptionKey | None,
        absent: AbstractSet[Digest] | None,
    ) -> set[Digest]:
        """Hold blobs, store the missing ones, and count those in *owners*; return them.

        If the store was asked for them, *absent* are missing, and the others held.
        """
        blobs = self._store.blobs
        size = sum(size_of(each.parts or ()) for each in wanted.values())
        sent: dict[Digest, Parts] = {}
        if absent is not None:
            missing = wanted.keys() & absent
        elif (combining := self._combining) is not None and size < SMALL:
            # What this process knows is probably there: it isn't sent before the store is asked.
            new = {d: each for d, each in wanted.items() if not self._holds.knows(d)}
            sent = {
                digest: self._encoder.encode(digest, each.parts or (), key)
                for digest, each in new.items()
            }
            asked = {d: replace(each, parts=sent.get(d)) for d, each in wanted.items()}
            missing = self._retrying(lambda: combining.hold_and_put(asked, holder))
            for digest in missing & sent.keys():
                _count(owners[digest], wanted[digest], sent[digest])
        else:
            missing = self._hold({digest: each.ttl for digest, each in wanted.items()}, holder)
        rest = {digest: each for digest, each in wanted.items() if digest in missing - sent.keys()}
        for (ttl, value_size), batch in self._batches(rest):
            encoded = {
                digest: self._encoder.encode(digest, each.parts or (), key)
                for digest, each in batch.items()
            }
            self._retrying(
                lambda encoded=encoded, ttl=ttl, value_size=value_size: blobs.put(  # type: ignore[misc]
                    encoded, ttl, value_size=value_size
                )
            )
            for digest, parts in encoded.items():
                _count(owners[digest], wanted[digest], parts)
        return missing

    def _batches(
        self, wanted: Mapping[Digest, Wanted]
    ) -> Iterator[tuple[tuple[float, int | None], dict[Digest, Wanted]]]:
        """Yield what one call may store: its time to live, the size that chooses a tier, blobs."""
        batches: dict[tuple[float, int | None], dict[Digest, Wanted]] = {}
        for digest, each in wanted.items():
            size = each.value_size if self._has_tiers else None
            batches.setdefault((each.ttl, size), {})[digest] = each
        for key, blobs in batches.items():
            batch: dict[Digest, Wanted] = {}
            filled = 0
            for digest, each in blobs.items():
                batch[digest] = each
                filled += size_of(each.parts or ())
                if filled >= _SENT_AT_ONCE:
                    yield key, batch
                    batch, filled = {}, 0
            if batch:
                yield key, batch


def _blobs(packed: Packed) -> Iterator[tuple[Digest, Parts]]:
    """Yield a value's blobs, chunks first: a root is never stored without its chunks."""
    for chunk, parts in packed.chunks:
        yield chunk.digest, parts
    yield packed.digest, packed.root


def _count(upload: Upload, wanted: Wanted, stored: Parts) -> None:
    upload.blobs += 1
    upload.plain += size_of(wanted.parts or ())
    upload.stored += size_of(stored)
