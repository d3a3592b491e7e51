"""``celery offload types`` lists the types that a process can serialize, and how."""

from __future__ import annotations

import json

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner
from kombu.utils import json as kombu_json

from offload import register_type
from offload.cli import offload
from offload.serializers.types import registry
from tests.support.wire import make_wire


class Track:
    pass


@pytest.fixture
def wire(monkeypatch):
    for name in ("_by_type", "_by_name", "_active"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    for name in ("_encoders", "_decoders"):
        monkeypatch.setattr(kombu_json, name, dict(getattr(kombu_json, name)))
    return make_wire()


def run(wire, *words):
    done = CliRunner().invoke(offload, ["types", *words], obj=CLIContext(wire.app, True, None))
    assert done.exit_code == 0, done.output
    return done.output


def test_types_are_listed_with_how_they_travel(wire):
    """Both forms list registered types, packages that aren't imported, kombu's, and pickle."""
    register_type(Track, encode=vars, decode=vars, name="my.track", version=3)
    kombu_json.register_type(Track, "track", str, str)
    found = {each["name"]: each for each in json.loads(run(wire, "--json"))}
    assert found["my.track"]["version"] == 3
    assert found["my.track"]["how"] == "encode and decode"
    assert found["my.track"]["type"].endswith("test_types.Track")
    assert found["torch.Tensor"]["how"] == "offload[torch]"
    assert found["track"]["how"] == "kombu's register_type"
    assert found["any other"]["how"] == "pickle"
    assert "offload" not in found
    lines = {line.split("  ")[0]: line for line in run(wire).splitlines()}
    assert "encode and decode" in lines["my.track"]
    assert lines["NAME"].split() == ["NAME", "VERSION", "HOW", "TYPE"]
