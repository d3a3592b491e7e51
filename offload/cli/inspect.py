"""``celery offload inspect``: what a reference, a blob or a task is, and who needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from offload.cli.context import runtime_of
from offload.cli.output import print_json, print_rows
from offload.inspect.values import describe, json_finite
from offload.text import human_duration, human_size

__all__ = ("inspect",)

_SHOWN = 20  # chunks and holders that people are shown


@click.command()
@click.argument("what", metavar="REF|DIGEST|TASK-ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def inspect(ctx: click.Context, what: str, as_json: bool) -> None:
    """Show what a reference, a blob or a task is, and who needs it for how long.

    A digest may be its first 8 digits or more; a reference is its whole text (offload:1?…).
    Values are not decoded and nothing in them runs: of texts and JSON the beginning is shown, of
    arrays dtype and shape, of frames the columns, of pickles nothing. Of a task, what the
    result backend has is shown, and its result is not fetched. What only its message has, while
    that waits in a queue, nobody can look up.
    """
    runtime = runtime_of(ctx)
    told = describe(runtime, what)
    if as_json:
        print_json(json_finite(told))
    else:
        _print(told)


def _print(told: Mapping[str, Any]) -> None:
    print_rows(_rows(told))


def _rows(told: Mapping[str, Any], indent: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in told.items():
        label = indent + name.replace("_", " ")
        if name == "holders":
            rows += _holders(value, label)
        elif name == "chunks":
            rows += _listed(
                label, [f"{each['digest']}  {human_size(each['bytes'])}" for each in value]
            )
        elif name == "buffers":
            rows += _listed(label, [human_size(size) for size in value], together=True)
        elif name == "columns":
            rows += _listed(label, [f"{name or '?'} {dtype}" for name, dtype in value], True)
        elif isinstance(value, Mapping):
            rows += [(label, ""), *_rows(value, indent + "  ")]
        elif isinstance(value, list):
            rows += _listed(label, list(map(str, value)), together=True)
        elif value is not None and name != "cut":
            rows.append((label, _shown(name, value) + ("…" if _is_cut(name, told) else "")))
    return rows


def _is_cut(name: str, told: Mapping[str, Any]) -> bool:
    return name == "text" and bool(told.get("cut"))


def _shown(name: str, value: Any) -> str:
    if name.endswith("bytes"):
        return f"{human_size(value)} ({value:,} bytes)" if value >= 1000 else human_size(value)
    if name == "ttl":
        return human_duration(value)
    if name == "age":
        return human_duration(value)
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _holders(holders: Mapping[str, float] | None, label: str) -> list[tuple[str, str]]:
    if holders is None:
        return [(label, "unknown: this store doesn't track holds")]
    longest = sorted(holders.items(), key=lambda item: (-item[1], item[0]))
    return _listed(label, [f"{name}  for {human_duration(left)}" for name, left in longest]) or [
        (label, "nobody")
    ]


def _listed(label: str, texts: list[str], together: bool = False) -> list[tuple[str, str]]:
    more = len(texts) - _SHOWN
    shown = texts[:_SHOWN] + ([f"… and {more:,} more (--json has all)"] if more > 0 else [])
    if together:
        return [(label, ", ".join(shown))] if shown else []
    return [(label if at == 0 else "", text) for at, text in enumerate(shown)]
