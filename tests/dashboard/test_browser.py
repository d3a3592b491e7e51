"""The dashboard in a real browser, served by a real process."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from offload.text import human_size

pytestmark = [pytest.mark.integration, pytest.mark.server]

PHONE = {"width": 360, "height": 740}


def rows(page):
    """Return the keys of the rows that are shown."""
    return page.eval_on_selector_all(
        "tbody tr[data-key]", "rows => rows.map(row => row.dataset.key)"
    )


def test_all_pages_load_without_errors(shop, serve, look):
    """Every linked page opens, its charts are drawn, and the console has no errors."""
    shop.work()
    shop.hook.catalog.save("churn:model", "weights", metadata={"note": "</td><b>bold"})
    shop.hook.recorder.write()
    page = look(serve(shop.url).url)
    places = page.eval_on_selector_all("header nav a", "links => links.map(a => a.href)")
    assert len(places) >= 2
    for place in places:
        page.goto(place)
        page.wait_for_selector("h1")
        assert "Overview" in page.inner_text("header")
        heads = page.eval_on_selector_all("th", "heads => heads.map(th => th.textContent.trim())")
        assert "" not in heads, place  # for screen readers
        for plot in page.query_selector_all("[data-chart]"):
            plot.wait_for_selector("canvas", state="attached")
    page.goto(next(place for place in places if place.endswith("/catalog")))
    page.locator("tbody a", has_text="churn:model").click()
    expect(page.locator("tbody tr[data-key='1']")).to_contain_text('{"note": "</td><b>bold"}')
    page.goto(places[0])
    assert page.locator(".plot canvas").count() >= 2


def test_numbers_are_those_of_the_command(shared, look):
    """The page shows the numbers of `stats --json`."""
    total = json.loads(shared.command("stats", "--json"))["total"]
    page = look(shared.address)
    shown = page.inner_text("dl.figures")
    assert human_size(total["bytes_offloaded"]) in shown
    assert f"{total['deduplication']:.1f}x" in shown


def test_pages_are_updated(shop, serve, look):
    """Values published while a page is open appear on it, and open details stay open."""
    shop.work()
    shop.hook.recorder.write()
    page = look(serve(shop.url).url)
    page.locator("summary").first.click()
    page.locator(".time-ranges a", has_text="1 day").focus()
    page.evaluate("window.sameDocument = true")
    assert "8 values by reference" in page.inner_text("dl.figures")
    shop.work()
    shop.hook.recorder.write()
    expect(page.locator("dl.figures").first).to_contain_text(
        "16 values by reference", timeout=30_000
    )
    assert page.evaluate("window.sameDocument")
    assert page.locator("details").first.get_attribute("open") is not None
    assert page.evaluate("document.activeElement.innerText") == "1 day"
    assert page.locator(".plot").first.locator("canvas").count() >= 1


def updated(page):
    """Update a page now."""
    with page.expect_response(lambda answer: answer.ok):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def swapped(page):
    """Swap the two rows of a table and focus the last one."""
    page.evaluate(
        """() => {
            const [first, last] = document.querySelectorAll("tbody tr[data-key]");
            last.after(first);
            first.querySelector("a").focus();
        }"""
    )


@pytest.mark.parametrize("times", (1, 2))
def test_the_focus_moves_with_its_row(shared, look, times):
    """When rows are reordered, keyboard focus stays on its row."""
    page = look(shared.address + "tasks?sort=name&desc=0")
    for _ in range(times):
        swapped(page)
    focused = page.evaluate("document.activeElement.innerText")
    assert focused in {"shop.count", "shop.report"}
    updated(page)
    expect(page.locator("tbody tr[data-key] a").first).to_have_text("shop.count")
    assert page.evaluate("document.activeElement.innerText") == focused


def test_rows_with_one_name_stay_separate(shared, look):
    """Rows with the same name stay separate through updates."""
    page = look(shared.address + "tasks")

    def alike(route):
        text = route.fetch().text().replace('data-key="shop.count"', 'data-key="shop.report"')
        route.fulfill(body=text, content_type="text/html")

    page.route("**/tasks", alike)
    for _ in range(2):
        updated(page)
        expect(page.locator("tr[data-key='shop.report']")).to_have_count(2)
        assert page.locator("tbody tr[data-key] a").all_inner_texts() == [
            "shop.report",
            "shop.count",
        ]


def test_paused_pages_are_not_updated(shop, serve, look):
    """While updates are paused, no request is made; one follows at once afterwards."""
    page = look(serve(shop.url).url)
    page.click("#pause")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    shop.work()
    shop.hook.recorder.write()
    with page.expect_response(lambda answer: answer.ok):
        page.click("#pause")
    expect(page.locator("dl.figures").first).to_contain_text(
        "8 values by reference", timeout=30_000
    )


def test_tables_are_sorted_and_filtered(shared, look):
    """Tables are sorted in both directions and filtered with the keyboard alone."""
    page = look(shared.address + "tasks")
    assert rows(page) == ["shop.report", "shop.count"]
    head = page.locator("table.rows").get_by_role("columnheader", name="Task")
    head.get_by_role("link").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**sort=name**")
    assert rows(page) == ["shop.count", "shop.report"]
    assert head.get_attribute("aria-sort") == "ascending"
    page.get_by_role("searchbox", name="Task").fill("report")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=report**")
    assert rows(page) == ["shop.report"]


def test_a_hostile_task_name_is_shown_as_text(shop, serve, look):
    """Markup in a task's name is shown as text, also after an update."""
    name = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'
    page = look(serve(shop.url).url + "tasks")
    shop.task(name)
    shop.hook.recorder.write()
    expect(page.locator("tbody tr[data-key]")).to_have_count(1, timeout=30_000)
    assert rows(page) == [name]
    assert page.inner_text("main > .scroll tbody th") == name
    page.click("tbody th a")
    page.wait_for_url("**task?name**")
    assert page.inner_text("h1") == name
    assert page.evaluate("window.broken") is None


def test_a_hostile_name_in_a_chart_is_shown_as_text(shop, serve, look):
    """Markup in a chart's labels is shown as text and is no link."""
    name = '<a href="https://evil.example">x</a>&lt;b&gt;'
    shop.task(name)
    shop.hook.recorder.write()
    page = look(serve(shop.url).url + "tasks")
    chart = page.locator(".chart")
    assert chart.locator("tbody a").count() == 0
    expect(chart.locator("tbody th").first).to_have_text(name)


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_light_and_dark_colors(shared, look, scheme):
    """Colors follow the system until the reader chooses, and text stays readable."""
    page = look(shared.address, color_scheme=scheme)

    def brightness(name):
        colour = page.evaluate(f"getComputedStyle(document.body).{name}")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    assert (brightness("backgroundColor") > 127) == (scheme == "light")
    assert abs(brightness("backgroundColor") - brightness("color")) > 127
    page.click("#theme")  # light
    page.click("#theme")  # dark
    assert brightness("backgroundColor") < 127
    page.reload()
    assert brightness("backgroundColor") < 127


def test_pages_work_without_scripts(shared, look):
    """Figures, tables, and links work without JavaScript."""
    page = look(shared.address, java_script_enabled=False)
    assert "8 values by reference" in page.inner_text("dl.figures")
    page.click("header nav a >> text=Tasks")
    assert "shop.report" in page.inner_text("main > .scroll tbody")
