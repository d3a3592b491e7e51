"""System programs that tests need are installed if possible, else named."""

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
    """Run the tool with a fake apt-get as the only program on the path."""

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
def test_missing_programs_are_installed(run, tmp_path):
    """apt-get installs only what is missing."""
    message = run("some-browser", "sh", install="cp /bin/true {folder}/some-browser")
    assert "installing some-browser" in message
    assert "not here" not in message
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["-qq update", "-qq install -y --no-install-recommends some-browser"]
    assert run("some-browser") == ""
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs")
def test_a_program_is_installed_although_another_cannot_be(run):
    """A program that apt-get doesn't know doesn't prevent the installation of the others."""
    install = 'case "$*" in *unknown*) exit 100 ;; esac; cp /bin/true {folder}/some-browser'
    message = run("unknown", "some-browser", install=install)
    assert message.splitlines()[-1].endswith("apt-get install unknown")


def test_programs_that_cannot_be_installed_are_named(run):
    """What can't be installed is named with the command to run; tests run without it."""
    message = run("some-browser", install="echo no such package >&2; exit 100")
    assert "apt-get install some-browser" in message
