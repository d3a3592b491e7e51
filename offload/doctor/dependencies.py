"""Check whether dependencies are newer than the tested versions."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

from offload.doctor.tested import TESTED
from offload.inspect.findings import Finding

__all__ = ("versions",)


def versions() -> Iterator[Finding]:
    """Compare installed versions with the newest tested ones; not installed is fine."""
    newer = [
        f"{name} {installed} (tested: {tested})"
        for name, tested in TESTED.items()
        if (installed := _installed(name)) is not None and installed > Version(tested)
    ]
    if newer:
        yield Finding(
            "info",
            f"newer than the versions tested with offload: {', '.join(newer)}",
            "if something fails, install the tested versions first",
        )
    else:
        yield Finding("ok", "no installed version is newer than the tested ones")


def _installed(name: str) -> Version | None:
    try:
        return Version(version(name))
    except (PackageNotFoundError, InvalidVersion):
        return None
