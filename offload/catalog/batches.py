"""Results of calls on several objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ("BatchResult",)

T = TypeVar("T")


@dataclass
class BatchResult(Generic[T]):
    """What became of each item of a list.

    Attributes:
        results: one for each item, in the same order; None for an item that failed.
        errors: the error of each item that failed, by ``name`` or ``name@version`` as it was asked
            for.
        succeeded: the items that succeeded, in order.
        failed: the items that failed, in order.
    """

    results: list[T | None] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    succeeded: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, label: str, outcome: T | Exception) -> None:
        """Add the result, or the error, of the next item."""
        if isinstance(outcome, Exception):
            self.results.append(None)
            self.errors[label] = outcome
            self.failed.append(label)
        else:
            self.results.append(outcome)
            self.succeeded.append(label)

    def raise_first(self) -> BatchResult[T]:
        """Raise the first item's error, if any failed; otherwise return this."""
        for label in self.failed:
            raise self.errors[label]
        return self

    def __len__(self) -> int:
        return len(self.results)
