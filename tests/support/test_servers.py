"""Servers that tests start."""

from __future__ import annotations

import os

import pytest

from tests.support.processes import wait_until
from tests.support.servers import find_program, redis_client, redis_server, unavailable


@pytest.mark.server
@pytest.mark.parametrize("program", ("redis-server", "valkey-server"))
def test_a_server_stops_with_its_block(program):
    """A server answers while its block runs, and is gone with its folder afterwards."""
    with redis_server(program, ["--databases", "3"]) as server:
        with redis_client(server) as client:
            assert client.info("server")["process_id"] == server.pid
            assert client.config_get("databases") == {"databases": "3"}
        folder = server.folder
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


@pytest.mark.server
def test_a_server_that_does_not_start_shows_the_reason():
    """The error contains what a server printed before it exited."""
    with (
        pytest.raises(OSError, match="no-such-option"),
        redis_server(args=["--no-such-option", "1"]),
    ):
        pass


def test_a_missing_server_skips_on_a_laptop(monkeypatch):
    """A program that is not installed skips the test."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-server"):
        find_program("no-such-server")


def test_a_missing_server_fails_in_ci(monkeypatch):
    """With CI=true, a program that is not installed fails the test."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="openssl"):
        unavailable("openssl")


def test_waiting_is_bounded():
    """A condition that doesn't come true in time is named, with the last error."""
    with pytest.raises(TimeoutError, match="the moon") as caught:
        wait_until(lambda: 1 / 0, "the moon", timeout=0.02)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
