"""Hash a class together with the classes it refers to, which may refer to each other.

Classes are stored apart, and references to one version yield one class. So two classes with the
same behavior count as one here, too. Each class gets a digest of its content, then one of that and
of the digests it refers to, and so on until no more classes differ (partition refinement, as for
the equality of automata).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from types import FunctionType
from typing import Any, Union

__all__ = ("Content", "Reference", "UnorderedRefs", "digest_of_graph")

Reference = Union[type, FunctionType, "UnorderedRefs"]
"""A class, a function that is a version of its own, or the references of a set."""


@dataclass(frozen=True)
class Content:
    """Encoding of an object, without the classes it refers to.

    Attributes:
        written: the encoding.
        references: the classes, in the order in which the encoding refers to them.
    """

    written: bytes
    references: tuple[Reference, ...]

    def classes(self) -> Iterator[type | FunctionType]:
        """Yield the classes and functions that are stored apart."""
        for reference in self.references:
            if isinstance(reference, UnorderedRefs):
                for each in reference.contents:
                    yield from each.classes()
            else:
                yield reference


@dataclass(frozen=True)
class UnorderedRefs:
    """References of the items of a set, whose order doesn't count."""

    contents: tuple[Content, ...]


def digest_of_graph(root: Any, contents: dict[int, Content]) -> bytes:
    """Return the digest of *root*.

    Args:
        contents: of *root* and of all classes reachable from it, by id.
    """
    digests = {key: sha256(content.written).digest() for key, content in contents.items()}
    count = 0
    while count < len(set(digests.values())):
        count = len(set(digests.values()))
        digests = {
            key: _digest(digests[key], content, digests) for key, content in contents.items()
        }
    return sha256(digests[id(root)] + b"".join(sorted(set(digests.values())))).digest()


def _digest(prefix: bytes, content: Content, digests: dict[int, bytes]) -> bytes:
    found = sha256(prefix)
    for reference in content.references:
        if isinstance(reference, UnorderedRefs):
            items = (
                _digest(sha256(each.written).digest(), each, digests) for each in reference.contents
            )
            found.update(sha256(b"".join(sorted(items))).digest())
        else:
            found.update(digests[id(reference)])
    return found.digest()
