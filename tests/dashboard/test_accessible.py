"""Pages for everyone: axe-core finds nothing, in light and dark, on a desk and a phone."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import expect

from offload.classes.registry import ClassRegistry
from offload.errors import BlobMissing
from tests.cli.class_commands import made
from tests.dashboard.conftest import Served, Shop
from tests.dashboard.test_classes import written

pytestmark = [pytest.mark.integration, pytest.mark.server, pytest.mark.timeout(240)]

PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def full(redis, tmp_path_factory):
    """A served dashboard of a store with something on each page."""
    shop = Shop(f"{redis.url}?prefix=accessible-{os.getpid()}")
    shop.work()
    shop.task("a.very.long.task.name." * 8)
    with shop.hook.counters.about("shop.report", "rows"):
        shop.hook.counters.failed(BlobMissing("blob b3:12 is missing; raise offload_retention"))
    shop.hook.counters.add(cache_hits=3, cache_misses=1, refs_refused=1)
    shop.big = shop.hook.put("".join(chr(97 + at) * (4 << 20) for at in range(2)))
    shop.hook.pin(shop.big, "a-very-long-name-" * 9)
    shop.hook.catalog.save("churn:model", "weights", metadata={"stage": "prod"})
    registry = ClassRegistry(shop.url, mode="trusted", ship_source=True)
    folder = tmp_path_factory.mktemp("classes")
    first, second = (registry.push(written(folder, times)) for times in (2, 3))
    registry.push(made("Class" * 30))
    shop.hook.recorder.write()
    served = Served(tmp_path_factory.mktemp("full"), shop.url, "--allow-delete")
    shop.pages = [
        "",
        "tasks",
        "task?name=shop.report",
        "values",
        "blobs",
        f"blobs/{shop.big.digest}",
        f"blobs/{shop.big.digest}/remove",
        "lookup",
        "catalog",
        "classes",
        "stores",
        "workers",
        "estimate",
        "nowhere",
        f"class?name=shop.filters.Filter&a={first}&b={second}",
        "object?bucket=default&name=churn:model",
        "worker?name=x",
    ]
    shop.address = served.url
    yield shop
    served.process.stop()
    shop.hook.store.close()


@pytest.fixture(scope="module")
def axe():
    """Return axe-core's script."""
    from axe_playwright_python.sync_playwright import Axe

    return Axe()


VIEWS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark", "viewport": PHONE, "is_mobile": True, "has_touch": True},
    "contrast": {"color_scheme": "light", "contrast": "more", "forced_colors": "active"},
}


PAGES = {
    "dark": ("", "tasks", "task?name=shop.report", "values", "workers"),
    "contrast": ("", "values"),
}
"""Pages in these views; in the first, all are checked."""


_ONLY = {"resultTypes": ["violations"]}  # else axe also lists all that is right


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(full, look, axe, view):
    """No page violates a rule of axe-core, and none is wider than the screen."""
    page = look(full.address, expected=("404",), **VIEWS[view])
    for path in full.pages if view == "light" else PAGES[view]:
        page.goto(full.address + path)
        for text in (
            "Scanning the store",
            "Checking stores",
            "Waiting for workers",
            "Reading classes",
        ):
            expect(page.locator("main")).not_to_contain_text(text, timeout=30_000)
        for details in page.locator("details").all():
            details.evaluate("node => { node.open = true; }")
        found = axe.run(page, options=_ONLY).response["violations"]
        told = [(each["id"], each["nodes"][0]["html"][:200]) for each in found]
        assert told == [], path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    page.evaluate("document.body.append(document.createElement('img'))")
    assert axe.run(page, options=_ONLY).response["violations"]  # it does look


def test_a_phone_can_read_all_pages(full, look):
    """On a phone, long names, addresses, and digests make no page wider than the screen."""
    page = look(full.address, expected=("404",), **VIEWS["dark"])
    for path in full.pages:
        page.goto(full.address + path)
        for text in ("Scanning the store", "Checking stores", "Reading classes"):
            expect(page.locator("main")).not_to_contain_text(text, timeout=30_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


def test_a_phone_has_a_header_of_one_line(full, look):
    """On a phone, the header has one line, sorting a few, and tables are cards in one column."""
    page = look(full.address + "tasks", **VIEWS["dark"])
    assert page.locator("header").bounding_box()["height"] < 64
    sorts = page.locator("table.rows thead th").filter(has=page.locator("a")).all()
    assert len({sort.bounding_box()["y"] for sort in sorts}) < len(sorts) / 2  # side by side
    cells = page.locator("table.rows tbody tr").first.locator("td")
    boxes = [cell.bounding_box() for cell in cells.all() if cell.is_visible()]
    assert len(boxes) > 3  # those without a figure are hidden
    assert len({box["x"] for box in boxes}) == 1
    assert [box["y"] for box in boxes] == sorted({box["y"] for box in boxes})
    page.goto(full.address)
    for group in (".cards", ".figures", ".charts"):
        places = page.locator(f"{group} > *").evaluate_all("all => all.map(e => e.offsetLeft)")
        assert len(set(places)) == 1, group


def test_lines_have_a_width(full, look):
    """A chart of one minute of data spans minutes, and follows the width of its window."""
    page = look(full.address)
    plot = page.locator(".plot").first
    expect(plot.locator("canvas")).to_be_visible()
    span = plot.evaluate("place => { const x = place.plot.scales.x; return x.max - x.min; }")
    assert span >= 240
    widths = []
    for width in (1200, 700):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function(
            "() => { const p = document.querySelector('.plot');"
            " return p.plot.width === p.clientWidth; }"
        )
        widths.append(plot.evaluate("place => place.plot.width"))
    assert widths[0] != widths[1]


def test_figures_follow_the_pointer(full, look):
    """The legend has the figures under the pointer."""
    page = look(full.address)
    plot = page.locator(".plot").first
    plot.locator("canvas").wait_for()
    plot.hover()
    shown = page.locator(".legend output").first
    expect(shown).to_have_text("0 B")
