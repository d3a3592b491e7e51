"""Rules by which a bucket removes old objects by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

__all__ = ("Ageing", "Rule", "days_for")

DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Rule:
    """That objects are removed so many whole days after they were written.

    Attributes:
        prefix: what the keys of those objects begin with.
    """

    bucket: str
    prefix: str
    days: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as S3's API takes it, among the ``Rules``.

        In a bucket with versions the old ones go as well, a day after they were replaced:
        nothing reads them.
        """
        return {
            "ID": f"offload {self.prefix}"[:255],
            "Status": "Enabled",
            "Filter": {"Prefix": self.prefix},
            "Expiration": {"Days": self.days},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        }


@runtime_checkable
class Ageing(Protocol):
    """A store whose bucket can remove by a rule what has ended."""

    def lifecycle(self, longest: float) -> Rule:
        """Return the rule with the fewest days that is safe where nothing is ever asked to be
        kept for more than *longest* seconds at a time.
        """


def days_for(life: float) -> int:
    """Return the whole days after which what lives for *life* seconds has surely ended.

    S3 counts from the moment of writing to the midnight (UTC) after so many days; servers
    that count dates instead may come up to a day early.
    """
    return math.ceil(life / DAY) + 1
