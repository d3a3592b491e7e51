"""The command is part of Celery's and costs nothing if it isn't used."""

from __future__ import annotations

import json
import socket
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
from tests.hooks.test_secrecy import COMMANDS

ALLOWED = {"offload", "offload.cli", "offload.errors"}


def test_the_command_is_registered_with_celery():
    """The package's metadata register the command with Celery."""
    (point,) = [p for p in entry_points(group="celery.commands") if p.name == "offload"]
    assert point.load() is offload


def test_celery_help_imports_nothing():
    """``celery --help`` lists the command without importing its dependencies."""
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


def test_every_noun_has_a_help_text():
    """Each noun exists and has a help text; an unknown one is no command."""
    listed = offload.list_commands(None)
    assert listed == sorted(_COMMANDS)
    for name in listed:
        command = offload.get_command(None, name)
        assert command.name == name
        assert command.help
    assert offload.get_command(None, "nothing") is None


def commands(group=offload):
    """Yield all commands, including those of groups."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            yield command


def test_every_command_has_json():
    """Every command has --json, so that programs needn't parse text."""
    without = [
        command.name
        for command in commands()
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert without == []


@pytest.fixture
def unavailable():
    """Return an app whose store is unavailable."""
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
    """With --json, only an object with the error is printed, and the exit code stays."""
    done = CliRunner().invoke(offload, [*words, "--json"], obj=unavailable)
    error = json.loads(done.output)["error"]
    assert (error["type"], done.exit_code) == (type_, code)
    assert error["message"]
    assert "canary" not in done.output
    if code == 69:
        assert error["store"] == "redis://localhost:1/0"


NOT_ASKED = {
    "check", "classes push", "classes status", "classes verify", "dashboard", "exporter",
    "nonsense", "purge", "reencrypt", "store lifecycle", "types",
}  # fmt: skip
"""Commands that refuse this app, or need nothing from its store."""


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - NOT_ASKED))
def test_every_command_exits_with_69_if_the_store_is_unavailable(unavailable, name):
    """Every command that needs the store exits with 69 without it, and prints one document."""
    words = f"{name} {COMMANDS[name]} --json".split()
    done = CliRunner().invoke(offload, words, obj=unavailable)
    assert done.exit_code == 69, done.output
    assert "redis://localhost:1/0" in json.dumps(json.loads(done.stdout))


@pytest.mark.parametrize("name", ("dashboard", "exporter"))
def test_an_address_that_cannot_be_served_is_an_error_of_one_line(unavailable, name):
    """A port that is taken is reported in one line, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(offload, [name, "--port", port], obj=unavailable)
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: can't listen on 127.0.0.1:{port}: ")


def test_an_unexpected_failure_is_json_and_a_traceback(unavailable):
    """With --json, an import error is printed as JSON, and its traceback on standard error."""
    unavailable.app.conf.imports = ["not_there"]
    done = CliRunner().invoke(offload, ["ls", "--json"], obj=unavailable)
    assert json.loads(done.stdout)["error"]["type"] == "ModuleNotFoundError"
    assert isinstance(done.exception, ModuleNotFoundError)


def test_a_list_that_fails_midway_prints_nothing(capsys):
    """Standard output is one document: the list, or the error."""

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
def test_an_app_without_offload(project):
    """Without a traceback, the error says what to write, with or without the packages of extras."""
    project.write()
    (project.folder / "plain.py").write_text("from celery import Celery\napp = Celery('plain')\n")
    _, said = project.run("gc", app="plain", code=1)
    called = "call Offload(app) in the module that creates it"
    assert said == f"Error: app 'plain' has no offload: {called}\n"
    (project.folder / "starlette.py").write_text("raise ModuleNotFoundError(name='starlette')")
    for command in ("gc", "dashboard"):
        _, said = project.run(command, app=None, code=1)
        assert said == (
            "Error: no app is named: name the module or package that creates your Celery app with "
            f"-A, as in celery -A proj offload {command}\n"
        )


@pytest.mark.integration
def test_a_wrong_setting_is_an_error_of_one_line(project):
    """A ConfigurationError is printed in one line, as the library words it."""
    project.write(more="app.conf.offload_retension = 5\n")
    _, said = project.run("gc", code=1)
    assert said.startswith("Error: ")
    assert "did you mean 'offload_retention'?" in said
    assert len(said.splitlines()) == 1


@pytest.mark.integration
def test_preload_options_are_accepted(project):
    """Celery's preload options, which every command receives, do no harm."""
    project.write(
        more="import click\n"
        "app.user_options['preload'].add(click.Option(('-Z', '--zone'), default='here'))\n",
        store="memory://",
    )
    project.run("gc")


@pytest.mark.parametrize("command", (("dashboard", "--token", "t" * 32), ("exporter",)))
def test_an_ipv6_address_is_written_as_in_urls(unavailable, command):
    """An IPv6 address that can't be served, here one for documentation only, is in brackets."""
    words = [*command, "--host", "2001:db8::1", "--port", "9541"]
    done = CliRunner().invoke(offload, words, obj=unavailable)
    assert done.exit_code == 1
    assert done.output.startswith("Error: can't listen on [2001:db8::1]:9541: ")
