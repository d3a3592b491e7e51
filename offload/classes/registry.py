"""Class registry: register, push, and pull versions of classes and functions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, overload

from offload.classes.hashing import LocalClasses, identify, python_tag
from offload.classes.keys import own_key
from offload.classes.listing import StoredClasses, SyncStatus
from offload.classes.loading import LoadedClasses, VersionLoader
from offload.classes.pickling import own_registry
from offload.classes.policy import OFF, SIGNED, Policy, RegistryConfig, Versions
from offload.classes.pushing import Pusher
from offload.classes.scope import (
    AUTO,
    MANUAL,
    Registrations,
    Scope,
    find_in_modules,
)
from offload.classes.versions import (
    LATEST,
    ClassVersion,
    PointerNames,
    Record,
    check_hash,
    label,
    name_of,
    tag_purpose,
)
from offload.errors import CodeRefused, ConfigurationError, SerializationError
from offload.metrics.counters import Counters
from offload.stores import open_store
from offload.stores.protocols import Store

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ClassRegistry(StoredClasses):
    """Classes and functions in a store, each version under its hash.

    Args:
        store: a store, or its URL.
        mode: what may be loaded: ``off`` (nothing), ``signed``, or ``trusted`` (everything).
        signing_key: signs pushed versions; see `offload.classes.keys`.
        verify_keys: keys whose signatures are accepted in mode ``signed``, besides *signing_key*.
        allow: patterns of names that may be loaded; empty allows all.
        ship_source: also push source, and build from source what another Python version pushed.
        counters: counts versions that are pushed, loaded, and refused.
        clock: returns seconds since 1970.

    Methods that access the store raise StoreUnavailable while it is unavailable.
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
        config = RegistryConfig(opened, policy, signing_key, ship_source)
        self._set_up(Versions(lambda: config, counters or Counters(), clock), Registrations())

    @classmethod
    def from_config(
        cls,
        config: Callable[[], RegistryConfig],
        counters: Counters,
        like: ClassRegistry | None = None,
    ) -> ClassRegistry:
        """Create a registry that calls *config* when it first needs its configuration.

        If *like* is given, the registry shares its registrations.
        """
        made = cls.__new__(cls)
        registrations = Registrations() if like is None else like._registrations
        made._set_up(Versions(config, counters, time.time), registrations)
        return made

    def _set_up(self, versions: Versions, registrations: Registrations) -> None:
        self._versions = versions
        self._registrations = registrations
        self._local = LocalClasses()
        self._loaded = LoadedClasses()
        self._pusher = Pusher(versions, registrations, self._pair_to_send)
        self._signed: set[ClassVersion] = set()  # local versions whose signature was checked

    @property
    def store(self) -> Store:
        """The store that holds the versions."""
        return self._versions.config.store

    @property
    def policy(self) -> Policy:
        """The policy that decides which versions may be loaded."""
        return self._versions.policy

    @property
    def signer_id(self) -> str | None:
        """The ID of the key that signs pushed versions; None if versions aren't signed."""
        signer = self._versions.config.signer
        return None if signer is None else signer.id

    @property
    def app(self) -> Any:
        """The Celery app that loaded code refers to; None for the current one."""
        return self._versions.config.app

    @property
    def registry(self) -> ClassRegistry:
        """This registry; see `offload.classes.pickling.Loader`."""
        return self

    def __reduce__(self) -> Any:
        """Pickle as a reference to the loading process's registry, so that keys aren't stored."""
        return own_registry, ()

    def check_keys(self) -> None:
        """Raise ConfigurationError if a configured key is invalid."""
        _ = self.policy.keys
        _ = self._versions.config.signer

    # -- shipping

    @overload
    def register(self, obj: T, *, push: str = AUTO) -> T: ...
    @overload
    def register(self, obj: None = None, *, push: str = AUTO) -> Callable[[T], T]: ...
    def register(self, obj: Any = None, *, push: str = AUTO) -> Any:
        """Ship a class, a function, or everything in a module to workers that can't import it.

        Use it as a decorator, with or without arguments, or call it.

        Args:
            obj: a class, a function, or a module, including its submodules.
            push: ``auto`` pushes a version when it is first sent; ``manual`` requires that it was
                pushed before, for example by ``celery offload classes push``.

        Returns *obj*. Raises ConfigurationError for another value of *push*, and NotShippable.
        """
        if push not in (AUTO, MANUAL):
            raise ConfigurationError(f"register(push={push!r}): expected 'auto' or 'manual'")
        if obj is None:
            return lambda obj: self.register(obj, push=push)
        self._registrations.add(obj, push)
        return obj

    @property
    def registered(self) -> list[Any]:
        """All registered classes and functions.

        Imports registered modules and their submodules to find theirs. Logs and omits objects of a
        module that can't be shipped.
        """
        return self._registrations.all(self._is_shippable)

    @property
    def shipped_modules(self) -> set[str]:
        """The modules in which something was registered."""
        return self._registrations.used_modules()

    @property
    def scope(self) -> Scope:
        """The scope of what ships by value."""
        return self._registrations.scope

    def ships_by_value(self, obj: Any) -> bool:
        """Return whether *obj* ships by value, because workers may be unable to import it."""
        return self.must_ship(obj) or obj in self.scope

    def must_ship(self, obj: Any) -> bool:
        """Return whether a class or function ships even if pickle could import it.

        That is so if it is in ``__main__``, registered, used by registered code, or loaded.
        """
        if self.scope.includes(obj.__module__) or self._loaded.pair_of(obj) is not None:
            return True
        name = f"{obj.__module__}.{obj.__qualname__}"
        return self._registrations.find(name) is obj or name in self._pusher.needed_names

    def is_version(self, cls: type) -> bool:
        """Return whether a class is a version: loaded, registered, sent, or in ``__main__``."""
        return self.must_ship(cls) or self._local.was_sent(cls)

    @property
    def can_push(self) -> bool:
        """Whether this process can push; in mode ``signed``, this requires a signing key."""
        return self.policy.mode != SIGNED or self._versions.config.signer is not None

    # -- hashes

    def get_class_hash(self, cls: Any) -> str:
        """Return the hash of a class or function: 64 hexadecimal digits.

        See `offload.classes.hashing` for what it covers.

        Raises NotShippable (a TypeError) for anything else.
        """
        return self._pair(cls)[1]

    def check_status(self, cls: Any) -> str:
        """Compare a class with the latest version of its name in the store.

        Return ``untracked`` (there is none), ``synced``, or ``out_of_sync``. A version belongs to a
        minor version of Python: if another one pushed the latest version, the class is
        ``out_of_sync`` even if its source is identical. A class that was built from source has the
        version that it was built from.
        """
        [sync] = self.sync_statuses([cls])
        return sync.status

    def statuses(self) -> dict[str, str]:
        """Return the status of everything registered, by name, in one round trip."""
        return {each.name: each.status for each in self.sync_statuses()}

    def sync_statuses(self, classes: Iterable[Any] | None = None) -> list[SyncStatus]:
        """Compare everything registered, or *classes*, with the store, in one round trip.

        Raises CodeRefused if a latest pointer is invalid or, in mode ``signed``, not signed by a
        trusted key.
        """
        pairs = [self._pair(obj) for obj in (self.registered if classes is None else classes)]
        names = [PointerNames(name) for name, _ in pairs]
        contents = self._versions.storage.read(each.latest for each in names)
        return [
            SyncStatus(
                *pair, None if content is None else self._versions.read_latest(each, content)
            )
            for pair, each, content in zip(pairs, names, contents, strict=True)
        ]

    # -- pushing

    def persist_class(self, cls: Any) -> str:
        """Store this version and those it needs without making it the latest; return its hash.

        A version that is already stored isn't changed unless it lacks a required signature or its
        source.
        """
        pair = self._pair_to_send(cls)
        self._pusher.persist(cls, pair)
        return pair[1]

    def push(self, cls: Any) -> str:
        """Store this version and make it the latest; return its hash. Idempotent."""
        pair = self._pair_to_send(cls)
        self._pusher.push(cls, pair)
        return pair[1]

    def push_all(self, classes: Iterable[Any] | None = None) -> dict[str, str]:
        """Push *classes*, or everything registered; return changed hashes by name.

        One round trip checks which versions are the latest and, if required, signed. It doesn't
        check their content; `push` and `verify` do.
        """
        return self._pusher.push_all(self.registered if classes is None else list(classes))

    def ship(self, obj: Any) -> ClassVersion:
        """Make sure that an object to be sent is stored; return its name and hash."""
        pair = self._pair_to_send(obj)
        if self._loaded.pair_of(obj) is None:  # others come from the store
            self._pusher.ship(obj, pair)
        return pair

    def tag(self, name: str, tag: str, code_hash: str) -> None:
        """Point a tag to a version, moving it from any other version.

        Raises UnknownClass, VersionMissing.
        """
        names, record = self._version(name, code_hash)
        self._versions.set_pointer(names.tag(tag), record, tag_purpose(tag))

    def rollback(self, name: str, code_hash: str) -> None:
        """Make a stored version the latest. Raises UnknownClass, VersionMissing."""
        names, record = self._version(name, code_hash)
        self._versions.set_pointer(names.latest, record, LATEST)

    # -- pulling

    def pull(self, name: str, code_hash: str | None = None, *, tag: str | None = None) -> Any:
        """Return a class or function from the store: the latest version, or the requested one.

        A process gets the same object each time: its own class if that has this version.

        Args:
            name: module and qualified name; the last part is enough if it is unambiguous.
            code_hash: the version's full hash.
            tag: a tag of the version, instead of its hash.

        Raises:
            UnknownClass: if the store has nothing with this name (a ValueError).
            VersionMissing: if the store lacks this version (a FileNotFoundError).
            CodeRefused: if this process may not load it.
            WrongPython: if another minor version of Python pushed it, without source.
        """
        return self.load(*self.resolve(name, code_hash, tag=tag))

    def resolve(
        self, name: str, code_hash: str | None = None, *, tag: str | None = None
    ) -> ClassVersion:
        """Return the full name and hash of the requested version. Raises the errors of `pull`."""
        if code_hash is not None and tag is not None:
            raise ValueError("pass a hash or a tag, not both")
        if code_hash is not None:
            return self.full_name(name), check_hash(code_hash)
        names = PointerNames(self.full_name(name))
        self._versions.check_name(names.name, None)
        pointer = names.latest if tag is None else names.tag(tag)
        [content] = self._versions.storage.read([pointer])
        if content is None:
            raise self._versions.missing_error(names, f"tag {tag!r}" if tag else "latest version")
        record = self._versions.parse_pointer(
            content, names, pointer, LATEST if tag is None else tag_purpose(tag)
        )
        with self._versions.counting_refusals():
            self.policy.check(record)
        return names.name, record.hash

    def load(self, name: str, code_hash: str) -> Any:
        """Return the version with exactly this name and hash. Raises the errors of `pull`.

        Its code runs only after it and all versions it needs have been checked.
        """
        pair = (name, code_hash)
        there = self._find(pair)
        if there is not None:
            return there
        with self._loaded.one_at_a_time():
            loading = VersionLoader(self._versions, self, self._find)
            obj = loading.load(name, code_hash)
            self._loaded.add(loading.made)
            return obj

    def check_name(self, name: str, code_hash: str) -> None:
        """Raise CodeRefused if the policy excludes this version, no matter who signed it."""
        self._versions.check_name(name, code_hash)

    def declare(self, name: str, code_hash: str, obj: Any) -> None:  # noqa: ARG002
        """Raise CodeRefused: a value may refer to a version, but not contain one."""
        raise CodeRefused(f"{label((name, code_hash))} is not loaded: values can't contain code")

    def recover_class(self, name: str, code_hash: str) -> Any:
        """Read a version from the store again, verify its hash, and return it.

        It is a new class, not the one that `pull` returns. Raises the errors of `pull`, and
        CodeRefused if its hash isn't *code_hash*. Hashing requires loading it, so the version must
        be trusted. A class built from source has no hash to compare; its digests and, in mode
        ``signed``, its signature are checked as usual.
        """
        pair = self.full_name(name), check_hash(code_hash)
        loading = VersionLoader(self._versions, self, lambda _: None)
        obj = loading.load(*pair)
        record = loading.stored[pair][0].record
        if record.python == python_tag():
            needs = {name for each, _ in loading.stored.values() for name, _ in each.record.needs}
            actual = identify(obj, Scope(record.modules, needs)).hash
            with self._versions.counting_refusals():
                if actual != code_hash:
                    raise CodeRefused(
                        f"{label(pair)}: the stored code has the hash {actual[:12]}; "
                        "it was altered, or pushed by an offload release that hashes differently: "
                        "push it again"
                    )
        return obj

    def verify(self, name: str, code_hash: str | None = None, *, tag: str | None = None) -> Record:
        """Return the record of a version that this process trusts, without running its code.

        Raises the errors of `pull`, except WrongPython.
        """
        [(stored, _by)] = self._versions.read_trusted([self.resolve(name, code_hash, tag=tag)])
        return stored.record

    def check(self, name: str, code_hash: str | None = None, *, tag: str | None = None) -> Record:
        """Check that this process can load a version and all that it needs; return its record.

        Runs no code. Raises the errors of `pull`.
        """
        pair = self.resolve(name, code_hash, tag=tag)
        loading = VersionLoader(self._versions, self, lambda _: None)
        loading.read(pair)
        return loading.stored[pair][0].record

    # -- inside

    def _known_names(self) -> set[str]:
        return {*self._registrations.objects, *(name for name, _ in self._loaded.pairs())}

    def _pair(self, obj: Any) -> ClassVersion:
        return self._loaded.pair_of(obj) or self._local.pair(obj, self.scope)

    def _is_shippable(self, obj: Any) -> bool:
        try:
            self._pair(obj)
        except SerializationError as exc:
            logger.warning("skipping %s: %s", name_of(obj), exc)
            return False
        return True

    def _pair_to_send(self, obj: Any) -> ClassVersion:
        pair = self._pair(obj)
        self._local.send(obj)
        return pair

    def _version(self, name: str, code_hash: str) -> tuple[PointerNames, Record]:
        stored = self.stored(name, code_hash)
        self._versions.check_signed(stored.record)
        return PointerNames(stored.record.class_name), stored.record

    def _find(self, pair: ClassVersion) -> Any:
        """Return a version that this process already has; None if it must be loaded.

        Raises CodeRefused if the policy excludes it: data may not use a class just because this
        process has it.
        """
        there = self._loaded.find(pair)
        if there is not None:
            return there
        self._versions.check_name(*pair)
        is_needed = pair in self._pusher.needs
        candidates = (
            self._registrations.find(pair[0]),
            find_in_modules(pair[0], lambda module: is_needed or self.scope.includes(module)),
        )
        found = self._local.find(pair, candidates, self.scope)
        signed = self.policy.mode != SIGNED or pair in self._pusher.stored or pair in self._signed
        if found is not None and not signed:
            self._versions.read_trusted([pair])
            self._signed.add(pair)
        return found
