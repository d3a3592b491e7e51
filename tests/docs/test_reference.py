"""The reference lists what the code has: settings, commands, metrics, errors, public names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from celery import Celery

import offload
from offload import ConfigurationError, errors
from offload.cli import offload as group
from offload.hooks import message, results, stored_states
from offload.settings import Settings
from offload.stores import open_store

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def first_cells(text: str) -> list[str]:
    """Return what is in code font in the first cells of tables."""
    rows = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_setting_is_listed_with_its_default() -> None:
    """The page of settings lists every setting with its default, in the order of the code."""
    row = re.compile(r"^\| `offload_(\w+)` \| (.+?) \|", re.MULTILINE)
    rows = dict(row.findall((REFERENCE / "settings.md").read_text()))
    defaults = Settings()
    assert list(rows) == [field.name for field in fields(Settings)]
    described = {"store", "retry", "secret"}
    for name in rows.keys() - described:
        shown = rows[name].strip("`").replace('"', "'")
        assert shown == repr(getattr(defaults, name)), name


def test_every_option_of_s3_is_listed() -> None:
    """The page about S3 lists every option of its URL, and no other."""
    page = (REFERENCE.parent / "how-to" / "s3.md").read_text()
    table = page.split("\n## Options\n")[1].split("\n## ")[0]
    with pytest.raises(ConfigurationError) as caught:
        open_store("s3://bucket?nothing=1&region=eu-central-1")
    known = str(caught.value).split("known: ")[1].replace("; and ", ", ").split(", ")
    head, *listed = first_cells(table.replace("| option |", "| `option` |"))
    assert head == "option"
    assert sorted(listed) == sorted(known)


def test_every_error_is_listed() -> None:
    """The page of errors lists every error class once, no other, and correct base classes."""
    text = (REFERENCE / "errors.md").read_text()
    assert sorted(first_cells(text)) == sorted(errors.__all__)
    for name, bases in re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE):
        kinds = {kind.__name__ for kind in getattr(errors, name).__mro__[1:]}
        assert set(re.findall(r"`(\w+)`", bases)) <= kinds, name


def test_the_texts_that_processes_without_offload_show_are_listed() -> None:
    """The page of errors quotes what a worker and a reader without offload show."""
    text = (REFERENCE / "errors.md").read_text()
    for shown in (message.REFUSAL, results._UNREADABLE, stored_states._READ_IT):
        assert shown in text


def test_every_command_is_listed() -> None:
    """The page of commands lists every command, and no other."""
    overview = (REFERENCE / "cli.md").read_text().split("\n## ")[0].split("| exit code |")[0]
    head, *listed = (re.match("[a-z ]+", name)[0].strip() for name in first_cells(overview))
    assert head == "celery"
    assert sorted(listed) == sorted(commands(group, click.Context(group)))


def commands(command: click.Command, context: click.Context, prefix: str = "") -> Iterator[str]:
    """Yield the full name of each command that does something."""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, context, f"{prefix}{name} ")
    else:
        yield prefix.strip()


def test_every_metric_is_listed_with_its_labels() -> None:
    """The page of metrics lists every family that the exporter serves, with labels, no other."""
    prometheus = pytest.importorskip("offload.metrics.prometheus")
    from offload.doctor.gauges import Gauges

    served = {}
    app = Celery(broker="memory://")
    offload.Offload(app, store="memory://metrics-page")
    runtime = app._offload
    for family in (*prometheus.Collector(runtime.store).collect(), *Gauges(runtime)._check()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        served[name] = tuple(family._labelnames)
    text = (REFERENCE / "metrics.md").read_text()
    rows = re.findall(r"^\| `(offload_\w+)` \| ([^|]*) \|", text, re.MULTILINE)
    assert {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == served


def test_every_public_name_has_its_reference() -> None:
    """The reference of the API covers every name that `from offload import` gives."""
    text = "".join(page.read_text() for page in REFERENCE.glob("api*.md"))
    named = re.findall(r"^::: offload\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(set(offload.__all__) - set(errors.__all__))


def test_every_field_of_messages_and_references_is_described() -> None:
    """The page of the wire format lists every field of the pinned messages and references."""
    golden = Path(__file__).parents[1] / "golden" / "written.json"
    written = json.loads(golden.read_text())
    described = first_cells((REFERENCE / "wire-format.md").read_text())
    fields = {field for ref in written["refs"].values() for field in re.findall(r"[?&](\w)=", ref)}
    for messages in (written["messages"], written["short"]):
        for _headers, _type, _encoding, body in messages["json"]:
            fields |= json.loads(body)[2]["offload"].keys()
    assert {"d", "m", "refs", "holds", "k"} <= fields <= set(described)
