"""Findings of diagnostics, as commands print them, and the exit codes that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from offload.cli.output import print_labelled
from offload.doctor import Examined
from offload.text import human_count

__all__ = ("count", "exit_code", "listed", "print_counts", "print_finding")

_INDENT = 9
_UNAVAILABLE = 69  # the exit code of all commands then


def print_finding(examined: Examined) -> None:
    """Print a finding with its remedy."""
    finding = examined.finding
    is_named = finding.what.startswith(examined.subject)  # as in stores' own errors
    subject = "" if is_named else f"{examined.subject}: "
    lines = [(str(finding.level), f"{subject}{finding.what}")]
    if finding.remedy:
        lines.append(("", f"-> {finding.remedy}"))
    print_labelled(lines, _INDENT, levels=True)


def count(found: Sequence[Examined], level: str) -> int:
    return sum(each.finding.level == level for each in found)


def print_counts(found: Sequence[Examined]) -> None:
    errors, warnings = count(found, "error"), count(found, "warning")
    click.echo(f"{human_count(errors, 'error')}, {human_count(warnings, 'warning')}")


def listed(found: Sequence[Examined]) -> dict[str, Any]:
    """Return findings, as JSON."""
    return {
        "errors": count(found, "error"),
        "warnings": count(found, "warning"),
        "findings": [{"subject": each.subject, **asdict(each.finding)} for each in found],
    }


def exit_code(found: Sequence[Examined]) -> int:
    """Return 0 without errors, 69 if something is unavailable, else 1."""
    if not count(found, "error"):
        return 0
    return _UNAVAILABLE if any(each.unavailable for each in found) else 1
