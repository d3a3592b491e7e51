"""The dashboard reports faults and recovers by itself."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from offload.dashboard import dashboard
from offload.dashboard.statistics import Statistics
from offload.metrics.counters import NAMES
from offload.metrics.storage import sums_of
from offload.stores.sums import LABEL, CounterBatch
from tests.dashboard.asking import assert_no_growth
from tests.dashboard.conftest import Shop
from tests.support.processes import wait_until
from tests.support.servers import redis_client, redis_server

pytestmark = pytest.mark.server

AWAY = "Store unavailable"


@pytest.fixture
def own_redis():
    with redis_server() as server:
        yield server


def update_until(page, shown):
    """Update a page, without waiting for its timer, until an element is shown."""

    def updated():
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_timeout(200)
        return shown.is_visible()

    wait_until(updated, "the page is updated", 60)


def savings(page):
    return page.get_by_role("region", name="What does it save?")


@pytest.mark.integration
def test_a_store_becomes_unavailable_and_comes_back(own_redis, serve, look):
    """The open page says that the store is unavailable, and shows figures again afterwards."""
    shop = Shop(f"{own_redis.url}?prefix=away", retry={"max_retries": 0})
    shop.work()
    shop.hook.recorder.write()
    page = look(serve(shop.url).url, expected=["503"])
    expect(savings(page)).to_contain_text("8 values by reference")
    own_redis.stop()
    update_until(page, page.get_by_role("alert"))
    expect(page.locator("h1")).to_have_text(AWAY)
    own_redis.start()
    update_until(page, savings(page).get_by_text("0 values by reference"))
    expect(page.locator("h1")).to_have_text("Overview")


@pytest.mark.integration
def test_an_unavailable_dashboard_is_reported(shop, serve, look):
    """An open page stays as it was, and says that it is old."""
    shop.work()
    shop.hook.recorder.write()
    served = serve(shop.url)
    page = look(served.url, expected=["ERR_CONNECTION_REFUSED"])
    expect(page.locator("#stale")).to_be_hidden()
    served.process.stop()
    update_until(page, page.locator("#stale"))
    expect(savings(page)).to_contain_text("8 values by reference")


def test_every_page_reports_an_unavailable_store(own_redis):
    """Every page responds with 503, so that programs notice, too."""
    shop = Shop(f"{own_redis.url}?prefix=away")
    client = shop.client()
    own_redis.stop()
    for path in ("/", "/tasks", "/task?name=x", "/estimate"):
        answer = client.get(path)
        assert answer.status_code == 503, path
        assert AWAY in answer.text
        assert str(own_redis.port) in answer.text


@pytest.mark.integration
def test_a_hanging_store_does_not_block_others(own_redis, serve):
    """While many requests wait for a hanging store, the health check responds, and each page fails
    after one try.
    """
    served = serve(f"{own_redis.url}?prefix=hangs&socket_timeout=2")
    assert served.get()[0] == 200
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(50) as pool:
            pages = [pool.submit(served.get, "tasks") for _ in range(50)]  # more than threads
            assert served.get("healthz") == (200, "ok\n")
            assert not all(each.done() for each in pages)
            assert {each.result()[0] for each in pages} == {503}
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)


@pytest.mark.integration
def test_a_hanging_result_backend_does_not_block_others(shop, serve):
    """While many requests wait for a hanging result backend, other pages respond."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0?socket_timeout=20"
        served = serve(shop.url, app=f"app.conf.result_backend = {url!r}")
        with ThreadPoolExecutor(50) as pool:
            asked = [pool.submit(served.get, "lookup?what=a-task") for _ in range(50)]
            wait_until(lambda: any(each.done() for each in asked), "some requests are refused")
            assert served.get("tasks")[0] == 200
            assert not all(each.done() for each in asked)
            served.process.stop()


@pytest.mark.parametrize("mounted", (False, True))
def test_an_unexpected_error_has_a_page(shop, monkeypatch, caplog, mounted):
    """An unexpected error has a page with all headers and no details; the log has the rest."""

    def fail(*_, **__):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Statistics, "report", fail)
    made = dashboard(shop.app, hosts=["*"])
    client = TestClient(Starlette(routes=[Mount("/ops", made)]) if mounted else made)
    answer = client.get("/ops/tasks" if mounted else "/tasks")
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.text
    assert "secret" not in answer.text
    assert '<main id="main"' in answer.text
    assert answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert "/tasks' failed" in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


