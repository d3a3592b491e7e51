"""Whether workers are there, and set to what goes together with this process."""

from __future__ import annotations

from collections.abc import Iterator

from offload.catalog.agreement import agreement
from offload.catalog.findings import Finding
from offload.catalog.workers import ask_workers, this_process
from offload.hooks.runtime import Runtime

__all__ = ("agree",)


def agree(runtime: Runtime, timeout: float) -> Iterator[Finding]:
    """Ask the workers on the app's broker; *timeout* is that of `ask_workers`, in seconds."""
    asked = ask_workers(runtime.app, timeout=timeout)
    return agreement(this_process(runtime), asked)
