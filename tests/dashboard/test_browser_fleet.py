"""Pages of classes, stores, and workers in a real browser, with a real worker."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from offload.classes.registry import ClassRegistry
from tests.cli.class_commands import made
from tests.dashboard.test_browser import rows
from tests.dashboard.test_classes import written
from tests.support.processes import worker
from tests.support.servers import redis_server

pytestmark = [pytest.mark.integration, pytest.mark.server, pytest.mark.timeout(180)]

BAD = '<img src=x onerror="window.broken=1">'


@pytest.fixture(scope="module")
def broker():
    with redis_server("redis-server") as server:
        yield server


def test_a_worker_appears_and_disappears(shop, broker, serve, look, tmp_path):
    """A worker appears on an open page with its configuration drift, and disappears."""
    url = f"redis://{broker.host}:{broker.port}/0"
    config = {
        "broker": url,
        "backend": f"redis://{broker.host}:{broker.port}/1",
        "offload": {"store": shop.url, "cache": "off", "secret": "of the worker alone"},
    }
    page = look(serve(shop.url, broker=url).url + "workers")
    page.evaluate("window.sameDocument = true")
    expect(page.locator(".findings")).to_contain_text("no worker replied", timeout=30_000)
    features = "tests.integration.features"
    with worker(tmp_path, config, pool="solo", concurrency=1, app=features, name="seen"):
        link = page.get_by_role("link", name="seen-")
        expect(link).to_be_visible(timeout=60_000)
        expect(page.locator(".findings")).to_contain_text("belongs to another app, 'features'")
        assert page.evaluate("window.sameDocument")
        address = page.url
        link.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**worker?name=seen-**")
        page.get_by_text("Full report").click()
        expect(page.get_by_role("rowheader", name="threshold", exact=True)).to_be_visible()
    page.goto(address)
    expect(page.get_by_role("link", name="seen-")).to_have_count(0, timeout=60_000)


def test_versions_are_compared_by_the_keyboard(shop, serve, look, tmp_path):
    """Two versions are chosen from lists, and their diff is shown as text."""
    registry = ClassRegistry(shop.url, mode="trusted", ship_source=True)
    first, second = (registry.push(written(tmp_path, times)) for times in (2, 3))
    page = look(serve(shop.url).url + "classes")
    page.get_by_role("link", name="shop.filters.Filter").click()
    page.wait_for_url("**class?name=shop.filters.Filter")
    assert rows(page) == [second, first]
    page.get_by_label("From").select_option(first)
    page.get_by_label("To").select_option(second)
    page.get_by_role("button", name="Compare").press("Enter")
    page.wait_for_url("**&a=**")
    shown = page.inner_text("#difference")
    assert "-        return x * 2  # <b>" in shown
    assert "+        return x * 3  # <b>" in shown


def test_a_hostile_name_is_shown_as_text(shop, serve, look):
    """Markup in a class's name is shown as text."""
    registry = ClassRegistry(shop.url, mode="trusted")
    registry.push(made("Filter", module=BAD))
    page = look(serve(shop.url).url + "classes")
    assert page.inner_text("tbody th") == f"{BAD}.Filter"
    page.click("tbody th a")
    page.wait_for_url("**class?name**")
    assert page.inner_text("h1") == f"{BAD}.Filter"
    assert page.evaluate("window.broken") is None
