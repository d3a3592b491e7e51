"""ClassRegistry: classes and functions under their names and hashes, in a store."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any, TypeVar, overload

from celery import current_task

from offload.counters import Counters
from offload.digest import digest_of
from offload.errors import (
    CodeRefused,
    ConfigurationError,
    DeserializationError,
    NotShippable,
    OffloadError,
    StoreUnavailable,
    UnknownClass,
    VersionMissing,
    WrongPython,
)
from offload.registry.apps import for_task
from offload.registry.identity import identify, python_tag
from offload.registry.keys import Signer, own_key, signer
from offload.registry.listing import (
    OUT_OF_SYNC,
    SYNCED,
    UNTRACKED,
    Listed,
    Standing,
    listed,
)
from offload.registry.loaded import Loaded
from offload.registry.names import Names, check_hash, name_of
from offload.registry.own import Own
from offload.registry.parts import Source, diff
from offload.registry.pickling import Pair, dump, load, own_registry
from offload.registry.policy import OFF, SIGNED, Policy
from offload.registry.rebuild import rebuild
from offload.registry.record import CLASS, FUNCTION, LATEST, Record, Signature, tagged
from offload.registry.scope import Scope, found
from offload.registry.source import source_of
from offload.registry.storage import Storage, Stored
from offload.stores import open_store
from offload.stores.base import Store

__all__ = ("OUT_OF_SYNC", "SYNCED", "UNTRACKED", "ClassRegistry", "Means")

T = TypeVar("T")
logger = logging.getLogger(__name__)

AUTO, MANUAL = "auto", "manual"
_BEGIN = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
_TURNS = 20
_SURE = 60.0  # seconds for which a version that was seen in the store is taken to be there


@dataclass(frozen=True)
class Means:
    """What a registry works with.

    Attributes:
        policy: what may be loaded.
        signing_key: signs what is pushed; None: nothing does.
        ship_source: whether source is pushed along, and used where the Python is another.
        retrying: calls what may be called twice again while the store is away.
        app: the Celery app that code which is loaded refers to; None: the current one.
    """

    store: Store
    policy: Policy
    signing_key: str | None = None
    ship_source: bool = False
    retrying: Callable[[Callable[[], Any]], Any] = lambda call: call()
    app: Any = None

    @cached_property
    def signer(self) -> Signer | None:
        """Raises ConfigurationError if the key is none."""
        return None if self.signing_key is None else signer(self.signing_key)


class ClassRegistry:
    """Classes and functions in a store, each version under its hash.

    Args:
        store: a store, or its URL.
        mode: what may be loaded: ``off`` (nothing), ``signed`` or ``trusted`` (everything).
        signing_key: signs what is pushed; see `offload.registry.keys`.
        verify_keys: whose signatures are accepted in mode ``signed``, besides one's own.
        allow: patterns of the names that may be loaded; empty: all.
        ship_source: whether source is pushed along, and, where a version was pushed by another
            Python, classes are built from it.
        counters: are raised by what is pushed, loaded and refused.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store | str,
        *,
        mode: str = OFF,
        signing_key: str | None = None,
        verify_keys: Iterable[str | Mapping[str, Any]] = (),
        allow: Iterable[str] = (),
        ship_source: bool = False,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        opened = open_store(store) if isinstance(store, str) else store
        keys = (*verify_keys, *own_key(signing_key))
        policy = Policy(mode, keys=keys, allow=allow, clock=clock)
        self._begin(lambda: Means(opened, policy, signing_key, ship_source), counters, clock)

    @classmethod
    def of_means(cls, means: Callable[[], Means], counters: Counters) -> ClassRegistry:
        """Return a registry that asks for what it works with when it first needs it."""
        made = cls.__new__(cls)
        made._begin(means, counters, time.time)
        return made

    def _begin(
        self, means: Callable[[], Means], counters: Counters | None, clock: Callable[[], float]
    ) -> None:
        self._make_means = means
        self._clock = clock
        self._counters = counters or Counters()
        self._loaded = Loaded()
        self._modules: dict[str, str] = {}
        self._registered: dict[str, tuple[Any, str]] = {}
        self._own = Own()
        self._along: set[str] = set()
        self._looked_at: set[Pair] = set()
        self._stored: dict[Pair, float] = {}

    @cached_property
    def _means(self) -> Means:
        return self._make_means()

    @cached_property
    def _storage(self) -> Storage:
        return Storage(self._means.store.pointers, self._means.retrying)

    @property
    def store(self) -> Store:
        """Where versions are."""
        return self._means.store

    @property
    def policy(self) -> Policy:
        """What may be loaded."""
        return self._means.policy

    @property
    def app(self) -> Any:
        """The Celery app that code which is loaded refers to; None: the current one."""
        return self._means.app

    @property
    def registry(self) -> ClassRegistry:
        """This one; see `offload.registry.pickling.Loader`."""
        return self

    def __reduce__(self) -> Any:
        """Be the registry that loads it, in code that is shipped: keys are not stored."""
        return own_registry, ()

    def check_keys(self) -> None:
        """Raise ConfigurationError if a key that is configured cannot be used."""
        _ = self.policy.keys
        _ = self._means.signer

    # -- what is shipped

    @overload
    def register(self, obj: T, *, push: str = AUTO) -> T: ...
    @overload
    def register(self, obj: None = None, *, push: str = AUTO) -> Callable[[T], T]: ...
    def register(self, obj: Any = None, *, push: str = AUTO) -> Any:
        """Have a class, a function or all of a module shipped to who cannot import it.

        A decorator, with or without arguments, or a call.

        Args:
            push: ``auto``: its version is pushed when it is first sent; ``manual``: it has to
                have been pushed before, as by ``celery offload classes push``.
        """
        if push not in (AUTO, MANUAL):
            raise ConfigurationError(f"register(push={push!r}): it is 'auto' or 'manual'")
        if obj is None:
            return lambda obj: self.register(obj, push=push)
        if isinstance(obj, ModuleType):
            self._modules[obj.__name__] = push
        else:
            self._registered[name_of(_checked(obj))] = (obj, push)
        return obj

    @property
    def registered(self) -> list[Any]:
        """The classes and functions that were registered, with those of registered modules."""
        here = [obj for obj, _ in self._registered.values()]
        for name in sorted(self._modules):
            module = import_module(name)
            here += [obj for obj in vars(module).values() if _is_of(obj, name)]
        return list({id(obj): obj for obj in here}.values())

    @property
    def shipped_modules(self) -> set[str]:
        """The modules in which something was registered."""
        return set(self._modules) | {obj.__module__ for obj, _ in self._registered.values()}

    @property
    def scope(self) -> Scope:
        """What is shipped without being asked for by name."""
        return Scope(self._modules)

    def ships(self, obj: Any) -> bool:
        """Return whether a class or function is one that others cannot be expected to import."""
        return self.claims(obj) or obj in self.scope

    def claims(self, obj: Any) -> bool:
        """Return whether a class or function is shipped also where something else would do: what
        is in ``__main__``, registered, referred to by what was registered, or loaded.
        """
        if self.scope.includes(obj.__module__) or self._loaded.pair_of(obj) is not None:
            return True
        name = f"{obj.__module__}.{obj.__qualname__}"
        kept = self._registered.get(name)
        return (kept is not None and kept[0] is obj) or name in self._along

    @property
    def can_push(self) -> bool:
        """Whether what this process pushes can be signed, if it has to be."""
        return self.policy.mode != SIGNED or self._means.signer is not None

    # -- hashes

    def get_class_hash(self, cls: Any) -> str:
        """Return the hash of a class or function; see `offload.registry.identity`.

        Raises NotShippable (a TypeError) for anything else.
        """
        return self._pair(cls)[1]

    def check_status(self, cls: Any) -> str:
        """Return how the class stands to the latest version of its name in the store:
        ``untracked`` (there is none), ``synced`` or ``out_of_sync``.

        Bytecode is part of a version: where the latest was pushed by another minor version of
        Python, a class of this process is ``out_of_sync``, even if it is written the same. A
        class that was made from source is the version that it was made of.
        """
        [standing] = self.standings([cls])
        return standing.status

    def statuses(self) -> dict[str, str]:
        """Return the status of all that is registered, by name; in one round trip."""
        return {each.name: each.status for each in self.standings()}

    def standings(self, classes: Iterable[Any] | None = None) -> list[Standing]:
        """Return how all that is registered, or *classes*, stand to the store, in one round trip.

        Raises CodeRefused where the latest is none, or in mode ``signed`` is signed by nobody
        trusted.
        """
        pairs = [self._pair(obj) for obj in (self.registered if classes is None else classes)]
        names = [Names(name) for name, _ in pairs]
        contents = self._storage.read(each.latest for each in names)
        return [
            Standing(*pair, None if content is None else self._read_latest(each, content))
            for pair, each, content in zip(pairs, names, contents, strict=True)
        ]

    # -- pushing

    def persist_class(self, cls: Any) -> str:
        """Store this version, and what it needs; leave the latest as it is. Return the hash.

        One that is there stays as it is, unless it lacks a signature that it has to have, or its
        source.
        """
        pair = self._pair(cls)
        self._persist(cls, pair)
        return pair[1]

    def push(self, cls: Any) -> str:
        """Store this version and make it the latest; return the hash. Again changes nothing."""
        pair = self._pair(cls)
        self._push(cls, pair)
        return pair[1]

    def push_all(self, classes: Iterable[Any] | None = None) -> dict[str, str]:
        """Push all that is registered, or *classes*; return the hashes of those that changed.

        What the store says is the latest costs nothing but its part in one common round trip;
        that it is signed, too, where it has to be. Whether it is still whole is looked at by
        `push` and `verify`.
        """
        pushed: dict[str, str] = {}
        objs = self.registered if classes is None else list(classes)
        pairs = [self._pair(obj) for obj in objs]
        names = [Names(name) for name, _ in pairs]
        asked = [each.latest for each in names]
        signing = self.policy.mode == SIGNED or self._means.signer is not None
        if signing:
            asked += [each.version(pair[1]) for each, pair in zip(names, pairs, strict=True)]
        found = self._storage.read(asked)
        latests, versions = found[: len(objs)], found[len(objs) :] or [None] * len(objs)
        for obj, pair, each, latest, version in zip(
            objs, pairs, names, latests, versions, strict=True
        ):
            if not self._is_latest(obj, pair, each, latest) or (
                signing and self._recorded(obj, pair, version) is None
            ):
                self._point(each.latest, self._persist(obj, pair), LATEST, latest)
                pushed[pair[0]] = pair[1]
        return pushed

    def ship(self, obj: Any) -> Pair:
        """Return name and hash of what is about to be sent, having made sure that it is stored."""
        pair = self._pair(obj)
        if self._loaded.pair_of(obj) is not None:
            return pair  # it came from the store
        now = self._clock()
        before = self._stored.get(pair)
        if before is None or not 0 <= now - before < _SURE:
            try:
                self._ship(obj, pair, first=before is None)
            except StoreUnavailable:
                if before is None:
                    raise
                return pair  # it was there
            self._stored[pair] = now
        return pair

    def _ship(self, obj: Any, pair: Pair, *, first: bool) -> None:
        push = self._push_of(obj)
        if push == MANUAL:
            record = self._check_pushed(pair)
        elif push == AUTO and first:
            record = self._push(obj, pair)
        else:  # once only, or it would undo what others push, and rollbacks
            record = self._persist(obj, pair)
        asked = [need for need in record.needs if need not in self._looked_at]
        while asked:
            found = self._storage.heads(Names(name).version(h) for name, h in asked)
            self._along.update(name for name, _ in asked)
            self._looked_at.update(asked)
            needs = {
                need: None
                for pair, each in zip(asked, found, strict=True)
                if each is not None and each.pair == pair and self._is_believed(each)
                for need in each.needs
            }
            asked = [need for need in needs if need not in self._looked_at]

    def tag(self, name: str, tag: str, code_hash: str) -> None:
        """Give a version a tag, in place of the one that has it.

        Raises UnknownClass, VersionMissing.
        """
        names, record = self._version(name, code_hash)
        self._point(names.tag(tag), record, tagged(tag))

    def rollback(self, name: str, code_hash: str) -> None:
        """Make a version that is stored the latest. Raises UnknownClass, VersionMissing."""
        names, record = self._version(name, code_hash)
        self._point(names.latest, record, LATEST)

    # -- pulling

    def pull(self, name: str, code_hash: str | None = None, *, tag: str | None = None) -> Any:
        """Return a class or function from the store: the latest, or the version asked for.

        It is the same object every time in a process, and the process' own where that has this
        version.

        Args:
            name: module and qualified name; the last part of it where that is unambiguous.

        Raises:
            UnknownClass: there is none of this name (a ValueError).
            VersionMissing: there is, but not this version (a FileNotFoundError).
            CodeRefused: this process may not load it.
            WrongPython: it is another Python's.
        """
        return self.load(*self.resolve(name, code_hash, tag=tag))

    def resolve(self, name: str, code_hash: str | None = None, *, tag: str | None = None) -> Pair:
        """Return the whole name and hash that are meant. Raises as `pull` does."""
        if code_hash is not None and tag is not None:
            raise ValueError("a version is asked for by its hash or by a tag, not by both")
        if code_hash is not None:
            return self.full_name(name), check_hash(code_hash)
        names = Names(self.full_name(name))
        with self._refusing():
            self.policy.check_name(names.name, None)
        pointer = names.latest if tag is None else names.tag(tag)
        [content] = self._storage.read([pointer])
        if content is None:
            raise self._missing(names, f"tag {tag!r}" if tag else "latest version")
        record = self._pointed(content, names, pointer, LATEST if tag is None else tagged(tag))
        with self._refusing():
            self.policy.check(record)
        return names.name, record.hash

    def load(self, name: str, code_hash: str) -> Any:
        """Return the version of exactly this name and hash. Raises as `pull` does.

        Nothing of it runs before it may be loaded, and all other versions that it needs.
        """
        pair = (name, code_hash)
        there = self._there(pair)
        if there is not None:
            return there
        with self._loaded.one_at_a_time():
            loading = _Loading(self, self._there)
            obj = loading.load(name, code_hash)
            self._loaded.add(loading.made)
            return obj

    def begin(self, name: str, code_hash: str, obj: Any) -> None:  # noqa: ARG002
        """Raise CodeRefused: a value may name a version, and not bring it along."""
        raise CodeRefused(f"{name}@{code_hash[:12]} is not loaded: it is within a value")

    def recover_class(self, name: str, code_hash: str) -> Any:
        """Return a version read anew from the store, and verified: its hash is *code_hash*.

        It is another class than the one `pull` returns. Raises as `pull` does, CodeRefused also
        if it is not what its hash says: that is found out when it was made, as only trusted code
        is. What was made from the source of another Python's version has no hash to compare: of
        that, as always, what is stored is verified, its digests and in mode ``signed`` its
        signature.
        """
        pair = self.full_name(name), check_hash(code_hash)
        loading = _Loading(self, lambda _: None)
        obj = loading.load(*pair)
        record = loading.stored[pair][0].record
        if record.python == python_tag():
            actual = identify(obj, Scope(record.modules)).hash
            with self._refusing():
                if actual != code_hash:
                    raise CodeRefused(
                        f"{pair[0]}@{code_hash[:12]}: what is stored has the hash {actual[:12]}; "
                        "it was altered, or pushed by a version of offload that counts otherwise: "
                        "push it again"
                    )
        return obj

    def verify(self, name: str, code_hash: str | None = None, *, tag: str | None = None) -> Record:
        """Return the record of a version that this process trusts; nothing of it runs.

        Raises as `pull` does, except WrongPython.
        """
        return self._trusted_version(self.resolve(name, code_hash, tag=tag)).record

    def check(self, name: str, code_hash: str | None = None, *, tag: str | None = None) -> Record:
        """Return the record of a version that this process would load, with all that it needs;
        nothing of it runs. Raises as `pull` does.
        """
        pair = self.resolve(name, code_hash, tag=tag)
        loading = _Loading(self, lambda _: None)
        loading.read(pair)
        return loading.stored[pair][0].record

    # -- looking

    def listing(self) -> list[Listed]:
        """Return all that is in the store, by name. Nothing is said about whether to trust it."""
        return listed(self._storage)

    def classes(self) -> dict[str, Record]:
        """Return the record of the latest version of every class, by name.

        Nothing is said about whether to trust it; one that cannot be read is left out.
        """
        return {each.name: each.latest for each in self.listing() if each.latest is not None}

    def stored(self, name: str, code_hash: str) -> Stored:
        """Return a version as it is in the store. Nothing is said about whether to trust it.

        Raises UnknownClass, VersionMissing; CodeRefused if it is not what its record says.
        """
        names = Names(self.full_name(name))
        with self._refusing():
            [stored] = self._storage.get([(names.name, check_hash(code_hash))])
        if stored is None:
            raise self._missing(names, f"version {code_hash[:12]}")
        return stored

    def find_hash(self, name: str, meant: str, *, tags: bool = False) -> str:
        """Return the hash of the version of which *meant* is the begin (8 digits or more).

        Args:
            tags: whether *meant* may be a tag, or ``latest``, too. Nothing is said about whether
                to trust what that points to.

        Raises UnknownClass; VersionMissing if it is none or may be several.
        """
        names = Names(self.full_name(name))
        hashes = self._storage.hashes(names)
        found = {each for each in hashes if _BEGIN.fullmatch(meant) and each.startswith(meant)}
        if tags:
            found |= {each for tag, each in self.tags(names.name).items() if tag == meant}
        if not found:
            what = f"version{' or tag' if tags else ''} {meant!r:.70}"
            if not _BEGIN.fullmatch(meant):
                what += " (of a hash 8 digits or more are wanted)"
            raise self._missing(names, what)
        if len(found) > 1:
            shown = " or ".join(sorted(found))
            raise VersionMissing(f"{meant!r} of {names.name} may be {shown}: say which")
        return found.pop()

    def versions(self, name: str) -> list[Record]:
        """Return the records of all versions, the oldest first. Raises UnknownClass."""
        names = Names(self.full_name(name))
        found = self._storage.records(names)
        if not found:
            raise self._missing(names, "version")
        return found

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of a class, ``latest`` among them, and the hashes they stand for."""
        names = Names(self.full_name(name))
        pointers = [n for n in self._storage.names(names.folder) if n.endswith(".json")]
        contents = zip(pointers, self._storage.read(pointers), strict=True)
        return {
            pointer.rpartition("/")[2][: -len(".json")]: Record.from_bytes(content, pointer).hash
            for pointer, content in contents
            if content is not None
        }

    def diff(self, name: str, a: str, b: str) -> str:
        """Return how the source of version *b* differs from that of *a*, as a unified diff.

        Raises VersionMissing, also where no source was pushed.
        """
        full = self.full_name(name)
        first, second = self.stored(full, a), self.stored(full, b)
        for each in (first, second):
            if not each.source:
                raise VersionMissing(
                    f"{full}@{each.record.hash[:12]} was pushed without its source: push it "
                    "where offload_ship_source is set"
                )
        try:
            return diff(first.source, second.source, f"{full}@{a[:12]}", f"{full}@{b[:12]}")
        except (ValueError, TypeError, LookupError) as exc:
            raise CodeRefused(
                f"the source of {full}@{a[:12]} or @{b[:12]} in {self.store.url} is none",
                store=self.store.url,
            ) from exc

    def full_name(self, name: str) -> str:
        """Return the whole name for a short one. Raises UnknownClass if it is ambiguous."""
        if "." in name:
            return name
        known = {*self._registered, *(n for n, _ in self._loaded.pairs())}
        matches = {each for each in known if each.rpartition(".")[2] == name}
        matches |= {each.name for each in self.listing() if each.name.rpartition(".")[2] == name}
        if len(matches) > 1:
            raise UnknownClass(f"{name!r} may be {' or '.join(sorted(matches))}: say which")
        return matches.pop() if matches else name

    # -- inside

    def _pair(self, obj: Any) -> Pair:
        return self._loaded.pair_of(_checked(obj)) or self._own.pair(obj, self.scope)

    def _push_of(self, obj: Any) -> str:
        """Return how *obj* is to be pushed; "" if it was not registered."""
        name = name_of(obj)
        kept = self._registered.get(name)
        if kept is not None and kept[0] is obj:
            return kept[1]
        module = obj.__module__ or ""
        while module and found(obj.__module__, obj.__qualname__) is obj:
            if module in self._modules:
                return self._modules[module]
            module = module.rpartition(".")[0]
        return ""

    def _push(self, obj: Any, pair: Pair) -> Record:
        record = self._persist(obj, pair)
        names = Names(pair[0])
        [latest] = self._storage.read([names.latest])
        if not self._is_latest(obj, pair, names, latest):
            self._point(names.latest, record, LATEST, latest)
        return record

    def _check_pushed(self, pair: Pair) -> Record:
        with self._refusing():
            [there] = self._storage.get([pair])
        if there is None:
            raise VersionMissing(
                f"{pair[0]}@{pair[1][:12]} was not pushed to {self.store.url}, and is registered "
                "with push='manual': run celery offload classes push, or registry.push(…)",
                store=self.store.url,
            )
        self._check_there(there.record)
        return there.record

    def _persist(self, obj: Any, pair: Pair) -> Record:
        """Store a version and those that it needs, as far as they are not there; return the
        record of the first.
        """
        records: dict[Pair, Record] = {}
        made: list[tuple[Stored, bytes | None]] = []
        asked = {pair: obj}
        while asked:
            contents = self._storage.read(Names(name).version(h) for name, h in asked)
            needed: dict[Pair, Any] = {}
            for (its, each), content in zip(asked.items(), contents, strict=True):
                there = self._good(each, its, content)
                if there is None:
                    stored, needs = self._dumped(each, its)
                    made.append((stored, content))
                    needed |= needs
                records[its] = there or stored.record
            asked = {its: each for its, each in needed.items() if its not in records}
        for stored, content in reversed(made):
            records[stored.record.pair] = self._put(stored, content)
        return records[pair]

    def _good(self, obj: Any, pair: Pair, content: bytes | None) -> Record | None:
        """Return the record of a version that is stored as it should be, None if it is not."""
        record = self._recorded(obj, pair, content)
        if record is None or content is None:
            return None
        try:
            return self._storage.stored(Names(pair[0]), pair[1], content).record
        except CodeRefused as exc:
            self._warn(str(exc))
            return None

    def _recorded(self, obj: Any, pair: Pair, content: bytes | None) -> Record | None:
        """The same, with a look at the record alone."""
        if content is None:
            return None
        try:
            record = self._storage.record(Names(pair[0]), pair[1], content)
            lack = self._lack(obj, record)
        except CodeRefused as exc:
            lack = str(exc)
        if lack:
            self._warn(lack)
            return None
        return record

    def _warn(self, why: str) -> None:
        logger.warning("in place of what is in %s it is pushed: %s", self.store.url, why)

    def _lack(self, obj: Any, record: Record) -> str:
        """Return what is wrong with a record of this version; "" if nothing is."""
        known = record.signature is None or record.signature.key in self.policy.keys
        if self.policy.mode == SIGNED or (self._means.signer is not None and known):
            try:
                self.policy.check_signature(record)
            except CodeRefused as exc:
                return str(exc)
        if self._means.ship_source and not record.source:
            scope = self.scope.including(obj.__module__)
            if source_of(obj, scope, self._pair):
                return f"{_shown(record)} is without its source"
        return ""

    def _put(self, stored: Stored, instead: bytes | None) -> Record:
        """Store a version; return the record of what is there then: another may come first."""
        record = stored.record
        if self._storage.put(stored, instead):
            self._counters.add(classes_pushed=1)
            logger.info("pushed %s to %s", _shown(record), self.store.url)
            return record
        there = self.stored(*record.pair)
        self._check_there(there.record)
        return there.record

    def _is_latest(self, obj: Any, pair: Pair, names: Names, content: bytes | None) -> bool:
        if content is None:
            return False
        try:
            record = self._pointed(content, names, names.latest, LATEST)
        except CodeRefused as exc:
            logger.warning("in its place this version is pushed: %s", exc)
            return False
        return record.hash == pair[1] and not self._lack(obj, record)

    def _is_believed(self, record: Record) -> bool:
        """Return whether a record that is there is to be believed."""
        return self.policy.mode != SIGNED or self.policy.signed_by(record) is not None

    def _check_there(self, record: Record) -> None:
        """Raise CodeRefused if what is there would be trusted nowhere."""
        if self.policy.mode == SIGNED:
            with self._refusing():
                self.policy.check_signature(record)

    def _dumped(self, obj: Any, pair: Pair) -> tuple[Stored, dict[Pair, Any]]:
        needed: dict[Pair, Any] = {}

        def pair_of(other: Any) -> Pair:
            its = self._pair(other)
            needed[its] = other
            return its

        scope = self.scope.including(obj.__module__)
        content = dump(obj, pair, scope, pair_of)
        source = source_of(obj, scope, pair_of) if self._means.ship_source else b""
        record = Record(
            class_name=pair[0],
            hash=pair[1],
            digest=digest_of([content]),
            size=len(content),
            python=python_tag(),
            kind=CLASS if isinstance(obj, type) else FUNCTION,
            created=self._clock(),
            modules=tuple(sorted(self._modules)),
            needs=tuple(needed),
            source=digest_of([source]) if source else "",
            source_size=len(source),
        )
        return Stored(self._signed(record), content, source), needed

    def _signed(self, record: Record) -> Record:
        record = replace(record, signature=None)
        signer = self._means.signer
        if signer is None:
            if self.policy.mode == SIGNED:
                raise ConfigurationError(
                    f"{record.class_name} cannot be pushed: offload_code is 'signed', and there is "
                    "no offload_signing_key"
                )
            return record
        self.policy.check_signer(signer.id)
        value = signer.sign(record.signed_bytes).hex()
        return replace(record, signature=Signature(signer.id, value))

    def _point(
        self, pointer: str, record: Record, purpose: str, current: bytes | None = None
    ) -> None:
        """Have a pointer say which version is meant, by compare-and-swap."""
        new = self._signed(replace(record, purpose=purpose, created=self._clock()))
        for _ in range(_TURNS):
            if self._storage.swap(pointer, current, new.to_bytes()):
                return
            [current] = self._storage.read([pointer])
        raise OffloadError(
            f"{pointer} changed whenever it was looked at, {_TURNS} times",
            store=self.store.url,
        )

    def _version(self, name: str, code_hash: str) -> tuple[Names, Record]:
        stored = self.stored(name, code_hash)
        self._check_there(stored.record)
        return Names(stored.record.class_name), stored.record

    def _read_latest(self, names: Names, content: bytes) -> Record:
        record = self._pointed(content, names, names.latest, LATEST)
        self._check_there(record)
        return record

    def _pointed(self, content: bytes, names: Names, pointer: str, purpose: str) -> Record:
        with self._refusing():
            record = Record.from_bytes(content, pointer)
            if record.class_name != names.name or record.purpose != purpose:
                raise CodeRefused(
                    f"{pointer} holds {record.purpose} of {record.class_name}@{record.hash[:12]}: "
                    f"it was put in the place of another; find out who writes to the store, and "
                    f"push {names.name} again"
                )
        return record

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Count and log what is refused within this, and have the error name the store."""
        try:
            yield
        except CodeRefused as exc:
            url = self.store.url
            self._counters.add(classes_refused=1)
            logger.warning("refused, from %s%s: %s", url, _for_task(), exc)
            raise CodeRefused(f"{exc} (in {url})", digest=exc.digest, store=url) from exc

    def _trusted_version(self, pair: Pair) -> Stored:
        """Return a version that may be loaded; nothing of it ran."""
        [(stored, _by)] = self._trusted_versions([pair])
        return stored

    def _trusted_versions(self, pairs: list[Pair]) -> list[tuple[Stored, str]]:
        """Return versions that may be loaded, and by whose key; nothing of them ran."""
        with self._refusing():
            for pair in pairs:
                self.policy.check_name(*pair)
            found = self._storage.get(pairs)
        trusted = []
        for pair, stored in zip(pairs, found, strict=True):
            if stored is None:
                raise self._missing(Names(pair[0]), f"version {pair[1][:12]}")
            with self._refusing():
                trusted.append((stored, self.policy.check(stored.record)))
        return trusted

    def _there(self, pair: Pair) -> Any:
        """Return a version that this process has, None if it has to be loaded."""
        there = self._loaded.find(pair)
        if there is not None:
            return there
        registered = self._registered.get(pair[0], ())[:1]
        return self._own.find(pair, registered, self.scope)

    def _made(self, stored: Stored, by: str, loader: Any) -> Any:
        record = stored.record
        same = record.python == python_tag()
        try:
            obj = load(stored.content, loader) if same else rebuild(stored.source, record, loader)
        except OffloadError:
            raise
        except Exception as exc:
            raise DeserializationError(
                f"{_shown(record)} cannot be made here: {type(exc).__name__}: {exc}; what it "
                "imports has to be installed, and its bases and metaclass have to make it as they "
                "did before: without keywords, and before it has its attributes"
            ) from exc
        signed = f", signed by {by}" if by else ""
        logger.info("loaded %s from %s%s%s", _shown(record), self.store.url, _for_task(), signed)
        self._counters.add(classes_loaded=1)
        return obj

    def _needs(self, stored: Stored) -> list[Pair]:
        """Return what a version needs here: of another Python it is made of its source.

        Raises WrongPython if it cannot be made here.
        """
        record = stored.record
        if record.python == python_tag():
            return list(record.needs)
        if record.source and self._means.ship_source:
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

    def _missing(self, names: Names, what: str) -> OffloadError:
        if any(True for _ in self._storage.names(names.folder)):
            return VersionMissing(
                f"{self.store.url} has no {what} of {names.name}; it has others",
                store=self.store.url,
            )
        return UnknownClass(
            f"{self.store.url} has no class or function {names.name!r}: push it first",
            store=self.store.url,
        )


