"""Load versions: first check everything that a version needs, then run its code.

Versions pushed by the same Python version are unpickled; others are built from their source.
"""

from __future__ import annotations

import importlib
import logging
import pickle
import sys
import threading
import weakref
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from operator import attrgetter
from types import FunctionType, ModuleType
from typing import Any

from offload.classes.definitions import FUTURE, Definition, file_of
from offload.classes.hashing import python_tag
from offload.classes.pickling import load, loading
from offload.classes.policy import Versions
from offload.classes.scope import advise_missing, describe_task, own
from offload.classes.source import Source, _imported, show_lines
from offload.classes.versions import ClassVersion, Record, StoredVersion, describe, label
from offload.errors import CodeRefused, DeserializationError, OffloadError, WrongPython
from offload.stores.processes import PerProcess

logger = logging.getLogger(__name__)

KEPT = 500
"""Versions that a process keeps although nothing refers to them: this many to twice as many."""

_modules_lock = PerProcess(threading.RLock)


class LoadedClasses:
    """Versions that this process has loaded, as one object each. Forked children inherit them.

    The versions used last are kept, others while something refers to them: where a notebook sends
    a new version of a class with each run of a cell, a worker would otherwise keep them all.
    """

    def __init__(self) -> None:
        self._versions: dict[ClassVersion, weakref.ref[Any]] = {}
        # By id: a metaclass may define __hash__.
        self._pairs: dict[int, tuple[weakref.ref[Any], ClassVersion]] = {}
        self._used: dict[ClassVersion, tuple[int, Any]] = {}  # when each was used
        self._uses = count()
        self._lock = PerProcess(threading.RLock)

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Let one thread load at a time; others wait, and then find its result."""
        with self._lock.get():
            yield

    def find(self, pair: ClassVersion) -> Any:
        """Return a loaded version; None if it isn't loaded."""
        found = self._versions.get(pair)
        obj = None if found is None else found()
        if obj is not None:
            self._used[pair] = (next(self._uses), obj)
        return obj

    def add(self, versions: Mapping[ClassVersion, Any]) -> None:
        """Add versions that refer to each other, all at once, even in a child forked meanwhile.

        Call it within `one_at_a_time`.
        """
        refs = {
            pair: weakref.ref(obj, partial(self._drop, pair, id(obj)))
            for pair, obj in versions.items()
        }
        self._used.update({pair: (next(self._uses), obj) for pair, obj in versions.items()})
        self._pairs.update({id(obj): (refs[pair], pair) for pair, obj in versions.items()})
        self._versions.update(refs)
        if len(self._used) > 2 * KEPT:
            used = self._used.copy()  # other threads may add to it
            for pair in sorted(used, key=lambda each: used[each][0])[:-KEPT]:
                self._used.pop(pair, None)

    def _drop(self, pair: ClassVersion, number: int, ref: weakref.ref[Any]) -> None:
        """Forget a version that was deleted, unless it was loaded again, or its id reused."""
        if self._versions.get(pair) is ref:
            self._versions.pop(pair, None)
        known = self._pairs.get(number)
        if known is not None and known[0] is ref:
            self._pairs.pop(number, None)

    def pair_of(self, obj: Any) -> ClassVersion | None:
        """Return the version that *obj* was loaded as; None if it wasn't loaded."""
        found = self._pairs.get(id(obj))
        return found[1] if found is not None and found[0]() is obj else None

    def pairs(self) -> list[ClassVersion]:
        """Return all loaded versions."""
        return list(self._versions)


