"""Check whether what a store has is encrypted, and with which keys."""

from __future__ import annotations

from collections.abc import Iterator

from offload.hooks.runtime import Runtime
from offload.inspect.findings import Finding

__all__ = ("encryption",)

_MOST = 1000  # blobs
_MOVE = "run `celery offload reencrypt`; what messages and results refer to expires by itself"


def encryption(runtime: Runtime) -> Iterator[Finding]:
    """Count the blobs under each key, as far as the first 1,000 show it.

    Without encryption keys, reads and yields nothing.
    """
    keyring = runtime.keyring
    if keyring is None:
        return
    from offload.reencrypt import PLAIN, count_by_key  # needs the package cryptography

    first, *others = [key.id for key in keyring.keys]
    found = {key: under.count for key, under in count_by_key(runtime.store, _MOST).items()}
    total = sum(found.values())
    looked = f"of {total:,} blobs"
    if total >= _MOST:
        looked += " that were looked at"
    if found.keys() <= {first}:
        yield Finding("ok", f"all {looked} are encrypted with the first key, {first}")
    for key, count in sorted(found.items()):
        if key == first:
            continue
        if key == PLAIN and keyring.required:
            yield Finding(
                "error",
                f"{count:,} {looked} aren't encrypted, and refused, as offload_encryption is "
                "'required'",
                "find the process that stores them without keys; to keep what was stored before, "
                "run `celery offload reencrypt` without 'required'",
            )
        elif key == PLAIN:
            yield Finding(
                "warning",
                f"{count:,} {looked} aren't encrypted: they are from before there were keys, or "
                "from a process without them",
                f"{_MOVE}; then set offload_encryption = 'required'",
            )
        elif key in others:
            yield Finding(
                "info", f"{count:,} {looked} are encrypted with {key}, not the first key", _MOVE
            )
        else:
            yield Finding(
                "error",
                f"{count:,} {looked} are encrypted with {key}, which this process doesn't have",
                "add that key to offload_encryption_keys: keys after the first only decrypt",
            )
