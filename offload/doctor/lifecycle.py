"""Lifecycle rules by which an S3 bucket deletes expired objects itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from offload.stores.protocols import Store

__all__ = ("DAY", "Rule", "days_for", "lifecycle_rule")

DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Rule:
    """Delete objects a number of whole days after they were written.

    Attributes:
        prefix: of the keys of those objects.
    """

    bucket: str
    prefix: str
    days: int

    def as_dict(self) -> dict[str, Any]:
        """Return the rule as S3's API takes it in ``Rules``.

        In a versioned bucket, noncurrent versions are deleted after a day: nothing reads them.
        """
        return {
            "ID": f"offload {self.prefix}"[:255],
            "Status": "Enabled",
            "Filter": {"Prefix": self.prefix},
            "Expiration": {"Days": self.days},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        }


def lifecycle_rule(store: Store, longest: float) -> Rule | None:
    """Return the rule with the fewest days that never deletes a live blob of *store*.

    None if *store* isn't in S3.

    Args:
        longest: the most seconds for which anything is ever kept at a time.
    """
    if not store.url.startswith("s3://"):
        return None
    from offload.stores.s3.store import S3Store  # needs boto3

    if not isinstance(store, S3Store):
        return None
    days = days_for(store.blobs.life(longest))
    return Rule(store.client.bucket, f"{store.client.prefix}blobs/", days)


def days_for(life: float) -> int:
    """Return the whole days after which an object that lives *life* seconds has expired.

    S3 counts from the moment of writing to the midnight (UTC) after so many days; servers
    that count dates instead may be up to a day early.
    """
    return math.ceil(life / DAY) + 1