class VersionLoader:
    """Loads one version and those it needs; runs no code until all of them are trusted.

    Attributes:
        registry: the class registry that loaded code refers to.
        app: the Celery app that it refers to; None for the current one.
        stored: versions that were read, with the name of the key that signed each.
        made: classes and functions that were loaded.
        waiting: versions being built from source that aren't defined yet, with callbacks to call
            once they are.
    """

    def __init__(
        self, versions: Versions, registry: Any, find: Callable[[ClassVersion], Any]
    ) -> None:
        self._versions = versions
        self._find = find
        self.registry = registry
        self.app = versions.config.app
        self.stored: dict[ClassVersion, tuple[StoredVersion, str]] = {}
        self.made: dict[ClassVersion, Any] = {}
        self.waiting: dict[ClassVersion, list[Callable[[Any], None]]] = {}

    def load(self, name: str, code_hash: str) -> Any:
        pair = (name, code_hash)
        there = self.made.get(pair)
        there = there if there is not None else self._find(pair)
        if there is not None:
            return there
        if pair not in self.stored:
            self.read(pair)
        self.made[pair] = self._make(*self.stored[pair])
        return self.made[pair]

    def declare(self, name: str, code_hash: str, obj: Any) -> Any:
        obj = self.made.setdefault((name, code_hash), obj)
        for use in self.waiting.pop((name, code_hash), ()):
            use(obj)
        return obj

    def read(self, pair: ClassVersion) -> None:
        """Read a version and all it needs. Raises the same errors as `ClassRegistry.pull`."""
        asked = [pair]
        while asked:
            found = self._versions.read_trusted(asked)
            self.stored.update(zip(asked, found, strict=True))
            needs = {need: None for stored, _ in found for need in self._needs(stored)}
            asked = [it for it in needs if it not in self.stored and self._find(it) is None]

    def _make(self, stored: StoredVersion, signer: str) -> Any:
        record = stored.record
        same = record.python == python_tag()
        try:
            obj = load(stored.content, self) if same else build(stored.source, record, self)
        except OffloadError:
            raise
        except ModuleNotFoundError as exc:
            raise DeserializationError(
                f"{describe(record)} can't be loaded here: {exc}; {advise_missing(exc)}"
            ) from exc
        except Exception as exc:
            raise DeserializationError(
                f"{describe(record)} can't be loaded here: {type(exc).__name__}: {exc}; its "
                "imports must be installed, and its bases and metaclass must be able to create it "
                "without keywords, before it has its attributes"
            ) from exc
        if stored.source:
            show_lines(stored.source, record)
        signed = f", signed by {signer}" if signer else ""
        url = self._versions.url
        logger.info("loaded %s from %s%s%s", describe(record), url, describe_task(), signed)
        self._versions.counters.add(classes_loaded=1)
        return obj

    def _needs(self, stored: StoredVersion) -> list[ClassVersion]:
        """Return the versions that this one needs on this Python.

        Raises WrongPython if it can't be loaded here.
        """
        record = stored.record
        if record.python == python_tag():
            return list(record.needs)
        if record.source and self._versions.config.ship_source:
            return list(Source.from_bytes(stored.source).needs())
        if record.source:
            lack, remedy = "offload_ship_source is not set here", "set offload_ship_source"
        else:
            lack = "no source of it was pushed"
            remedy = "push it from a file or notebook where offload_ship_source is set"
        raise WrongPython(
            f"{label(record.pair)} is bytecode of {record.python}, this is {python_tag()}, and "
            f"{lack}: run both sides on the same minor version of Python, also push it from this "
            f"version, or {remedy}"
        )


# -- building from source


def build(content: bytes, record: Record, loader: VersionLoader) -> Any:
    """Return the class or function that a source defines. This runs it, so check it first.

    Args:
        content: the source, as `Source.to_bytes` returned it.
        record: the version's record.
        loader: the `VersionLoader` that needs it.

    Raises:
        WrongPython: if this Python can't compile the source, or if running it fails.
        CodeRefused: if it doesn't define the class or function.
    """
    what = f"{label(record.pair)}, pushed by {record.python},"
    try:
        with loading(loader):
            return _Builder(Source.from_bytes(content), record, loader).build()
    except OffloadError:
        raise
    except SyntaxError as exc:
        raise WrongPython(
            f"{what} can't be built from its source by {python_tag()}, which doesn't know its "
            f"syntax: {exc.msg} in {(exc.text or '').strip()!r:.100}; run both sides on the same "
            "minor version of Python, or write it for the older one"
        ) from exc
    except Exception as exc:
        raise WrongPython(
            f"{what} can't be built from its source by {python_tag()}: {type(exc).__name__}: "
            f"{exc}; run both sides on the same minor version of Python with the same packages, or "
            "also push it from this version"
        ) from exc


