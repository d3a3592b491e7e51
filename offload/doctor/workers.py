"""Check that workers reply, and that their settings agree with this process."""

from __future__ import annotations

from collections.abc import Iterator

from offload.hooks.runtime import Runtime
from offload.inspect.config_drift import config_drift
from offload.inspect.findings import Finding
from offload.inspect.workers import ask_workers, this_process

__all__ = ("agree",)


def agree(runtime: Runtime, timeout: float) -> Iterator[Finding]:
    """Ask the workers on the app's broker; *timeout* is passed to `ask_workers`, in seconds."""
    asked = ask_workers(runtime.app, timeout=timeout)
    return config_drift(this_process(runtime), asked)
