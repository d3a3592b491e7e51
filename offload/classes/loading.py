"""Load versions: first check everything a version needs, then run its code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from offload.classes.hashing.identity import python_tag
from offload.classes.pickling import load
from offload.classes.source import Source, build, show_lines
from offload.classes.trusted import Versions, for_task, shown
from offload.classes.versions import ClassVersion, Stored
from offload.errors import DeserializationError, OffloadError, WrongPython

__all__ = ("Loading",)

logger = logging.getLogger(__name__)


class Loading:
    """Loads one version and those it needs; nothing runs before all of them are trusted.

    Attributes:
        stored: the versions that were read, and the name of the key that signed each.
        made: the classes and functions that were loaded.
        waiting: versions that are being built from source and aren't defined yet, with callbacks to
            call once they are.
    """

    def __init__(
        self, versions: Versions, registry: Any, there: Callable[[ClassVersion], Any]
    ) -> None:
        self._versions = versions
        self._registry = registry
        self._there = there
        self.stored: dict[ClassVersion, tuple[Stored, str]] = {}
        self.made: dict[ClassVersion, Any] = {}
        self.waiting: dict[ClassVersion, list[Callable[[Any], None]]] = {}

    def load(self, name: str, code_hash: str) -> Any:
        pair = (name, code_hash)
        there = self.made.get(pair)
        there = there if there is not None else self._there(pair)
        if there is not None:
            return there
        if pair not in self.stored:
            self.read(pair)
        self.made[pair] = self._make(*self.stored[pair])
        return self.made[pair]

    @property
    def registry(self) -> Any:
        return self._registry

    @property
    def app(self) -> Any:
        return self._versions.config.app

    def begin(self, name: str, code_hash: str, obj: Any) -> Any:
        obj = self.made.setdefault((name, code_hash), obj)
        for use in self.waiting.pop((name, code_hash), ()):
            use(obj)
        return obj

    def read(self, pair: ClassVersion) -> None:
        """Read a version and all it needs; raises as `ClassRegistry.pull` does."""
        asked = [pair]
        while asked:
            found = self._versions.trusted(asked)
            self.stored.update(zip(asked, found, strict=True))
            needs = {need: None for stored, _ in found for need in self._needs(stored)}
            asked = [it for it in needs if it not in self.stored and self._there(it) is None]

    def _make(self, stored: Stored, by: str) -> Any:
        record = stored.record
        same = record.python == python_tag()
        try:
            obj = load(stored.content, self) if same else build(stored.source, record, self)
        except OffloadError:
            raise
        except ModuleNotFoundError as exc:
            raise DeserializationError(
                f"{shown(record)} can't be loaded here: {exc}; install it here, or have the sender "
                f"ship it: offload.classes.register({exc.name})"
            ) from exc
        except Exception as exc:
            raise DeserializationError(
                f"{shown(record)} can't be loaded here: {type(exc).__name__}: {exc}; its "
                "imports must be installed, and its bases and metaclass must be able to create it "
                "without keywords, before it has its attributes"
            ) from exc
        if stored.source:
            show_lines(stored.source, record)
        signed = f", signed by {by}" if by else ""
        logger.info("loaded %s from %s%s%s", shown(record), self._versions.url, for_task(), signed)
        self._versions.counters.add(classes_loaded=1)
        return obj

    def _needs(self, stored: Stored) -> list[ClassVersion]:
        """Return the versions that this one needs on this Python.

        Raises WrongPython if it can't be loaded here.
        """
        record = stored.record
        if record.python == python_tag():
            return list(record.needs)
        if record.source and self._versions.config.ship_source:
            return list(Source.from_bytes(stored.source).needs())
        if record.source:
            lack, do = "offload_ship_source is not set here", "set offload_ship_source"
        else:
            lack = "no source of it was pushed"
            do = "push it from a file or notebook where offload_ship_source is set"
        raise WrongPython(
            f"{record.class_name}@{record.hash[:12]} is the bytecode of {record.python}, this is "
            f"{python_tag()}, and {lack}: run both sides on one minor version of Python, push it "
            f"from this one, too, or {do}"
        )
