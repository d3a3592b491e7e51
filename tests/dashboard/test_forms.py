"""Only forms of the dashboard's own pages are accepted."""

from __future__ import annotations

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from offload.dashboard import dashboard
from offload.dashboard.security import read_form, sign, token_of
from tests.support.wire import make_wire


def show(request):
    answer = PlainTextResponse(token_of(request))
    sign(request, answer)
    return answer


async def change(request):
    return PlainTextResponse((await read_form(request)).get("what", ""))


def make():
    app = dashboard(make_wire(watch=False).app)
    app.routes.insert(0, Route("/form", show))
    app.routes.insert(0, Route("/change", change, methods=["POST"]))
    return TestClient(app, base_url="http://localhost")


@pytest.fixture
def asked():
    return make()


def send(asked, token, **headers):
    return asked.post("/change", data={"form": token, "what": "this"}, headers=headers)


def test_a_form_of_a_page_is_accepted(asked):
    """A form's token is accepted with the cookie that came with its page."""
    answer = send(asked, asked.get("/form").text)
    assert (answer.status_code, answer.text) == (200, "this")


def test_pages_of_one_browser_share_their_cookie(asked):
    """A form is accepted even if other pages were opened since."""
    token = asked.get("/form").text
    assert asked.get("/form").text == token
    assert asked.get("/").status_code in {200, 500}
    assert send(asked, token).status_code == 200


def test_without_its_cookie_a_form_is_refused(asked):
    """A foreign page may imitate a form, but the browser doesn't send the cookie."""
    token = asked.get("/form").text
    asked.cookies.clear()
    assert send(asked, token).status_code == 403


@pytest.mark.parametrize("token", ("", "x", "é", "0" * 64))
def test_without_its_token_a_form_is_refused(asked, token):
    """The cookie alone, which a browser sends by itself, isn't enough."""
    asked.get("/form")
    assert send(asked, token).status_code == 403
    assert asked.post("/change").status_code == 403


def test_a_form_of_another_dashboard_is_refused(asked):
    """Dashboards on one machine may share a cookie, but not the token."""
    other = make()
    token = other.get("/form").text
    asked.cookies = other.cookies
    assert send(asked, token).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    (
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost"}, 403),
        ({"origin": "http://localhost"}, 200),
        ({"origin": "http://localhost:81"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ),
)
def test_forms_of_other_origins_are_refused(asked, headers, status):
    """Forms of another site, and of another port on this machine, are refused."""
    assert send(asked, asked.get("/form").text, **headers).status_code == status


def test_a_long_form_is_not_read(asked):
    """A form of more than 64 KiB isn't read."""
    asked.get("/form")
    assert asked.post("/change", content=b"x" * 100_000).status_code == 413
