"""Compare classes in this process with the versions in a store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from offload.classes.listing import UNTRACKED, ClassSummary, SyncStatus
from offload.classes.policy import OFF, Policy
from offload.classes.registry import ClassRegistry
from offload.classes.versions import LATEST, Record, name_of
from offload.errors import CodeError
from offload.text import human_time

MOST = 200
"""Maximum number of versions in a history."""


@dataclass(frozen=True)
class ClassState:
    """A class or function in the store, or registered in this process.

    Attributes:
        name: its full name.
        latest: the latest version; None if there is none, or if it is *broken*.
        versions: hashes of its versions, in no particular order; empty if not in the store.
        tags: names of its tags.
        status: how the class registered here compares with *latest*; "" if not registered.
        signer: who signed *latest*, as far as this process can verify; "" without *latest*.
        broken: why the pointer to the latest version can't be read; "" if it can.
        refused: why this process wouldn't load *latest*; "" if it would, or if it loads no code.
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
        """Whether the store has a version of it."""
        return bool(self.versions or self.tags or self.latest or self.broken)


@dataclass(frozen=True)
class VersionState:
    """One version of a class.

    Attributes:
        record: the stored record; None if it can't be read.
        tags: tags that point to it, including ``latest``.
        here: whether it is registered in this process.
        signer, refused: as in `ClassState`, for this version.
    """

    hash: str
    record: Record | None
    tags: tuple[str, ...]
    here: bool
    signer: str
    refused: str


@dataclass(frozen=True)
class History:
    """The versions of a class.

    Attributes:
        versions: at most `MOST`, newest first.
        left_off: number of further versions.
        broken: tags that can't be read.
    """

    name: str
    versions: tuple[VersionState, ...]
    left_off: int = 0
    broken: tuple[str, ...] = ()


def classes_of(registry: ClassRegistry) -> list[ClassState]:
    """Return the classes in the store or registered here, sorted by name.

    Takes a few round trips. Raises StoreUnavailable.
    """
    own = _own(registry)
    found = registry.listing()
    states = [_state(registry, each, own.get(each.name)) for each in found]
    there = {each.name for each in found}
    states += [ClassState(name, status=UNTRACKED) for name in own if name not in there]
    return sorted(states, key=lambda state: state.name)


def history_of(registry: ClassRegistry, state: ClassState) -> History:
    """Return the versions of a class that `classes_of` returned.

    Takes two round trips. Raises StoreUnavailable.
    """
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
    """Return the hashes of classes registered here, by name."""
    return {name_of(obj): registry.get_class_hash(obj) for obj in registry.registered}


def _age(record: Record | None) -> float:
    return record.created if record is not None else 0.0


def _state(registry: ClassRegistry, listed: ClassSummary, own: str | None) -> ClassState:
    latest = listed.latest
    status = "" if own is None or listed.broken else SyncStatus(listed.name, own, latest).status
    return ClassState(
        listed.name,
        latest,
        listed.versions,
        tuple(sorted(listed.tags)),
        status,
        signer_of(registry.policy, latest) if latest is not None else "",
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
        signer_of(registry.policy, record) if record is not None else "",
        _refused(registry, record) if record is not None else "the stored record can't be read",
    )


def _refused(registry: ClassRegistry, record: Record) -> str:
    if registry.policy.mode == OFF:
        return ""
    try:
        registry.policy.check(record)
    except CodeError as exc:
        return str(exc)
    return ""


# -- formatting versions for people and programs


def short_hash(code_hash: str) -> str:
    """Return the prefix of a code hash that is shown to people, and that commands accept."""
    return code_hash[:12]


def format_version(name: str, code_hash: str) -> str:
    """Format a version, such as ``shop.models.Filter@5f0c7e1d2a3b``."""
    return f"{name}@{short_hash(code_hash)}"


def signer_of(policy: Policy, record: Record) -> str:
    """Return who signed a version, as far as this process can verify."""
    if record.signature is None:
        return "nobody"
    by = policy.signed_by(record)
    if by is None:
        return f"key {record.signature.key[:16]}, not verified"
    return by if by == record.signature.key else f"{by} (key {record.signature.key})"


def signature_json(policy: Policy, record: Record) -> dict[str, str | None] | None:
    """Return a signature as plain data: the key's ID, and its name if the signature is valid."""
    if record.signature is None:
        return None
    return {"key": record.signature.key, "by": policy.signed_by(record)}


def describe_version(policy: Policy, record: Record) -> dict[str, Any]:
    """Return a version as plain data for JSON."""
    return {
        "name": record.class_name,
        "hash": record.hash,
        "kind": record.kind,
        "python": record.python,
        "created": human_time(record.created),
        "digest": record.digest,
        "bytes": record.size,
        "source_bytes": record.source_size if record.source else None,
        "needs": [{"name": name, "hash": code_hash} for name, code_hash in record.needs],
        "signature": signature_json(policy, record),
    }
