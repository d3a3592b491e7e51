"""``celery offload inspect``: describe a reference, a blob, or a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from offload.cli.context import runtime_of
from offload.cli.output import print_json, print_rows
from offload.inspect.values import describe, json_finite
from offload.text import human_duration, human_size

__all__ = ("inspect",)

_SHOWN = 20  # chunks and holders that are listed without --json


@click.command()
@click.argument("what", metavar="REF|DIGEST|TASK-ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def inspect(ctx: click.Context, what: str, as_json: bool) -> None:
    """Describe a reference, a blob, or a task, and list its holders.

    WHAT is a reference (its whole text, offload:1?…), a digest (at least its first 8 digits), or
    a task ID. Values aren't decoded, and no code runs. The preview shows the start of strings and
    JSON, the dtype and shape of arrays, and the columns of frames, but nothing of pickles. Of a
    task, it shows what the result backend knows, without fetching the result. The arguments of a
    task that waits in a queue can't be looked up.
    """
    runtime = runtime_of(ctx)
    described = describe(runtime, what)
    if as_json:
        print_json(json_finite(described))
    else:
        _print(described)


def _print(described: Mapping[str, Any]) -> None:
    print_rows(_rows(described))


def _rows(described: Mapping[str, Any], indent: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in described.items():
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
            rows.append((label, _shown(name, value) + ("…" if _is_cut(name, described) else "")))
    return rows


def _is_cut(name: str, described: Mapping[str, Any]) -> bool:
    return name == "text" and bool(described.get("cut"))


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
        (label, "none")
    ]


def _listed(label: str, texts: list[str], together: bool = False) -> list[tuple[str, str]]:
    more = len(texts) - _SHOWN
    shown = texts[:_SHOWN] + ([f"… and {more:,} more (--json lists all)"] if more > 0 else [])
    if together:
        return [(label, ", ".join(shown))] if shown else []
    return [(label if at == 0 else "", text) for at, text in enumerate(shown)]
