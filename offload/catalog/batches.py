"""Results of calls on several objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from offload.errors import OffloadError
from offload.text import reason_of

T = TypeVar("T")


@dataclass
class BatchResult(Generic[T]):
    """The outcome of each item of a list.

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

    def _repr_html_(self) -> str:
        """Show in a notebook what failed, and how many succeeded; values aren't shown."""
        from offload.text import facts, table

        done = f"BatchResult: {len(self.succeeded):,} succeeded, {len(self.failed):,} failed"
        if not self.failed:
            return facts(done, {})
        rows = ((label, _shown(self.errors[label])) for label in self.failed)
        return table(done, ["failed", "error"], rows, len(self.failed))


def _shown(error: Exception) -> str:
    """Return an error's type and text; only the type if the text could reveal a value."""
    is_ours = isinstance(error, OffloadError)
    return f"{type(error).__name__}: {error}" if is_ours else reason_of(error)


def raised(outcome: T | Exception) -> T:
    """Return the *outcome* of an item; raise it if it is an error."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def label_of(name: Any, version: Any) -> str:
    """Return the label of an item of a batch: ``name`` or ``name@version``."""
    return str(name) if version is None else f"{name}@{version}"


def listed(what: str, given: Any) -> list[Any]:
    """Return the list that was given as argument *what*; raises ValueError if it isn't one."""
    if not isinstance(given, (list, tuple)):
        expected = "a string or a list of strings" if what == "name" else "a list"
        raise ValueError(f"{what}: expected {expected}, not a {type(given).__name__}")
    return list(given)


def spread(what: str, given: Any, number: int) -> list[Any]:
    """Return argument *what* for each of *number* items: a list of them, or one for all."""
    if not isinstance(given, (list, tuple)):
        return [given] * number
    if len(given) != number:
        raise ValueError(f"{number} names need {number} items of {what}, not {len(given)}")
    return list(given)
