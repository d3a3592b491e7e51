"""The command is a part of Celery's own, and costs those nothing who do not use it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import click
import pytest
from celery import Celery
from click.testing import CliRunner

from offload import Offload
from offload.cli import _COMMANDS, offload
from offload.cli.output import print_json_list

ALLOWED = {"offload", "offload.cli", "offload.errors"}


def test_it_is_installed_as_a_plugin():
    """The package's metadata name it where Celery looks for commands."""
    (point,) = [p for p in entry_points(group="celery.commands") if p.name == "offload"]
    assert point.load() is offload


def test_celery_loads_nothing_but_the_names():
    """``celery --help`` shows the command without importing what it works with."""
    code = """
import json, runpy, sys
sys.modules["flower"] = None  # it has a command as well, which imports redis
sys.argv = ["celery", "--help"]
try:
    runpy.run_module("celery", run_name="__main__", alter_sys=True)
except SystemExit:
    pass
print(json.dumps([n for n in sys.modules if n.partition(".")[0] in ("offload", "redis", "blake3")]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    *help_, loaded = done.stdout.splitlines()
    assert any(line.split()[:1] == ["offload"] for line in help_)
    assert set(json.loads(loaded)) == ALLOWED


def test_every_noun_says_what_it_does():
    """Each is found by its name and has a help text; an unknown one is no command."""
    listed = offload.list_commands(None)
    assert listed == sorted(_COMMANDS)
    for name in listed:
        command = offload.get_command(None, name)
        assert command.name == name
        assert command.help
    assert offload.get_command(None, "nothing") is None


def commands(group=offload):
    """Yield all commands, those of groups as well."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            yield command


def test_every_command_has_json():
    """Programs never have to parse what is printed for people."""
    without = [
        command.name
        for command in commands()
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert without == []


@pytest.fixture
def unavailable():
    """An app whose store can't be reached."""
    app = Celery("unavailable", broker="memory://", set_as_current=False)
    Offload(app, store="redis://:canary@localhost:1/0", retry={"max_retries": 0})
    return SimpleNamespace(app=app)


@pytest.mark.parametrize(
    ("words", "code", "type_"),
    (
        (("ls",), 69, "StoreUnavailable"),
        (("stats",), 69, "StoreUnavailable"),
        (("classes", "show", "shop.Missing"), 69, "StoreUnavailable"),
        (("rm", "--yes", "nonsense"), 1, "InvalidRef"),
        (("ls", "--bogus"), 2, "UsageError"),
        (("nonsense",), 2, "UsageError"),
        (("rm", "b3:12345678"), 2, "UsageError"),
    ),
)
def test_a_failure_is_one_json_document_too(unavailable, words, code, type_):
    """An object with the error is all that is printed, and the exit code stays."""
    done = CliRunner().invoke(offload, [*words, "--json"], obj=unavailable)
    error = json.loads(done.output)["error"]
    assert (error["type"], done.exit_code) == (type_, code)
    assert error["message"]
    assert "canary" not in done.output
    if code == 69:
        assert error["store"] == "redis://localhost:1/0"


def test_an_unexpected_failure_is_json_and_a_traceback(unavailable):
    """A module that can't be imported: programs read one, people the other."""
    unavailable.app.conf.imports = ["not_there"]
    done = CliRunner().invoke(offload, ["ls", "--json"], obj=unavailable)
    assert json.loads(done.stdout)["error"]["type"] == "ModuleNotFoundError"
    assert isinstance(done.exception, ModuleNotFoundError)


def test_a_list_that_fails_on_the_way_prints_nothing(capsys):
    """So what is on standard output is one document: the list, or the error."""

    def documents():
        yield from range(5000)
        raise OSError

    with pytest.raises(OSError):
        print_json_list(documents())
    assert capsys.readouterr().out == ""
    print_json_list(range(5000))
    assert json.loads(capsys.readouterr().out) == list(range(5000))
    print_json_list([])
    assert capsys.readouterr().out == "[]\n"


@pytest.mark.integration
def test_an_app_without_offload_is_told_what_to_do(project):
    """No traceback: which app it is, and what to write."""
    project.write()
    (project.folder / "plain.py").write_text("from celery import Celery\napp = Celery('plain')\n")
    _, said = project.run("gc", app="plain", code=1)
    assert said.startswith("Error: app 'plain' has no offload: name the app with -A, as in ")
    assert "celery -A proj offload gc" in said
    _, said = project.run("gc", app=None, code=1)
    assert said.startswith("Error: app 'default' has no offload")


@pytest.mark.integration
def test_a_wrong_setting_is_an_error_of_one_line(project):
    """A ConfigurationError is told as the library words it."""
    project.write(more="app.conf.offload_retension = 5\n")
    _, said = project.run("gc", code=1)
    assert said.startswith("Error: ")
    assert "did you mean 'offload_retention'?" in said
    assert len(said.splitlines()) == 1


@pytest.mark.integration
def test_options_of_the_users_own_reach_it(project):
    """Celery's preload options, which are given to every command, do not disturb it."""
    project.write(
        more="import click\n"
        "app.user_options['preload'].add(click.Option(('-Z', '--zone'), default='here'))\n",
        store="memory://",
    )
    project.run("gc")
