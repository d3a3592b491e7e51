"""Programs of the system that tests need are installed where that can be done, else named."""

import os
import subprocess
import sys

import pytest

APT = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$*" in *install*) {install} ;; esac
"""


@pytest.fixture
def run(root, tmp_path):
    """Run it with nothing on the path but an apt-get that does what it is told to."""

    def run(*programs, install="true"):
        apt = tmp_path / "apt-get"
        apt.write_text(APT.format(folder=tmp_path, install=install.format(folder=tmp_path)))
        apt.chmod(0o755)
        command = [sys.executable, str(root / "tools" / "programs.py"), *programs]
        env = {"PATH": f"{tmp_path}:/bin"}
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        return done.stderr

    return run


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs")
def test_what_is_missing_is_installed(run, tmp_path):
    """By apt, once: what is there is left alone."""
    said = run("some-browser", "sh", install="cp /bin/true {folder}/some-browser")
    assert "installing some-browser" in said
    assert "not here" not in said
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["-qq update", "-qq install -y --no-install-recommends some-browser"]
    assert run("some-browser") == ""
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


def test_what_cannot_be_installed_is_named(run):
    """With the command that would do it; tests go on without."""
    said = run("some-browser", install="echo no such package >&2; exit 100")
    assert "apt-get install some-browser" in said