def test_foreign_statistics_are_ignored(shop, redis):
    """Invalid numbers, and counters of a later version, don't affect others."""
    shop.work()
    client = shop.client()
    client.get("/")
    raw = redis_client(redis)
    prefix = shop.url.partition("prefix=")[2]
    keys = list(raw.scan_iter(match=f"{prefix}:*stats*", _type="hash"))
    assert len(keys) >= 4
    for key in keys:
        strange = {"later_counter": "5", "later\x1fa\x1fb\x1fc\x1fd": "7", "": "1"}
        raw.hset(key, mapping={**strange, "values_seen": "many", b"\xff\xfe": b"\x00"})
    for path in ("/?since=1h", "/?since=all", "/tasks", "/task?name=shop.report", "/estimate"):
        again = shop.client().get(path)
        assert again.status_code == 200, path
    assert "8 values by reference" in client.get("/?since=3h").text


def test_many_task_names_are_a_bounded_page(shop):
    """The store keeps a bounded number of task names, and a page shows some of them."""
    tallies = sums_of(shop.hook.store)
    for number in range(15):
        names = [f"values_offloaded{LABEL}task{number}.{at}{LABEL}" for at in range(4_000)]
        tallies.add(CounterBatch(f"p{number}", 1, dict.fromkeys(names, 1), {}))
    client = shop.client()
    answer = client.get("/tasks?sort=name&page=3")
    assert answer.text.count("<tr data-key=") == 100
    assert len(answer.content) < 200_000
    assert "60,000" in client.get("/?since=all").text


def test_two_dashboards_show_the_same(shop):
    """Two dashboards show the same, because they keep no state."""
    shop.work()
    first, second = shop.client(), shop.client()
    assert "8 values by reference" in first.get("/").text
    assert "8 values by reference" in second.get("/").text


def test_many_requests_take_no_memory(shop):
    """After forty requests, eighty more leave no object behind."""
    shop.work()
    client = shop.client()
    paths = ("/", "/?since=1h", "/tasks?sort=name", "/task?name=shop.report", "/estimate")
    statistics = client.app.state.state.statistics
    for cache in (statistics._reports, statistics._lines, statistics._errors):
        cache._ttl = 0  # as if each came later

    def ask(times):
        for number in range(times):
            client.get(paths[number % len(paths)])

    assert_no_growth(ask, 20, 40_000)


_UPDATES = """async times => {
    window.answer ??= await (await fetch(location.href)).text();
    for (let left = times; left; left -= 1) {
        const number = window.number = (window.number ?? 1000) + 1;
        const text = window.answer
            .replace(/(y&#34;:\\[\\[)\\d+/g, `$1${number}`)
            .replace(/\\d+ values by reference/g, `${number} values by reference`);
        window.fetch = async () => new Response(text);
        document.dispatchEvent(new Event("visibilitychange"));
        while (!document.querySelector(".plot").drawn.includes(`[[${number},`)) {
            await new Promise(resolve => setTimeout(resolve, 1));
        }
    }
}"""
"""Update the page with changing figures, as if the dashboard had answered."""


@pytest.mark.integration
def test_a_browser_left_open_takes_no_memory(shop, serve, look):
    """After fifty updates with changing figures, two hundred more leave nothing behind."""
    shop.work()
    shop.hook.recorder.write()
    page = look(serve(shop.url).url + "?since=1h")
    page.locator(".plot canvas").first.wait_for(state="attached")
    asked = page.context.new_cdp_session(page)
    asked.send("Performance.enable")

    def update(times):
        page.evaluate(_UPDATES, times)
        asked.send("HeapProfiler.collectGarbage")
        found = asked.send("Performance.getMetrics")["metrics"]
        return {each["name"]: each["value"] for each in found}

    before = update(50)
    after = update(200)
    # A page or two may wait to be collected; two hundred would be far more.
    page_nodes = page.evaluate("document.querySelectorAll('*').length")
    assert after["Nodes"] - before["Nodes"] < 20 * page_nodes
    assert after["JSEventListeners"] - before["JSEventListeners"] < 100
    assert after["JSHeapUsedSize"] - before["JSHeapUsedSize"] < 2_000_000


def test_pages_show_existing_counters():
    """Every counter that a page shows exists; otherwise it would always be zero."""
    from offload.dashboard import health

    assert set(health._ERRORS) | set(health._EVENTS) <= set(NAMES)
    assert set(health._ERRORS) == {name for name in NAMES if name.startswith("errors_")}
