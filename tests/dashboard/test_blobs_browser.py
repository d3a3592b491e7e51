"""Pages of blobs in a real browser."""

from __future__ import annotations

import json
import os
from itertools import pairwise

import pytest
from playwright.sync_api import expect

from offload.text import human_size

pytestmark = [pytest.mark.integration, pytest.mark.server]

PHONE = {"width": 360, "height": 740}
HOSTILE = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>"


@pytest.fixture
def filled(shop):
    shop.refs = [shop.hook.put(os.urandom(n).hex()) for n in (1000, 3000, 9000, 27_000)]
    shop.loose = shop.hook.put("nobody's" * 1000).digest
    shop.hook.store.blobs.release([shop.loose], "put", 3600)
    return shop


def rows(page):
    """Return the digests in the list."""
    return page.eval_on_selector_all(
        "tbody tr[data-key^='b3:']", "rows => rows.map(row => row.dataset.key)"
    )


def test_the_numbers_are_those_of_the_command(filled, serve, look):
    """Each blob is a row with the size of `ls --json`, and the charts are drawn."""
    listed = {each["digest"]: each for each in json.loads(filled.command("ls", "--json"))}
    page = look(serve(filled.url).url + "blobs")
    expect(page.locator("tbody tr[data-key^='b3:']")).to_have_count(len(listed), timeout=30_000)
    assert set(rows(page)) == set(listed)
    for digest, each in listed.items():
        assert human_size(each["bytes"]) in page.inner_text(f"tr[data-key='{digest}']")
    total = sum(each["bytes"] for each in listed.values())
    assert human_size(total) in page.inner_text("dl.figures")
    sizes = page.locator(".chart").first.locator("tbody td").all_inner_texts()
    assert sum(map(int, sizes)) == len(listed)


def test_it_is_searched_and_sorted_by_the_keyboard(filled, serve, look):
    """A digest prefix, a size, and a column's heading work with the Enter key."""
    page = look(serve(filled.url).url + "blobs")
    expect(page.locator("tbody tr[data-key^='b3:']")).to_have_count(5, timeout=30_000)
    head = page.get_by_role("columnheader", name="Stored")
    assert head.get_attribute("aria-sort") == "descending"
    largest = rows(page)
    head.get_by_role("link").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**sort=size**")
    assert rows(page) == largest[::-1]
    page.get_by_label("Held", exact=True).select_option("no")
    page.get_by_role("searchbox", name="Digest").press("Enter")
    page.wait_for_url("**held=no**")
    assert rows(page) == [filled.loose]
    assert "sort=size" in page.url
    page.get_by_label("Held", exact=True).select_option("")
    page.get_by_role("searchbox", name="Digest").fill(largest[1][:12])
    page.keyboard.press("Enter")
    page.wait_for_url("**q=b3**")
    assert rows(page) == [largest[1]]
    page.get_by_role("searchbox", name="Look up").fill(largest[0][:14])
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/blobs/{largest[0]}")
    assert page.inner_text("#digest") == largest[0]


def test_new_blobs_appear(filled, serve, look):
    """New blobs appear without a reload, and text that is being typed stays."""
    page = look(serve(filled.url).url + "blobs")
    expect(page.locator("tbody tr[data-key^='b3:']")).to_have_count(5, timeout=30_000)
    page.evaluate("window.sameDocument = true")
    new = filled.hook.put("new" * 5000)
    expect(page.locator(f"tr[data-key='{new.digest}']")).to_be_visible(timeout=60_000)
    assert page.evaluate("window.sameDocument")


def test_a_preview_is_shown_as_text(filled, serve, look):
    """Markup in values, holders, and searches is shown as text."""
    ref = filled.hook.put(HOSTILE * 100)
    filled.hook.store.blobs.hold([ref.digest], 3600, f"task:{HOSTILE}")
    base = serve(filled.url).url
    page = look(f"{base}blobs/{ref.digest}")
    assert page.inner_text("pre").startswith(HOSTILE)
    assert f"task:{HOSTILE}" in page.inner_text("main")
    with page.expect_response(lambda answer: answer.ok, timeout=30_000):
        pass  # of an update, which inserts the texts again
    page.goto(f"{base}blobs?q=%3Cimg+src%3Dx+onerror%3D%27window.broken%3D1%27%3E")
    assert page.locator("main img").count() == 0
    assert page.evaluate("window.broken") is None


def test_the_reason_for_a_failed_deletion_stays(filled, serve, look):
    """A message after a failed deletion stays, because an update would remove it."""
    held = filled.refs[0].digest
    url = serve(filled.url, "--allow-delete").url
    page = look(f"{url}blobs/{held}/remove", expected=["409"])
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("alert")).to_contain_text("Not removed")
    asked = []
    page.on("request", lambda request: "/static/" in request.url or asked.append(request.url))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.evaluate("fetch('/healthz').then(answer => answer.text())")
    assert asked == [f"{url}healthz"]


def test_a_long_search_text_fits_a_phone(filled, serve, look):
    """A long search text wraps on a phone."""
    page = look(f"{serve(filled.url).url}blobs?by={'x' * 200}", viewport=PHONE, is_mobile=True)
    report = page.locator(".notice", has_text="holds no blobs")
    expect(report).to_be_visible(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_blob_is_removed_by_hand(filled, serve, look):
    """A blob is deleted after a confirmation page, a held one only with its box ticked."""
    page = look(
        serve(filled.url, "--allow-delete").url + f"blobs/{filled.loose}", expected=("409",)
    )
    page.get_by_role("link", name="Remove this blob").click()
    page.wait_for_url("**/remove")
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("link", name="Remove this blob").click()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status").filter(has_text="Removed")).to_contain_text(filled.loose)
    held = filled.refs[0].digest
    page.goto(f"{page.url.partition('/blobs')[0]}/blobs/{held}/remove")
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("alert")).to_contain_text("Not removed")
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status").filter(has_text="Removed")).to_contain_text(held)
    left = {each["digest"] for each in json.loads(filled.command("ls", "--json"))}
    assert left == {ref.digest for ref in filled.refs[1:]}


def test_everything_has_a_name(filled, serve, look):
    """Inputs have labels, tables have captions and headings, and headings are in order, for screen
    readers.
    """
    big = filled.hook.put("".join(chr(97 + at) * (4 << 20) for at in range(2)))
    base = serve(filled.url, "--allow-delete").url
    page = look(base + "blobs")
    expect(page.locator("tbody tr[data-key^='b3:']").first).to_be_visible(timeout=30_000)
    for path in ("blobs", f"blobs/{big.digest}", f"blobs/{big.digest}/remove", "lookup"):
        page.goto(base + path)
        unnamed = page.evaluate(
            """() => [
                ...[...document.querySelectorAll("main input:not([type=hidden]), main select")]
                    .filter(field => field.labels.length === 0),
                ...[...document.querySelectorAll("main > .scroll table")]
                    .filter(table => !table.caption?.innerText),
                ...document.querySelectorAll("main th:not([scope])"),
            ].map(node => node.outerHTML)"""
        )
        assert unnamed == [], path
        levels = page.eval_on_selector_all(
            "h1, h2, h3", "all => all.map(each => +each.nodeName[1])"
        )
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
