"""Access to the dashboard: who may open it, and from where."""

from __future__ import annotations

import base64

import pytest
from celery import Celery
from starlette.applications import Starlette
from starlette.datastructures import URL
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from offload import Offload
from offload.dashboard import Basic, Token, dashboard
from offload.errors import ConfigurationError
from tests.support.wire import make_wire

TOKEN = "0123456789abcdef"
PAGES = (
    "/",
    "/tasks",
    "/task?name=x",
    "/static/dashboard.js",
    "/static/uplot/uplot.js",
    "/nowhere",
)


@pytest.fixture
def app():
    return make_wire(watch=False).app


def client(app, **options):
    return TestClient(dashboard(app, **options), base_url="http://localhost")


def basic(text):
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize("path", PAGES)
def test_nothing_is_shown_without_a_password(app, path):
    """Pages and files are refused, and the browser asks for a user and a password."""
    answer = client(app, auth=Basic({"ops": "secret"})).get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic realm=")


@pytest.mark.parametrize(
    ("given", "status"),
    (
        ("ops:secret", 200),
        ("dev:with:colons", 200),
        ("ops:Secret", 401),
        ("ops:", 401),
        (":", 401),
        (":secret", 401),
        ("nobody:", 401),
        ("nobody:secret", 401),
        ("ops", 401),
        ("öps:secret", 401),
    ),
)
def test_users_with_their_passwords_have_access(app, given, status):
    """Each user has a password of their own, and nothing else works."""
    asked = client(app, auth=Basic({"ops": "secret", "dev": "with:colons"}))
    assert asked.get("/", headers=basic(given)).status_code == status


@pytest.mark.parametrize("header", ("", "Basic", "Basic =", "Basic ÿ", "Bearer x", "x" * 5000))
def test_an_invalid_header_is_refused(app, header):
    """A malformed or unsuitable Authorization header gets 401."""
    headers = {"authorization": header.encode("latin-1")}
    assert client(app, auth=Basic({"a": "b"})).get("/", headers=headers).status_code == 401


def test_a_token_becomes_a_cookie(app):
    """A token in the address is replaced by a cookie, which differs from it, and removed from the
    address.
    """
    asked = client(app, auth=Token(TOKEN))
    assert asked.get("/tasks").status_code == 401
    answer = asked.get(f"/tasks?sort=name&token={TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/tasks?sort=name")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert asked.get("/tasks").status_code == 200


@pytest.mark.parametrize(
    "forged",
    (
        lambda _: "",
        lambda _: "x",
        lambda _: TOKEN,
        lambda real: real[:-1],
        lambda real: f"{real}0",
        str.upper,
        lambda _: "ö",
    ),
    ids=("empty", "any", "token", "shorter", "longer", "upper", "not ASCII"),
)
def test_only_its_own_cookie_opens_it(app, forged):
    """A cookie with the right name and any other value is refused on every page."""
    name, _, value = (
        client(app, auth=Token(TOKEN))
        .get(f"/?token={TOKEN}", follow_redirects=False)
        .headers["set-cookie"]
        .partition(";")[0]
        .partition("=")
    )
    for path in PAGES:
        headers = {"cookie": f"{name}={forged(value)}".encode()}
        assert client(app, auth=Token(TOKEN)).get(path, headers=headers).status_code == 401
    right = {"cookie": f"{name}={value}"}
    assert client(app, auth=Token(TOKEN)).get("/tasks", headers=right).status_code == 200


def test_a_token_as_a_bearer_opens_it(app):
    """A program can send the token as a bearer with each request."""
    asked = client(app, auth=Token(TOKEN))
    assert asked.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert asked.get("/", headers={"authorization": f"Bearer {TOKEN}x"}).status_code == 401
    assert asked.get(f"/?token={TOKEN}x").status_code == 401


def test_the_redirection_stays_here(app):
    """A path that starts like another host's isn't followed."""
    asked = client(app, auth=Token(TOKEN))
    answer = asked.get(f"//elsewhere.example/?token={TOKEN}", follow_redirects=False)
    assert not answer.headers.get("location", "/x").startswith("//")


def test_cookies_of_several_dashboards_do_not_conflict(app):
    """Dashboards on one machine share cookies across ports, so each cookie has its own name."""
    first, second = client(app, auth=Token(TOKEN)), client(app, auth=Token(TOKEN[::-1]))
    first.get(f"/?token={TOKEN}")
    second.cookies = first.cookies
    assert second.get("/").status_code == 401
    second.get(f"/?token={TOKEN[::-1]}")
    first.cookies = second.cookies
    assert (first.get("/").status_code, second.get("/").status_code) == (200, 200)


def test_the_health_check_needs_no_password(app):
    """The health check needs no password and shows nothing else."""
    assert client(app, auth=Token(TOKEN)).get("/healthz").text == "ok\n"
    assert client(app, auth=Token(TOKEN)).get("/tasks/healthz").status_code == 401
    assert client(app).get("/healthz", headers={"host": "10.0.0.7:9541"}).text == "ok\n"


