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


def test_it_serves_until_it_is_stopped(shop, serve):
    """The command prints its address, serves, and exits with 0."""
    served = serve(shop.url)
    assert served.url.startswith("http://127.0.0.1:")
    assert served.get()[0] == 200
    served.process.popen.send_signal(signal.SIGTERM)
    served.process.popen.wait(30)
    assert "Traceback" not in served.process.log()


def test_it_exits_during_a_request(shop, serve):
    """A running request gets some seconds to finish, but doesn't block the exit forever."""
    served = serve(shop.url, "--allow-delete")
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port)) as sender:
        head = f"POST /blobs/b3:{'0' * 64}/remove HTTP/1.1\r\nHost: {place.netloc}\r\n"
        sender.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 100\r\n\r\n".encode())
        assert b"100 Continue" in sender.recv(1000)  # it reads the form
        served.process.popen.send_signal(signal.SIGTERM)
        served.process.popen.wait(30)


def test_allowed_hosts_are_added(shop, serve):
    """Allowed hosts are added to this machine's names, for a proxy."""
    served = serve(shop.url, "--allow-host", "ops.example")
    assert served.get()[0] == served.get(Host="ops.example")[0] == 200
    assert served.get(Host="other.example")[0] == 400


@pytest.mark.parametrize("host", ("0.0.0.0", "::", "example.com"))
def test_other_addresses_need_authentication(project, host):
    """Without a password or token, it refuses to listen on other addresses."""
    project.write(store="redis://127.0.0.1:1/0")
    _, err = project.run("dashboard", "--host", host, "--port", "0", code=1)
    assert "OFFLOAD_DASHBOARD_TOKEN" in err


def test_with_a_token_it_listens_everywhere(shop, serve):
    """A token from the environment allows every address and host name."""
    served = serve(shop.url, "--host", "0.0.0.0", env={"OFFLOAD_DASHBOARD_TOKEN": TOKEN})
    port = served.url.rsplit(":", 1)[1].strip("/")
    served.url = f"http://127.0.0.1:{port}/"
    assert served.get()[0] == 401
    assert served.get(Host="ops.example", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert TOKEN not in served.process.log()


def test_an_empty_password_is_refused(project):
    """An empty password variable is refused."""
    project.write(store="redis://127.0.0.1:1/0")
    for given in ("user:", "user", ":x"):
        env = {"OFFLOAD_DASHBOARD_BASIC_AUTH": given}
        project.run("dashboard", "--host", "0.0.0.0", "--port", "0", code=1, env=env)
    words = ("--basic-auth", "a:b", "--token", TOKEN)
    assert "not both" in project.run("dashboard", *words, code=2)[1]


def test_a_used_port_is_reported(project):
    """A port in use is an error of one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        project.write(store="redis://127.0.0.1:1/0")
        _, err = project.run("dashboard", "--port", port, code=1)
    assert f"can't listen on 127.0.0.1:{port}" in err


def test_a_path_prefix_behind_a_proxy(shop, serve):
    """With a path prefix of a proxy, all links start with it."""
    served = serve(shop.url, "--url-prefix", "/offload")
    assert served.url.endswith("/offload/")
    status, page = served.get()
    assert status == 200
    assert 'href="/offload/tasks"' in page


def test_without_its_packages_it_names_what_to_install(project):
    """Without its packages, the command says what to install, and others work."""
    project.write("import sys; sys.modules['starlette'] = None", store="redis://127.0.0.1:1/0")
    _, err = project.run("dashboard", code=1)
    assert 'pip install "offload[dashboard]"' in err