class _Builder:
    """Builds one version.

    Versions may need each other. The versions that a definition needs are built before it, except
    those that are being built already and wait for this one: their names are set once they are
    defined.
    """

    def __init__(self, source: Source, record: Record, loader: VersionLoader) -> None:
        self._source = source
        self._pair = record.pair
        self._version = label(record.pair)
        self._loader = loader
        self._modules = {module.name: ModuleType(module.name) for module in source.modules}

    def build(self) -> Any:
        source, loader = self._source, self._loader
        if source.outer is not None:
            loader.load(*source.outer)
            if self._pair not in loader.made:
                raise CodeRefused(f"the source of {self._version} does not define it")
            return loader.made[self._pair]
        loader.waiting.setdefault(self._pair, [])
        needs = source.needs()
        for pair in sorted(needs, key=lambda pair: not needs[pair]):
            if pair != self._pair and (needs[pair] or pair not in loader.waiting):
                loader.load(*pair)
        if self._pair in loader.made:  # one of them needed this one, and built it
            return loader.made[self._pair]
        self._fill()
        for definition in source.definitions:
            self._run(definition)
        return loader.made[self._pair]

    def _fill(self) -> None:
        """Set all names except those of definitions."""
        for loaded in self._source.loads:
            importlib.import_module(loaded)
        for name, constants in pickle.loads(b64decode(self._source.constants)).items():
            vars(self._modules[name]).update(constants)
        for module in self._source.modules:
            names = vars(self._modules[module.name])
            names["__package__"] = module.name.rpartition(".")[0]
            names |= {name: _imported(*path) for name, path in module.imports.items()}
            names |= {name: own(*what) for name, what in module.celery.items()}
            names |= {name: self._modules[shipped] for name, shipped in module.modules.items()}
            for name, (class_name, code_hash, _) in module.versions.items():
                pair = class_name, code_hash
                if pair in self._loader.waiting:
                    self._loader.waiting[pair].append(partial(self._set, names, name))
                else:
                    names[name] = self._loader.load(*pair)

    def _run(self, definition: Definition) -> None:
        names = vars(self._modules[definition.module])
        file = file_of(self._version, definition.file)
        text = "\n" * (definition.line - 1) + definition.text
        flags = FUTURE if definition.future else 0
        with _importable(self._modules):
            exec(compile(text, file, "exec", flags, dont_inherit=True), names)  # noqa: S102 (checked)
        obj = names.get(definition.name)
        for module, alias in definition.aliases:
            setattr(self._modules[module], alias, obj)
        if (definition.module, definition.name) == tuple(self._source.root):
            if not isinstance(obj, (type, FunctionType)):
                raise CodeRefused(f"the source of {self._version} does not define it")
            self._declare(obj, names)

    def _declare(self, obj: Any, names: dict[str, Any]) -> None:
        self._loader.declare(*self._pair, obj)
        for qualname, pair in self._source.nested.items():
            self._loader.declare(*pair, attrgetter(qualname.partition(".")[2])(obj))
        self._complete(names)

    def _set(self, names: dict[str, Any], name: str, value: Any) -> None:
        """Set a name once the version that it refers to is defined."""
        names[name] = value
        self._complete(names)

    def _complete(self, names: dict[str, Any]) -> None:
        """Make a pydantic model resolve annotations that weren't defined before."""
        obj: Any = self._loader.made.get(self._pair)
        if getattr(obj, "__pydantic_complete__", True) is False:
            obj.model_rebuild(raise_errors=False, _types_namespace=names)


@contextmanager
def _importable(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Within this context, put modules into ``sys.modules``, where dataclasses and others look."""
    with _modules_lock.get():
        before = {name: sys.modules[name] for name in modules if name in sys.modules}
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in modules:
                sys.modules.pop(name, None)
            sys.modules.update(before)