@pytest.mark.parametrize("token", ("", "short", "é" * 20))
def test_a_weak_token_is_refused(token):
    """A token with fewer than 16 characters, or others than ASCII, is refused."""
    with pytest.raises(ConfigurationError, match="16 ASCII characters"):
        Token(token)


@pytest.mark.parametrize("users", ({}, {"": "x"}, {"x": ""}, {"a:b": "c"}))
def test_users_have_names_and_passwords(users):
    """No users, an empty name or password, and a name with a colon are refused."""
    with pytest.raises(ConfigurationError):
        Basic(users)


@pytest.mark.parametrize(
    ("host", "status"),
    (
        ("localhost", 200),
        ("localhost:9541", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:9541", 200),
        ("[::1]", 200),
        ("LOCALHOST", 200),
        ("evil.example", 400),
        ("evil.example:9541", 400),
        ("localhost.evil.example", 400),
        ("", 400),
    ),
)
def test_foreign_host_names_are_refused(app, host, status):
    """Without authentication, only this machine's names are answered, against DNS rebinding."""
    assert client(app).get("/", headers={"host": host}).status_code == status


@pytest.mark.parametrize("path", ("/", "/healthz", "/static/dashboard.js"))
def test_websockets_are_closed(app, path):
    """WebSockets are closed before anything reads them."""
    for auth in (None, Token(TOKEN)):
        with (
            pytest.raises(WebSocketDisconnect),
            client(app, auth=auth, hosts=["*"]).websocket_connect(path),
        ):
            raise AssertionError("it was taken")


def test_names_can_be_allowed(app):
    """Hosts can be allowed by name, or all of them; with a password any is answered."""
    for options in ({"hosts": ["ops.example"]}, {"hosts": ["*"]}, {"auth": Basic({"a": "b"})}):
        asked = client(app, **options)
        assert asked.get("/", headers={"host": "ops.example", **basic("a:b")}).status_code == 200


def test_mounted_in_another_app(app):
    """All links stay below the path where the app is mounted."""
    outer = Starlette(routes=[Mount("/ops/offload", dashboard(app, auth=Token(TOKEN)))])
    asked = TestClient(outer, base_url="http://localhost")
    page = asked.get(f"/ops/offload/?token={TOKEN}")
    assert page.status_code == 200
    assert page.history[0].headers["location"] == "/ops/offload/"
    assert "path=/ops/offload" in page.history[0].headers["set-cookie"].lower()
    assert 'href="/ops/offload/tasks"' in page.text
    assert 'aria-current="page">Overview' in page.text
    assert asked.get("/ops/offload/static/dashboard.css").status_code == 200
    assert asked.get("/ops/offload/healthz").status_code == 200


@pytest.mark.parametrize("auth", (Token(TOKEN), Basic({"ops": "secret"})))
def test_a_host_header_does_not_change_the_page(app, monkeypatch, auth):
    """The path alone selects the page: older Starlettes build an address from a Host header like
    ``x/healthz?``, with the path of another page.
    """
    elsewhere = property(lambda _: URL("http://x/healthz?/tasks"))
    monkeypatch.setattr(HTTPConnection, "url", elsewhere)
    asked = client(app, auth=auth)
    for path in PAGES:
        assert asked.get(path, headers={"host": "x/healthz?"}).status_code == 401


@pytest.mark.parametrize(
    "path",
    (
        "/healthz%3Fx",
        "/healthz%23",
        "/healthz/",
        "//healthz",
        "/x/../healthz/..",
        "/HEALTHZ",
        "/healthz;x",
    ),
)
def test_only_the_exact_path_is_open(app, path):
    """No other spelling of that path is open."""
    assert client(app, auth=Token(TOKEN)).get(path).status_code == 401


def test_the_redirection_keeps_the_address(app):
    """The redirection keeps names in the address, however odd."""
    asked = client(app, auth=Token(TOKEN))
    answer = asked.get(f"/class%25s?name=a%26b%3Fc&q=&token={TOKEN}", follow_redirects=False)
    assert answer.headers["location"] == "/class%25s?name=a%26b%3Fc&q="


def test_a_long_address_is_refused(app):
    """A long address is refused by every server, because each page repeats it in its links."""
    asked = client(app)
    assert asked.get("/nowhere", params={"q": "x" * 8000}).status_code == 404
    assert asked.get("/nowhere", params={"q": "x" * 9000}).status_code == 414


def test_an_invalid_store_is_refused_at_once():
    """An invalid store is an error at the start, not on each page, and without its password."""
    url = "s3://bucket?endpoint_url=http://user:hunter2@127.0.0.1:1"
    app = Celery("shop")
    Offload(app, store=url)
    with pytest.raises(ConfigurationError, match="without credentials") as caught:
        dashboard(app)
    assert "hunter2" not in str(caught.value)


def test_an_app_without_offload_has_none():
    """An app without offload has no dashboard."""
    with pytest.raises(ConfigurationError, match="no offload"):
        dashboard(Celery("bare"))
