"""Run ``celery -A … offload …`` as operators do."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.class_commands import Command, made
from tests.support import forkserver, processes

APP = """
from celery import Celery
from offload import Offload

app = Celery("proj", broker={broker!r}, set_as_current=True)
Offload(app, {settings})
"""


class Project:
    """A project ``proj`` in its own folder."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, more="", *, broker="memory://", **settings):
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        text = APP.format(broker=broker, settings=given) + more
        (self.folder / "proj.py").write_text(text)
        # Bytecode of a file of the same second and size counts as its own.
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)

    def run(self, *words, app="proj", code=0, env=None):
        """Run a command that exits with *code* (None: any); return its output and errors."""
        named = ["-A", app] if app else []
        done = forkserver.run(
            [*named, "offload", *words],
            cwd=self.folder,
            env={**self.environment, **(env or {})},
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr

    @property
    def environment(self):
        return processes.environment({}, self.folder)

    def json(self, *words, **options):
        return json.loads(self.run(*words, "--json", **options)[0])


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture
def command():
    return Command()


@pytest.fixture
def versions(command):
    """Return the hashes of two versions of ``shop.models.Filter``; the second is the latest."""
    return [command.registry.push(made("Filter", times)) for times in (2, 3)]
