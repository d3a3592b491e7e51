"""Late references: what the catalog has when a task starts, rather than when it was sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offload.catalog.batches import raised
from offload.catalog.names import check_asked, check_bucket, check_name
from offload.catalog.pointers import CatalogPointers
from offload.catalog.reading import open_record
from offload.catalog.records import Record
from offload.content.store import ContentStore
from offload.errors import InvalidRef, OffloadError
from offload.ref import Late, Ref


def pin(content: ContentStore, wanted: Sequence[Late]) -> list[Ref[Any] | OffloadError]:
    """Return a reference to what each of *wanted* stands for now, or why there is none.

    Takes three round trips at most for the objects of one bucket.
    """
    outcomes: dict[Late, Ref[Any] | OffloadError] = {}
    for bucket in dict.fromkeys(late.bucket for late in wanted):
        some = [late for late in dict.fromkeys(wanted) if late.bucket == bucket]
        try:
            outcomes.update(zip(some, _pin(content, bucket, some), strict=True))
        except OffloadError as exc:
            outcomes.update(dict.fromkeys(some, exc))
        except ValueError as exc:  # signed, but by a version with other rules
            outcomes.update(dict.fromkeys(some, InvalidRef(str(exc))))
    return [outcomes[late] for late in wanted]


def _pin(
    content: ContentStore, bucket: str, wanted: Sequence[Late]
) -> list[Ref[Any] | OffloadError]:
    pointers = CatalogPointers(content, check_bucket(bucket))
    asked = [(check_name(late.name), check_asked(late.version)) for late in wanted]
    return [_opened(content, found) for found in pointers.find_all(asked)]


def _opened(content: ContentStore, found: Record | Exception) -> Ref[Any] | OffloadError:
    try:
        return open_record(content, raised(found))
    except OffloadError as exc:
        return exc
