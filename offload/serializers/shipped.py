"""What of shipped code a tree names, and which instances come in it more than once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from offload.errors import DeserializationError
from offload.serializers.base import Code
from offload.serializers.scalars import Node, text

__all__ = ("Found", "Given")


class Given:
    """What a writer has met.

    Args:
        imports: whether functions of libraries may be shipped, by what imports them.

    Attributes:
        pairs: names and hashes, in the order in which they were met.
        inside: of how many instances, one in the other, the parts are being written.
    """

    def __init__(self, code: Code | None, *, imports: bool = True) -> None:
        self._code = code
        self._imports = imports
        self.pairs: list[tuple[str, str]] = []
        self.inside = 0
        self._places: dict[int, tuple[int | None, Any]] = {}  # by id, which lives as long
        self._bodies: dict[int, tuple[list[Node], Any]] = {}
        self._numbers = 0

    def is_version(self, cls: type) -> bool:
        return self._code is not None and self._code.is_version(cls)

    def place(self, obj: Any) -> int | None:
        """Return where a class or function stands among `pairs`; None if it is not shipped."""
        if self._code is None:
            return None
        place, _ = self._places.get(id(obj), (-1, None))
        if place == -1:
            pair = self._code.shipped(obj)
            place = None if pair is None else len(self.pairs)
            if pair is not None:
                self.pairs.append(pair)
            self._places[id(obj)] = place, obj
        return place

    def place_of_import(self, obj: Any) -> int | None:
        """Return where what imports a library's function stands; None if nothing does."""
        getter = self._code.importer(obj) if self._code is not None and self._imports else None
        return None if getter is None else self.place(getter)

    def again(self, value: Any) -> Node | None:
        """Return the node of an instance that was met before, None if it was not."""
        body, _ = self._bodies.get(id(value), (None, None))
        if body is None:
            return None
        if not body[2]:
            self._numbers += 1
            body[2] = self._numbers
        return {"again": body[2]}

    def remember(self, value: Any, body: list[Node]) -> None:
        """Take note of an instance, and of its node's body, which may be incomplete."""
        self._bodies[id(value)] = body, value

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within this, nothing is what was met outside, and nothing is outside what was met here.

        For what is put in another order, or is read by other packages.
        """
        before, self._bodies = self._bodies, {}
        try:
            yield
        finally:
            self._bodies = before


class Found:
    """What a reader has met."""

    def __init__(self, code: Code | None) -> None:
        self._code = code
        self._pairs: list[Node] = []
        self._loaded: dict[int, Any] = {}
        self._made: dict[int, Any] = {}

    def is_version(self, cls: type) -> bool:
        return self._code is not None and self._code.is_version(cls)

    def check_allowed(self, tag: str, body: Node) -> None:
        """Raise for a node that needs code, unless the operator allows some."""
        if self._code is not None and self._code.may_load:
            return
        name, code_hash = _first(tag, body)
        if self._code is not None:
            self._code.check_name(name, code_hash)
        raise DeserializationError(
            f"the value needs {name}, which is not loaded: it is read without a class registry"
        )

    def begin(self, pairs: Node) -> None:
        """Take what the tree names."""
        if self._pairs or type(pairs) is not list:
            raise TypeError("not the names of what is shipped")
        self._pairs = pairs

    def load(self, place: Node) -> Any:
        """Return the class or function that stands there."""
        if place not in self._loaded:
            if type(place) is not int or not 0 <= place < len(self._pairs):
                raise ValueError("no such class or function")
            name, code_hash = self._pairs[place]
            assert self._code is not None  # noqa: S101 (for the type checker: `may_load`)
            self._loaded[place] = self._code.load(text(name), text(code_hash))
        return self._loaded[place]

    def imported(self, place: Node) -> Any:
        """Return the library's function that the version which stands there imports."""
        getter = self.load(place)
        assert self._code is not None  # noqa: S101 (for the type checker: `load`)
        return self._code.imported(getter)

    def remember(self, number: Node, made: Any) -> None:
        if number:
            self._made[number] = made

    def again(self, number: Node) -> Any:
        return self._made[number]


def _first(tag: str, body: Node) -> tuple[str, str]:
    """Return the first version that a tree names, for an error."""
    try:
        name, code_hash = body[0][0] if tag == "shipped" else ("shipped code", "")
        return text(name)[:100], text(code_hash)
    except (TypeError, ValueError, LookupError):
        return "shipped code", ""
