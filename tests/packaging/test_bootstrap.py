"""The set-up behind the Makefile follows pip's configuration and names what is missing."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def bootstrap(root):
    spec = importlib.util.spec_from_file_location("bootstrap", root / "tools" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Return a function that configures pip, which has no other configuration."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], check=False).returncode:
        pytest.skip("this environment has no pip")
    for name in os.environ:
        if name.startswith(("PIP_", "UV_", "SSL_CERT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def configure(text):
        path = tmp_path / "pip.conf"
        path.write_text(text)
        monkeypatch.setenv("PIP_CONFIG_FILE", str(path))

    return configure


@pytest.fixture
def python():
    return Path(sys.executable)


@pytest.fixture
def venv(tmp_path, python):
    """Return an environment without packages."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(python)
    return venv


@pytest.fixture
def installed(bootstrap, monkeypatch):
    """Return the arguments of installations, none of which takes place."""
    installed = []
    monkeypatch.setattr(bootstrap, "install", lambda *arguments: installed.append(arguments))
    return installed


def test_uv_uses_pips_indexes(bootstrap, pip, python):
    """uv uses the same private index, certificate, and further indexes as pip."""
    pip(
        "[global]\nindex-url = https://pypi.example/simple\ncert = /ca.pem\ntimeout = 77\n"
        "extra-index-url = https://a.example/simple\n    https://b.example/simple\n"
        "find-links = /wheels\n"
    )
    env = bootstrap.uv_env(python)
    assert env["UV_DEFAULT_INDEX"] == "https://pypi.example/simple"
    assert env["UV_INDEX"] == "https://a.example/simple https://b.example/simple"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["UV_FIND_LINKS"] == "/wheels"
    assert env["SSL_CERT_FILE"] == "/ca.pem"
    assert env["UV_HTTP_TIMEOUT"] == "77"


def test_uvs_own_settings_take_precedence(bootstrap, pip, python, monkeypatch):
    """The user's settings for uv take precedence over pip's."""
    pip("[global]\nindex-url = https://pypi.example/simple\n")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine.example/simple")
    assert bootstrap.uv_env(python)["UV_DEFAULT_INDEX"] == "https://mine.example/simple"


def test_environment_variables_beat_the_file(bootstrap, pip, python, monkeypatch):
    """Environment variables take precedence over the file, as for pip."""
    pip("[global]\nindex-url = https://file.example/simple\n")
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple")
    assert bootstrap.uv_env(python)["UV_DEFAULT_INDEX"] == "https://env.example/simple"


def test_without_configuration_uv_has_its_defaults(bootstrap, pip, python):
    """Without configuration of pip, uv has its defaults; interpreters are never downloaded."""
    env = bootstrap.uv_env(python)
    assert not {"UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "SSL_CERT_FILE"} & set(env)
    assert env["UV_PYTHON_DOWNLOADS"] == "never"


def test_up_to_date_environment_is_left_alone(bootstrap, venv, installed):
    """The second run of a command installs nothing."""
    bootstrap.ensure(venv, "test")
    bootstrap.ensure(venv, "test")
    assert len(installed) == 1


def test_changed_requirements_are_installed(bootstrap, venv, installed, monkeypatch):
    """A changed pyproject.toml, or another group, cause an installation."""
    bootstrap.ensure(venv, "test")
    monkeypatch.setattr(bootstrap, "fingerprint", lambda *_: "another")
    bootstrap.ensure(venv, "test")
    bootstrap.ensure(venv, "demo")
    assert len(installed) == 3


def test_changed_constraints_are_installed(bootstrap, venv, installed, tmp_path, monkeypatch):
    """Changed versions in constraints.txt cause an installation."""
    constraints = tmp_path / "constraints.txt"
    monkeypatch.setattr(bootstrap, "CONSTRAINTS", constraints)
    for text in ("celery==5.5.0", "celery==5.6.0", "celery==5.6.0"):
        constraints.write_text(text)
        bootstrap.ensure(venv, "test")
    assert len(installed) == 2


@pytest.mark.parametrize("has_uv", (True, False), ids=("uv", "pip"))
def test_installed_versions_are_constrained(bootstrap, tmp_path, monkeypatch, python, has_uv):
    """uv and pip both use the versions of constraints.txt, also for build dependencies."""
    commands, environments = [], []

    def runs(command, env=None, **_):
        commands.append(command)
        environments.append(env)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bootstrap, "find_uv", lambda _: ["uv"] if has_uv else None)
    monkeypatch.setattr(bootstrap.subprocess, "run", runs)
    monkeypatch.setattr(bootstrap, "uv_env", lambda _: {})
    bootstrap.install(python, ["-e", "."])
    constraints = str(bootstrap.CONSTRAINTS)
    *upgrade, command = commands
    env = environments[-1]
    assert [each[-1] for each in upgrade] == ([] if has_uv else [bootstrap.PIP])
    assert command[:1] == (["uv"] if has_uv else [str(python)])
    assert command.count(constraints) + (env.get("PIP_BUILD_CONSTRAINT") == constraints) == 2


def test_missing_venv_names_the_package_to_install(bootstrap, tmp_path, monkeypatch):
    """Without root, a Debian without python3-venv is told what to install, and no partial
    environment remains.
    """

    def fails(command, env=None):
        return subprocess.CompletedProcess(command, 1, stdout="ensurepip is not available")

    monkeypatch.setattr(bootstrap, "_quiet", fails)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(bootstrap.BootstrapError, match="sudo apt-get install python3-venv"):
        bootstrap.create(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def test_missing_venv_is_installed_by_root(bootstrap, tmp_path, monkeypatch):
    """As root on Debian, the package is installed and the environment created."""
    commands = []

    def runs(command, env=None):
        commands.append(command)
        installed = any("install" in earlier for earlier in commands)
        return subprocess.CompletedProcess(command, 0 if installed else 1, stdout="")

    monkeypatch.setattr(bootstrap, "_quiet", runs)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    bootstrap.create(tmp_path / "venv")
    assert ["apt-get", "update"] in commands
    assert commands[-1][1:3] == ["-m", "venv"]


def test_make_help_lists_every_command(root):
    """`make` alone lists all commands."""
    done = subprocess.run(["make"], cwd=root, check=True, capture_output=True, text=True)
    for target in (
        "demo",
        "test",
        "test-newest",
        "test-all",
        "lint",
        "bench",
        "constraints",
        "clean",
    ):
        assert f"make {target} " in done.stdout
