"""Pages of shipped classes, requested without a browser."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from offload.classes.versions import PointerNames
from offload.dashboard import dashboard, rendering, state
from offload.testing.store import unique
from tests.cli.class_commands import HMAC, Command, made
from tests.dashboard.test_stores import rows, settled
from tests.support.processes import wait_until

pytestmark = pytest.mark.server


@pytest.fixture
def command(redis):
    url = f"{redis.url}?prefix={unique('classes').replace('/', '-')}"
    return Command(store=url, code="signed", signing_key=HMAC, ship_source=True)


def client_of(command):
    return TestClient(dashboard(command.hook.app, hosts=["*"]))


def written(folder, times):
    """Return a class from a file, whose source is pushed."""
    path = folder / f"shop_filters_{times}.py"
    text = f"class Filter:\n    def run(self, x):\n        return x * {times}  # <b>\n"
    path.write_text(text)
    scope = {"__name__": "shop.filters", "__file__": str(path)}
    exec(compile(text, str(path), "exec"), scope)
    return scope["Filter"]


def test_the_status_of_classes(command):
    """Each class, also one registered only here, is a row with the output of `classes list`."""
    registry = command.registry
    for name in ("Pushed", "Changed"):
        registry.register(made(name))
    registry.push_all()
    registry.register(made("Changed", times=3))
    registry.register(made("New"))
    page = settled(client_of(command), "/classes")
    message = {each["name"]: each for each in command.json("list")}
    shown = {row[0]: row for row in rows(page, "Classes and functions")}
    assert set(shown) == {*message, "shop.models.New"}
    for name, each in message.items():
        row = shown[name]
        assert row[1] == each["latest"][:12]
        assert row[2] == str(len(each["versions"]))
        assert row[4] == each["status"]
        assert row[5] == "yes"
        assert row[8].startswith("this process")
    assert shown["shop.models.New"][4] == "untracked"
    assert shown["shop.models.Changed"][4] == "out_of_sync"


def test_refused_classes_are_shown_with_the_reason(command):
    """Refused and broken classes have a reason; a process that loads no code says so."""
    command.registry.push(made("Signed"))
    command.registry.push(made("Broken"))
    command.change(PointerNames("shop.models.Broken").latest, b"<script>alert(1)</script>")
    other = command.another(code="signed", signing_key="hmac:another secret that is long")
    page = settled(client_of(other), "/classes")
    assert "not among offload_verify_keys" in page
    assert "t a class record" in page
    assert {row[0]: row[5] for row in rows(page, "Classes and functions")} == {
        "shop.models.Broken": "-",
        "shop.models.Signed": "no",
    }
    assert "<script>alert" not in page
    page = settled(client_of(command.another(code="off")), "/classes")
    assert "This process loads no code" in page
    assert "not among" not in page


def test_versions_of_a_class_and_their_diff(command, tmp_path):
    """Versions are listed newest first with tags; the diff of two sources is shown as text."""
    first = command.registry.push(written(tmp_path, 2))
    second = command.registry.push(written(tmp_path, 3))
    command.registry.tag("shop.filters.Filter", "stable", first)
    client = client_of(command)
    page = settled(client, "/class", params={"name": "shop.filters.Filter"})
    found = rows(page, "Versions")
    assert [row[0] for row in found] == [second[:12], first[:12]]
    assert [row[1] for row in found] == ["latest", "stable"]
    asked = {"name": "shop.filters.Filter", "a": first, "b": second}
    page = client.get("/class", params=asked).text
    difference = re.search(r'<pre id="difference".*?</pre>', page, re.DOTALL)[0]
    assert "-        return x * 2" in difference
    assert "+        return x * 3" in difference
    assert "<b>" not in difference
    message = command("diff", "shop.filters.Filter", first[:12], second[:12])
    assert message.count("\n+") == difference.count("\n+")


def test_versions_that_cannot_be_compared(command):
    """A diff without sources, or of unknown versions, is an error that says so."""
    command = command.another(code="signed", signing_key=HMAC, ship_source=False)
    first, second = (command.registry.push(made("Filter", times=n)) for n in (2, 3))
    client = client_of(command)
    asked = {"name": "shop.models.Filter", "a": first, "b": second}
    assert "was pushed without its source" in settled(client, "/class", params=asked)
    asked["a"] = "<script>"
    page = client.get("/class", params=asked).text
    assert "<script>" not in page.replace('<script src="', "")
    assert "was pushed without its source" not in page


def test_an_unknown_class(command):
    """An unknown class has an error page, whatever its name."""
    client = client_of(command)
    for name in ("", "Nobody", "shop.Nobody", "<script>alert(1)</script>", "../..", "\x00"):
        page = settled(client, "/class", params={"name": name})
        assert "The store has no version of this class" in page
        assert "<script>alert" not in page


def test_reasons_are_those_of_the_page(command, monkeypatch):
    """Among many refused classes, a page only has the reasons of those it shows."""
    monkeypatch.setattr(rendering, "_ROWS", 1)
    for name in ("First", "Last"):
        command.registry.push(made(name))
    other = command.another(code="signed", signing_key="hmac:another secret that is long")
    page = settled(client_of(other), "/classes?page=2")
    assert "<strong>shop.models.Last</strong>" in page
    assert "<strong>shop.models.First</strong>" not in page


def test_many_are_filtered_sorted_and_paged(command):
    """The address filters, sorts, and pages the list."""
    for number in range(105):
        command.registry.push(made(f"Class{number:03}"))
    client = client_of(command)

    def names(query):
        page = settled(client, f"/classes?{query}")
        return [row[0] for row in rows(page, "Classes and functions")]

    assert len(names("")) == 100
    assert names("page=2")[-1] == "shop.models.Class104"
    assert names("sort=name&desc=1")[0] == "shop.models.Class104"
    assert names("q=CLASS01") == [f"shop.models.Class01{n}" for n in range(10)]
    assert names("q=nothing") == []


def test_browsers_together_read_the_store_once(command, monkeypatch):
    """Many browsers cause one read of the store, and later pushes appear after some seconds."""
    monkeypatch.setattr(state, "_CLASSES", 3600.0)
    read = []
    real = state.classes_of
    monkeypatch.setattr(state, "classes_of", lambda each: read.append(1) or real(each))
    client = client_of(command)
    for _ in range(10):
        client.get("/classes")
    assert read == [1]
    monkeypatch.setattr(state, "_CLASSES", 0.01)
    client = client_of(command)
    client.get("/classes")
    command.registry.push(made("Later"))
    wait_until(lambda: "Later" in client.get("/classes").text, "the pushed class is shown")


def test_the_store_is_unavailable():
    """While the store is unavailable, the page says so and reloads itself."""
    command = Command(store="redis://localhost:1/0", code="off", retry={"max_retries": 0})
    client = client_of(command)
    for path in ("/classes", "/class?name=shop.A"):
        page = client.get(path)
        assert page.status_code == 503
        assert "is unavailable" in page.text
