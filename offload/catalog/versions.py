"""Versions of classes as people and programs are told of them."""

from __future__ import annotations

from typing import Any

from offload.catalog.times import moment
from offload.registry.policy import Policy
from offload.registry.record import Record

__all__ = ("at", "described", "short", "signer", "signer_json")


def short(code_hash: str) -> str:
    """Return the begin of a hash that people are shown, and that commands understand."""
    return code_hash[:12]


def at(name: str, code_hash: str) -> str:
    return f"{name}@{short(code_hash)}"


def signer(policy: Policy, record: Record) -> str:
    """Return whose signature a record has, as far as this process can tell."""
    if record.signature is None:
        return "nobody"
    by = policy.signed_by(record)
    if by is None:
        return f"key {record.signature.key[:16]}, not verified"
    return by if by == record.signature.key else f"{by} (key {record.signature.key})"


def signer_json(policy: Policy, record: Record) -> dict[str, str | None] | None:
    """Return the same for programs: id of the key, and its name if the signature is verified."""
    if record.signature is None:
        return None
    return {"key": record.signature.key, "by": policy.signed_by(record)}


def described(policy: Policy, record: Record) -> dict[str, Any]:
    """Return what programs are told of a version."""
    return {
        "name": record.class_name,
        "hash": record.hash,
        "kind": record.kind,
        "python": record.python,
        "created": moment(record.created),
        "digest": record.digest,
        "bytes": record.size,
        "source_bytes": record.source_size if record.source else None,
        "needs": [{"name": name, "hash": code_hash} for name, code_hash in record.needs],
        "signature": signer_json(policy, record),
    }
