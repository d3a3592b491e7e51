"""``celery offload dashboard`` as a process."""

from __future__ import annotations

import signal
import socket
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import Project

pytestmark = [pytest.mark.integration, pytest.mark.server]

TOKEN = "0123456789abcdef"


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_it_serves_until_it_is_asked_to_end(shop, serve):
    """It says where, and ends well."""
    served = serve(shop.url)
    assert served.url.startswith("http://127.0.0.1:")
    assert served.get()[0] == 200
    served.process.popen.send_signal(signal.SIGTERM)
    served.process.popen.wait(30)
    assert "Traceback" not in served.process.log()


def test_it_ends_also_while_somebody_sends_a_form(shop, serve):
    """What is under way has some seconds, and does not hold it for ever."""
    served = serve(shop.url, "--allow-delete")
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port)) as sender:
        head = f"POST /blobs/b3:{'0' * 64}/remove HTTP/1.1\r\nHost: {place.netloc}\r\n"
        sender.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 100\r\n\r\n".encode())
        assert b"100 Continue" in sender.recv(1000)  # it reads the form
        served.process.popen.send_signal(signal.SIGTERM)
        served.process.popen.wait(30)


def test_names_that_are_allowed_come_to_those_of_this_machine(shop, serve):
    """A proxy asks by its own, and who sits at the machine as before."""
    served = serve(shop.url, "--allow-host", "ops.example")
    assert served.get()[0] == served.get(Host="ops.example")[0] == 200
    assert served.get(Host="other.example")[0] == 400


@pytest.mark.parametrize("host", ("0.0.0.0", "::", "example.com"))
def test_beyond_this_machine_it_asks_who_may(project, host):
    """Without a password or a token it does not even begin to listen."""
    project.write(store="redis://127.0.0.1:1/0")
    _, err = project.run("dashboard", "--host", host, "--port", "0", code=1)
    assert "OFFLOAD_DASHBOARD_TOKEN" in err


def test_with_a_token_it_listens_everywhere(shop, serve):
    """The token comes from the environment, and opens it under any name."""
    served = serve(shop.url, "--host", "0.0.0.0", env={"OFFLOAD_DASHBOARD_TOKEN": TOKEN})
    port = served.url.rsplit(":", 1)[1].strip("/")
    served.url = f"http://127.0.0.1:{port}/"
    assert served.get()[0] == 401
    assert served.get(Host="ops.example", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert TOKEN not in served.process.log()


def test_an_empty_password_is_none(project):
    """A variable that was not filled in opens nothing to everybody."""
    project.write(store="redis://127.0.0.1:1/0")
    for given in ("user:", "user", ":x"):
        env = {"OFFLOAD_DASHBOARD_BASIC_AUTH": given}
        project.run("dashboard", "--host", "0.0.0.0", "--port", "0", code=1, env=env)
    words = ("--basic-auth", "a:b", "--token", TOKEN)
    assert "not both" in project.run("dashboard", *words, code=2)[1]


def test_a_port_that_is_taken_is_said(project):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        project.write(store="redis://127.0.0.1:1/0")
        _, err = project.run("dashboard", "--port", port, code=1)
    assert f"can't listen on 127.0.0.1:{port}" in err


def test_behind_a_proxy_it_knows_where_it_is(shop, serve):
    """What its pages name begins with the path that the proxy has it at."""
    served = serve(shop.url, "--url-prefix", "/offload")
    assert served.url.endswith("/offload/")
    status, page = served.get()
    assert status == 200
    assert 'href="/offload/tasks"' in page


def test_without_its_packages_it_says_what_to_install(project):
    """The other commands go on without them."""
    project.write("import sys; sys.modules['starlette'] = None", store="redis://127.0.0.1:1/0")
    _, err = project.run("dashboard", code=1)
    assert 'pip install "offload[dashboard]"' in err
