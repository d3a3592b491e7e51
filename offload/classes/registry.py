"""ClassRegistry: classes and functions under their names and hashes, in a store."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from types import FunctionType, ModuleType
from typing import Any, TypeVar, overload

from offload.classes.hashing.identity import identify, python_tag
from offload.classes.keys import own_key
from offload.classes.listing import (
    OUT_OF_SYNC,
    SYNCED,
    UNTRACKED,
    Listed,
    SyncStatus,
    heads,
    listed,
    pointed,
    prune,
)
from offload.classes.loading import Loading
from offload.classes.local import LoadedClasses, LocalClasses, defined
from offload.classes.pickling import own_registry
from offload.classes.policy import OFF, SIGNED, Policy, RegistryConfig
from offload.classes.pushing import Pushing
from offload.classes.scope import Scope, found
from offload.classes.source import diff
from offload.classes.trusted import Versions
from offload.classes.versions import (
    LATEST,
    ClassVersion,
    Names,
    Record,
    Stored,
    check_hash,
    name_of,
    tagged,
)
from offload.counters import Counters
from offload.errors import (
    CodeRefused,
    ConfigurationError,
    NotShippable,
    SerializationError,
    StoreUnavailable,
    UnknownClass,
    VersionMissing,
)
from offload.stores import open_store
from offload.stores.protocols import Store

__all__ = ("OUT_OF_SYNC", "SYNCED", "UNTRACKED", "ClassRegistry")

T = TypeVar("T")
logger = logging.getLogger(__name__)

AUTO, MANUAL = "auto", "manual"
_BEGIN = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
_SURE = 60.0  # seconds for which a version that was seen in the store is taken to be there


@dataclass
class _Registrations:
    """The registered objects, and when to push them. Several registries may share it."""

    modules: dict[str, str] = field(default_factory=dict)
    objects: dict[str, tuple[Any, str]] = field(default_factory=dict)
    scope: Scope = field(default_factory=Scope)


class ClassRegistry:
    """Classes and functions in a store, each version under its hash.

    Args:
        store: a store, or its URL.
        mode: what may be loaded: ``off`` (nothing), ``signed`` or ``trusted`` (everything).
        signing_key: signs what is pushed; see `offload.classes.keys`.
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
        self._begin(
            lambda: RegistryConfig(opened, policy, signing_key, ship_source), counters, clock
        )

    @classmethod
    def from_config(
        cls,
        config: Callable[[], RegistryConfig],
        counters: Counters,
        like: ClassRegistry | None = None,
    ) -> ClassRegistry:
        """Return a registry that asks for what it works with when it first needs it.

        What is registered with *like*, before or later, is registered here as well.
        """
        made = cls.__new__(cls)
        made._begin(config, counters, time.time)
        if like is not None:
            made._shared = like._shared
        return made

    def _begin(
        self,
        config: Callable[[], RegistryConfig],
        counters: Counters | None,
        clock: Callable[[], float],
    ) -> None:
        self._make_config = config
        self._clock = clock
        self._counters = counters or Counters()
        self._loaded = LoadedClasses()
        self._shared = _Registrations()
        self._own = LocalClasses()
        self._along: set[str] = set()
        self._looked_at: set[ClassVersion] = set()
        self._stored: dict[ClassVersion, float] = {}
        self._signed: set[ClassVersion] = set()
        self._lacking: dict[ClassVersion, Any] = {}  # what was stored without its source

    @cached_property
    def _config(self) -> RegistryConfig:
        return self._make_config()

    @cached_property
    def _versions(self) -> Versions:
        return Versions(self._config, self._counters, self._clock)

    @cached_property
    def _pushing(self) -> Pushing:
        return Pushing(self._versions, self._pair_to_send, lambda: self.scope)

    @property
    def store(self) -> Store:
        """Where versions are."""
        return self._config.store

    @property
    def policy(self) -> Policy:
        """What may be loaded."""
        return self._config.policy

    @property
    def signer_id(self) -> str | None:
        """The id of the key that signs what is pushed; None if it is not signed."""
        signer = self._config.signer
        return None if signer is None else signer.id

    @property
    def app(self) -> Any:
        """The Celery app that code which is loaded refers to; None: the current one."""
        return self._config.app

    @property
    def registry(self) -> ClassRegistry:
        """This one; see `offload.classes.pickling.Loader`."""
        return self

    def __reduce__(self) -> Any:
        """Be the registry that loads it, in code that is shipped: keys are not stored."""
        return own_registry, ()

    def check_keys(self) -> None:
        """Raise ConfigurationError if a key that is configured cannot be used."""
        _ = self.policy.keys
        _ = self._config.signer

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
        self._shared.scope = Scope(self._modules, self._registered)
        return obj

    @property
    def _modules(self) -> dict[str, str]:
        return self._shared.modules

    @property
    def _registered(self) -> dict[str, tuple[Any, str]]:
        return self._shared.objects

    @property
    def registered(self) -> list[Any]:
        """The classes and functions that were registered, with those of registered modules and
        their submodules, which this imports.

        Objects of a module that can't be shipped are logged and left out.
        """
        here = [obj for obj, _ in self._registered.values()]
        for module in _with_submodules(self._modules):
            defined_there = [obj for obj in vars(module).values() if _is_of(obj, module.__name__)]
            here += filter(self._is_shippable, defined_there)
        return list({id(obj): obj for obj in here}.values())

    @property
    def shipped_modules(self) -> set[str]:
        """The modules in which something was registered."""
        return set(self._modules) | {obj.__module__ for obj, _ in self._registered.values()}

    @property
    def scope(self) -> Scope:
        """What is shipped without being asked for by name."""
        return self._shared.scope

    def ships_by_value(self, obj: Any) -> bool:
        """Return whether a class or function is one that others cannot be expected to import."""
        return self.must_ship(obj) or obj in self.scope

    def must_ship(self, obj: Any) -> bool:
        """Return whether a class or function is shipped also where something else would do: what
        is in ``__main__``, registered, referred to by what was registered, or loaded.
        """
        if self.scope.includes(obj.__module__) or self._loaded.pair_of(obj) is not None:
            return True
        name = f"{obj.__module__}.{obj.__qualname__}"
        kept = self._registered.get(name)
        return (kept is not None and kept[0] is obj) or name in self._along

    def is_version(self, cls: type) -> bool:
        """Return whether a class is a version: loaded, registered, sent, or in ``__main__``."""
        return self.must_ship(cls) or self._own.was_sent(cls)

    @property
    def can_push(self) -> bool:
        """Whether what this process pushes can be signed, if it has to be."""
        return self.policy.mode != SIGNED or self._config.signer is not None

    # -- hashes

    def get_class_hash(self, cls: Any) -> str:
        """Return the hash of a class or function; see `offload.classes.hashing.identity`.

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
        [sync] = self.sync_statuses([cls])
        return sync.status

    def statuses(self) -> dict[str, str]:
        """Return the status of all that is registered, by name; in one round trip."""
        return {each.name: each.status for each in self.sync_statuses()}

    def sync_statuses(self, classes: Iterable[Any] | None = None) -> list[SyncStatus]:
        """Return how all that is registered, or *classes*, stand to the store, in one round trip.

        Raises CodeRefused where the latest is none, or in mode ``signed`` is signed by nobody
        trusted.
        """
        pairs = [self._pair(obj) for obj in (self.registered if classes is None else classes)]
        names = [Names(name) for name, _ in pairs]
        contents = self._versions.storage.read(each.latest for each in names)
        return [
            SyncStatus(
                *pair, None if content is None else self._versions.read_latest(each, content)
            )
            for pair, each, content in zip(pairs, names, contents, strict=True)
        ]

    # -- pushing

    def persist_class(self, cls: Any) -> str:
        """Store this version, and what it needs; leave the latest as it is. Return the hash.

        One that is there stays as it is, unless it lacks a signature that it has to have, or its
        source.
        """
        pair = self._pair_to_send(cls)
        self._pushing.persist(cls, pair)
        return pair[1]

    def push(self, cls: Any) -> str:
        """Store this version and make it the latest; return the hash. Again changes nothing."""
        pair = self._pair_to_send(cls)
        self._pushing.push(cls, pair)
        return pair[1]

    def push_all(self, classes: Iterable[Any] | None = None) -> dict[str, str]:
        """Push all that is registered, or *classes*; return the hashes of those that changed.

        What the store says is the latest costs nothing but its part in one common round trip;
        that it is signed, too, where it has to be. Whether it is still whole is looked at by
        `push` and `verify`.
        """
        return self._pushing.push_all(self.registered if classes is None else list(classes))

    def ship(self, obj: Any) -> ClassVersion:
        """Return name and hash of what is about to be sent, having made sure that it is stored."""
        pair = self._pair_to_send(obj)
        if self._loaded.pair_of(obj) is not None:
            return pair  # it came from the store
        now = self._clock()
        before = self._stored.get(pair)
        is_other = self._lacking.get(pair, obj) is not obj  # a cell that was run again, with source
        if before is None or is_other or not 0 <= now - before < _SURE:
            try:
                self._ship(obj, pair, first=before is None)
            except StoreUnavailable:
                if before is None:
                    raise
                return pair  # it was there
            self._stored[pair] = now
        return pair

    def _ship(self, obj: Any, pair: ClassVersion, *, first: bool) -> None:
        push = self._push_of(obj)
        if push == MANUAL:
            record = self._check_pushed(pair)
        elif push == AUTO and first:
            record = self._pushing.push(obj, pair)
        else:  # once only, or it would undo what others push, and rollbacks
            record = self._pushing.persist(obj, pair)
        self._lacking.pop(pair, None)
        if self._config.ship_source and not record.source:
            self._lacking[pair] = obj
        asked = [need for need in record.needs if need not in self._looked_at]
        while asked:
            found = self._versions.storage.heads(Names(name).version(h) for name, h in asked)
            self._along.update(name for name, _ in asked)
            self._looked_at.update(asked)
            needs = {
                need: None
                for pair, each in zip(asked, found, strict=True)
                if each is not None and each.pair == pair and self._versions.is_believed(each)
                for need in each.needs
            }
            asked = [need for need in needs if need not in self._looked_at]

    def tag(self, name: str, tag: str, code_hash: str) -> None:
        """Give a version a tag, in place of the one that has it.

        Raises UnknownClass, VersionMissing.
        """
        names, record = self._version(name, code_hash)
        self._versions.point(names.tag(tag), record, tagged(tag))

    def rollback(self, name: str, code_hash: str) -> None:
        """Make a version that is stored the latest. Raises UnknownClass, VersionMissing."""
        names, record = self._version(name, code_hash)
        self._versions.point(names.latest, record, LATEST)

    def prune(self, older_than: float, *, dry_run: bool = False) -> list[Record]:
        """Remove versions that were pushed more than *older_than* seconds ago, and return them.

        Not those that are the latest, have a tag, or are needed by one that stays. Every version
        that was ever sent is kept until this is called: it is for a time that no message waits
        and no process goes on sending. What is sent all the same after that is pushed again, by
        who has it, within a minute.
        """
        before = self._clock() - older_than
        return list(prune(self._versions.storage, before, dry_run=dry_run))

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

    def resolve(
        self, name: str, code_hash: str | None = None, *, tag: str | None = None
    ) -> ClassVersion:
        """Return the whole name and hash that are meant. Raises as `pull` does."""
        if code_hash is not None and tag is not None:
            raise ValueError("a version is asked for by its hash or by a tag, not by both")
        if code_hash is not None:
            return self.full_name(name), check_hash(code_hash)
        names = Names(self.full_name(name))
        with self._versions.refusing():
            self.policy.check_name(names.name, None)
        pointer = names.latest if tag is None else names.tag(tag)
        [content] = self._versions.storage.read([pointer])
        if content is None:
            raise self._versions.missing(names, f"tag {tag!r}" if tag else "latest version")
        record = self._versions.pointed(
            content, names, pointer, LATEST if tag is None else tagged(tag)
        )
        with self._versions.refusing():
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
            loading = Loading(self._versions, self, self._there)
            obj = loading.load(name, code_hash)
            self._loaded.add(loading.made)
            return obj

    def check_name(self, name: str, code_hash: str) -> None:
        """Raise CodeRefused if the policy excludes this version, whoever signed it."""
        self._versions.check_name((name, code_hash))

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
        loading = Loading(self._versions, self, lambda _: None)
        obj = loading.load(*pair)
        record = loading.stored[pair][0].record
        if record.python == python_tag():
            needs = {name for each, _ in loading.stored.values() for name, _ in each.record.needs}
            actual = identify(obj, Scope(record.modules, needs)).hash
            with self._versions.refusing():
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
        return self._versions.trusted_one(self.resolve(name, code_hash, tag=tag)).record

    def check(self, name: str, code_hash: str | None = None, *, tag: str | None = None) -> Record:
        """Return the record of a version that this process would load, with all that it needs;
        nothing of it runs. Raises as `pull` does.
        """
        pair = self.resolve(name, code_hash, tag=tag)
        loading = Loading(self._versions, self, lambda _: None)
        loading.read(pair)
        return loading.stored[pair][0].record

    # -- looking

    def listing(self) -> list[Listed]:
        """Return all that is in the store, by name. Nothing is said about whether to trust it."""
        return listed(self._versions.storage)

    def classes(self) -> dict[str, Record]:
        """Return the record of the latest version of every class, by name.

        Nothing is said about whether to trust it; one that cannot be read is left out.
        """
        return {each.name: each.latest for each in self.listing() if each.latest is not None}

    def stored(self, name: str, code_hash: str) -> Stored:
        """Return a version as it is in the store. Nothing is said about whether to trust it.

        Raises UnknownClass, VersionMissing; CodeRefused if it is not what its record says.
        """
        return self._versions.stored(self.full_name(name), code_hash)

    def find_hash(self, name: str, meant: str, *, tags: bool = False) -> str:
        """Return the hash of the version of which *meant* is the begin (8 digits or more).

        Args:
            tags: whether *meant* may be a tag, or ``latest``, too. Nothing is said about whether
                to trust what that points to.

        Raises UnknownClass; VersionMissing if it is none or may be several.
        """
        names = Names(self.full_name(name))
        hashes = self._versions.storage.hashes(names)
        found = {each for each in hashes if _BEGIN.fullmatch(meant) and each.startswith(meant)}
        if tags:
            found |= {each for tag, each in self.tags(names.name).items() if tag == meant}
        if not found:
            what = f"version{' or tag' if tags else ''} {meant!r:.70}"
            if not _BEGIN.fullmatch(meant):
                what += " (of a hash 8 digits or more are wanted)"
            raise self._versions.missing(names, what)
        if len(found) > 1:
            shown = " or ".join(sorted(found))
            raise VersionMissing(f"{meant!r} of {names.name} may be {shown}: say which")
        return found.pop()

    def versions(self, name: str) -> list[Record]:
        """Return the records of all versions, the oldest first. Raises UnknownClass."""
        names = Names(self.full_name(name))
        found = self._versions.storage.records(names)
        if not found:
            raise self._versions.missing(names, "version")
        return found

    def heads(self, name: str, hashes: Iterable[str]) -> dict[str, Record | None]:
        """Return the records of these versions of the class of exactly this name, by their hashes;
        None for one that is not there, is none, or is another's. One round trip.
        """
        return heads(self._versions.storage, name, hashes)

    def pointed(self, name: str, tags: Iterable[str]) -> dict[str, str | None]:
        """Return the hashes that these tags of the class of exactly this name stand for, ``latest``
        as well; None for one that cannot be read. One round trip.
        """
        return pointed(self._versions.storage, name, tags)

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of a class, ``latest`` among them, and the hashes they stand for."""
        names = Names(self.full_name(name))
        pointers = [n for n in self._versions.storage.names(names.folder) if n.endswith(".json")]
        contents = zip(pointers, self._versions.storage.read(pointers), strict=True)
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

    def _pair(self, obj: Any) -> ClassVersion:
        return self._loaded.pair_of(_checked(obj)) or self._own.pair(obj, self.scope)

    def _is_shippable(self, obj: Any) -> bool:
        try:
            self._pair(obj)
        except SerializationError as exc:
            logger.warning("%s is left out: %s", name_of(obj), exc)
            return False
        return True

    def _pair_to_send(self, obj: Any) -> ClassVersion:
        pair = self._pair(obj)
        self._own.send(obj)
        return pair

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

    def _check_pushed(self, pair: ClassVersion) -> Record:
        with self._versions.refusing():
            [there] = self._versions.storage.get([pair])
        if there is None:
            raise VersionMissing(
                f"{pair[0]}@{pair[1][:12]} was not pushed to {self.store.url}, and is registered "
                "with push='manual': run celery offload classes push, or registry.push(…)",
                store=self.store.url,
            )
        self._versions.check_there(there.record)
        return there.record

    def _version(self, name: str, code_hash: str) -> tuple[Names, Record]:
        stored = self.stored(name, code_hash)
        self._versions.check_there(stored.record)
        return Names(stored.record.class_name), stored.record

    def _there(self, pair: ClassVersion) -> Any:
        """Return a version that this process has, None if it has to be loaded.

        Raises CodeRefused for one that the policy would not let it load: having a class doesn't
        mean that data may use it.
        """
        there = self._loaded.find(pair)
        if there is not None:
            return there
        self._versions.check_name(pair)
        found = self._own.find(pair, self._local(pair), self.scope)
        signed = self.policy.mode != SIGNED or pair in self._stored or pair in self._signed
        if found is not None and not signed:
            self._versions.trusted([pair])
            self._signed.add(pair)
        return found

    def _local(self, pair: ClassVersion) -> Iterator[Any]:
        """Yield what a version may be here: registered, in ``__main__``, or sent with a class."""
        name = pair[0]
        yield from self._registered.get(name, ())[:1]
        along = pair in self._looked_at
        found = defined(name, lambda module: along or self.scope.includes(module))
        if found is not None:
            yield found


def _checked(obj: Any) -> Any:
    if not isinstance(obj, (type, FunctionType)):
        raise NotShippable(f"a class or function is wanted, this is a {type(obj).__name__}")
    return obj


def _with_submodules(names: Iterable[str]) -> list[ModuleType]:
    """Return modules and their submodules, by name; those that cannot be imported are logged.

    A ``__main__`` of a package is left out: importing it may run a program.
    """
    found: dict[str, ModuleType] = {}
    waiting = list(names)
    while waiting:
        module = import_module(waiting.pop())
        found[module.__name__] = module
        for each in iter_modules(getattr(module, "__path__", ()), f"{module.__name__}."):
            if each.name in found or each.name.endswith(".__main__"):
                continue
            try:
                import_module(each.name)
            except Exception as exc:
                logger.warning("%s is left out, it cannot be imported: %r", each.name, exc)
            else:
                waiting.append(each.name)
    return [found[name] for name in sorted(found)]


def _is_of(obj: Any, module: str) -> bool:
    return isinstance(obj, (type, FunctionType)) and obj.__module__ == module
