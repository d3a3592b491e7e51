"""Classes in a store, how this process' own stand to them, and what it would refuse to load."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from offload.catalog.versions import signer
from offload.errors import CodeError
from offload.registry.listing import UNTRACKED, Listed, Standing
from offload.registry.names import name_of
from offload.registry.policy import OFF
from offload.registry.record import LATEST, Record
from offload.registry.registry import ClassRegistry

__all__ = ("ClassState", "History", "VersionState", "classes_of", "history_of")

MOST = 200
"""Versions of one class that are told."""


@dataclass(frozen=True)
class ClassState:
    """A class or function in the store, or registered here. Texts of a store are data.

    Attributes:
        latest: None where nobody said which is, or *broken*.
        versions: their hashes, in no order; none where it is only registered here.
        status: how this process' own stands to the latest; "" where it has none.
        signer: whose signature the latest has, as far as this process can tell; "" without latest.
        broken: why it cannot be read which is the latest; "" if it can.
        refused: why the latest would not be loaded here; "" if it would, or if this process loads
            no code at all.
    """

    name: str
    latest: Record | None = None
    versions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    status: str = ""
    signer: str = ""
    broken: str = ""
    refused: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether there is anything of it in the store."""
        return bool(self.versions or self.tags or self.latest or self.broken)


@dataclass(frozen=True)
class VersionState:
    """One version of a class.

    Attributes:
        record: None if what is stored is none.
        tags: that point to it, ``latest`` among them.
        here: whether this process has it registered.
        signer, refused: as of `ClassState`.
    """

    hash: str
    record: Record | None
    tags: tuple[str, ...]
    here: bool
    signer: str
    refused: str


@dataclass(frozen=True)
class History:
    """The versions of a class, the newest first.

    Attributes:
        versions: `MOST` at most.
        left_off: how many more there are.
        broken: tags that cannot be read.
    """

    name: str
    versions: tuple[VersionState, ...]
    left_off: int = 0
    broken: tuple[str, ...] = ()


def classes_of(registry: ClassRegistry) -> list[ClassState]:
    """Return all that is in the store or registered here, by name. Few round trips for any
    number.
    """
    own = _own(registry)
    found = registry.listing()
    states = [_state(registry, each, own.get(each.name)) for each in found]
    there = {each.name for each in found}
    states += [ClassState(name, status=UNTRACKED) for name in own if name not in there]
    return sorted(states, key=lambda state: state.name)


def history_of(registry: ClassRegistry, state: ClassState) -> History:
    """Return the versions of a class that `classes_of` told of. Two round trips."""
    own = _own(registry).get(state.name)
    tags: dict[str, list[str]] = defaultdict(list)
    pointed = registry.pointed(state.name, [LATEST, *state.tags])
    for tag, code_hash in pointed.items():
        if code_hash is not None:
            tags[code_hash].append(tag)
    heads = registry.heads(state.name, state.versions)
    ordered = sorted(heads, key=lambda code_hash: _age(heads[code_hash]), reverse=True)
    versions = tuple(
        _version(registry, code_hash, heads[code_hash], sorted(tags[code_hash]), own)
        for code_hash in ordered[:MOST]
    )
    broken = tuple(tag for tag, code_hash in pointed.items() if code_hash is None)
    return History(state.name, versions, len(ordered) - len(versions), broken)


def _own(registry: ClassRegistry) -> dict[str, str]:
    """Return the hashes of what is registered here."""
    return {name_of(obj): registry.get_class_hash(obj) for obj in registry.registered}


def _age(record: Record | None) -> float:
    return record.created if record is not None else 0.0


def _state(registry: ClassRegistry, listed: Listed, own: str | None) -> ClassState:
    latest = listed.latest
    status = "" if own is None or listed.broken else Standing(listed.name, own, latest).status
    return ClassState(
        listed.name,
        latest,
        listed.versions,
        tuple(sorted(listed.tags)),
        status,
        signer(registry.policy, latest) if latest is not None else "",
        listed.broken,
        _refused(registry, latest) if latest is not None else "",
    )


def _version(
    registry: ClassRegistry,
    code_hash: str,
    record: Record | None,
    tags: Sequence[str],
    own: str | None,
) -> VersionState:
    return VersionState(
        code_hash,
        record,
        tuple(tags),
        code_hash == own,
        signer(registry.policy, record) if record is not None else "",
        _refused(registry, record) if record is not None else "what is stored is no such version",
    )


def _refused(registry: ClassRegistry, record: Record) -> str:
    if registry.policy.mode == OFF:
        return ""
    try:
        registry.policy.check(record)
    except CodeError as exc:
        return str(exc)
    return ""