class _Loading:
    """Loads a version and what it needs; nothing of it runs before all of it may be loaded.

    Attributes:
        stored: what was read, and by whose key it is signed.
        made: what was made of it.
    """

    def __init__(self, registry: ClassRegistry, there: Callable[[Pair], Any]) -> None:
        self._registry = registry
        self._there = there
        self.stored: dict[Pair, tuple[Stored, str]] = {}
        self.made: dict[Pair, Any] = {}

    def load(self, name: str, code_hash: str) -> Any:
        pair = (name, code_hash)
        there = self.made.get(pair)
        there = there if there is not None else self._there(pair)
        if there is not None:
            return there
        if pair not in self.stored:
            self.read(pair)
        self.made[pair] = self._registry._made(*self.stored[pair], self)
        return self.made[pair]

    @property
    def registry(self) -> ClassRegistry:
        return self._registry

    @property
    def app(self) -> Any:
        return self._registry.app

    def begin(self, name: str, code_hash: str, obj: Any) -> Any:
        return self.made.setdefault((name, code_hash), obj)

    def read(self, pair: Pair) -> None:
        """Read a version and what it needs; raises as `ClassRegistry.pull` does."""
        asked = [pair]
        while asked:
            found = self._registry._trusted_versions(asked)
            self.stored.update(zip(asked, found, strict=True))
            needs = {need: None for stored, _ in found for need in self._registry._needs(stored)}
            asked = [it for it in needs if it not in self.stored and self._there(it) is None]


def _checked(obj: Any) -> Any:
    if not isinstance(obj, (type, FunctionType)):
        raise NotShippable(f"a class or function is wanted, this is a {type(obj).__name__}")
    return obj


def _is_of(obj: Any, module: str) -> bool:
    return isinstance(obj, (type, FunctionType)) and obj.__module__ == module


def _shown(record: Record) -> str:
    return f"{record.kind} {record.class_name}@{record.hash[:12]}"


def _for_task() -> str:
    if for_task.get():
        return f" for task {for_task.get()}"
    task = current_task._get_current_object()
    return f" for task {task.name}[{task.request.id}]" if task is not None else ""
