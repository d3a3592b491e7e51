"""The pages' content, requested without a browser."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from offload.errors import BlobMissing
from offload.metrics.storage import sums_of
from offload.text import human_size
from tests.support.catalog_calls import use_catalog
from tests.support.memo_calls import call_memo_tasks

pytestmark = pytest.mark.server


def cells(page, row):
    """Return the texts of the table row with this key."""
    found = re.search(rf'<tr data-key="{re.escape(row)}">(.*?)</tr>', page, re.DOTALL)
    assert found, page
    return [
        re.sub(r"<[^>]*>", "", cell).strip()
        for cell in re.findall(r"<t[hd].*?</t[hd]>", found[1], re.DOTALL)
    ]


def test_the_overview_has_the_numbers_of_the_command(shop):
    """The overview shows the savings of `stats --json`."""
    shop.work()
    page = shop.client().get("/").text
    total = json.loads(shop.command("stats", "--json"))["total"]
    assert total["values_offloaded"] == 8
    assert human_size(total["bytes_offloaded"]) in page
    assert human_size(total["bytes_uploaded"]) in page
    assert f"{total['deduplication']:.1f}x" in page
    assert "No errors since counting began." in page


def shown(page, row):
    """Return the texts of the table row with this key, by the labels of their columns."""
    text = page[page.index('<table class="rows">') :]
    heads = re.findall(r"<th scope=\"col\".*?</th>", text.partition("</thead>")[0], re.DOTALL)
    labels = [re.sub(r"<[^>]*>", "", head).strip() for head in heads]
    return dict(zip(labels, cells(text, row), strict=True))


def test_tasks_have_the_numbers_of_the_command(shop):
    """Each task's row has the figures of `stats --by task`."""
    shop.work()
    page = shop.client().get("/tasks").text
    rows = [line.split("  ") for line in shop.command("stats", "--by", "task").splitlines()]
    labels = ("Task", "Values", "By reference", "Saved", "Uploaded", "Dedup", "Read")
    for name in ("shop.report", "shop.count"):
        (row,) = [[text.strip() for text in row if text.strip()] for row in rows if row[0] == name]
        found = shown(page, name)
        assert [found[label] for label in labels] == row[:7]
        assert [found["Cache hits"], found["Errors"]] == row[7:]


def test_tasks_are_sorted_by_savings_errors_or_size(shop):
    """Savings, errors, and sizes are columns by which the list is sorted."""
    shop.work()
    with shop.hook.counters.about("shop.count", "rows"):
        shop.hook.counters.failed(BlobMissing("it is missing"))
    client = shop.client()
    page = client.get("/tasks").text
    assert shown(page, "shop.count")["Errors"] == "1"
    assert shown(page, "shop.count")["Latest error"].endswith(" s ago")
    assert shown(page, "shop.report")["Latest error"] == "-"
    assert shown(page, "shop.report")["Mean size"] == "200.0 kB"
    for sort, first in (("bytes", "shop.report"), ("errors", "shop.count"), ("size", "shop.count")):
        page = client.get(f"/tasks?sort={sort}&desc=1").text
        assert re.findall(r'<tr data-key="([^"]*)">', page)[0] == first, sort


def test_a_task_has_sizes_latencies_and_errors(shop):
    """A task's page has its values by size, the latency of each step, and its recent errors."""
    shop.work()
    with shop.hook.counters.about("shop.report", "rows"):
        shop.hook.counters.failed(BlobMissing("it is missing"))
    with shop.hook.counters.about("shop.count", "rows"):
        shop.hook.counters.failed(BlobMissing("of another task"))
    page = shop.client().get("/task", params={"name": "shop.report"}).text
    assert re.findall(r">([\d.]+ kB to [\d.]+ kB)</th>\s*<td[^>]*>(\d+)", page) == [
        ("65.5 kB to 131.1 kB", "3"),
        ("131.1 kB to 262.1 kB", "0"),
        ("262.1 kB to 524.3 kB", "3"),
    ]
    assert "upload (6 times)" in page
    assert cells(page, "errors_missing rows")[1] == "rows"
    assert "it is missing" in page
    assert "of another task" not in page


def test_what_memo_saves(shop, monkeypatch):
    """The cards and the task columns have the counted hits, lookups, waits, and time saved."""
    shop.work()
    client = shop.client()
    assert "Computed once" not in client.get("/").text + client.get("/tasks").text
    shop.wire.work()
    call_memo_tasks(shop.wire, monkeypatch)
    client = shop.client()
    page = re.sub("(<[^>]*>)+", " ", client.get("/", params={"since": "1h"}).text)
    assert (
        "Computed once 4 saved  50% of 8 calls returned a remembered result, saving 5.0 s; "
        "waited for an equal call: 1 " in page
    )
    lines = shop.command("stats", "--by", "task").splitlines()
    for name in ("memo.total", "memo.report", "memo.odd", "shop.count"):
        (row,) = [re.split(" {2,}", line) for line in lines if line.startswith(f"{name} ")]
        found = shown(client.get("/tasks?sort=once").text, name)
        assert [found[label] for label in ("Computed once", "Memo hits", "Time saved")] == row[-3:]
    assert row[-3:] == ["0", "-", "0.0 ms"]
    page = re.sub("(<[^>]*>)+", " ", client.get("/task", params={"name": "memo.total"}).text)
    assert (
        "Computed once 2 saved  40% of 5 calls returned a remembered result, saving 2.5 s; "
        "waited for an equal call: 1 " in page
    )
    assert "Memo hits" not in page
    assert "Computed once" not in client.get("/task", params={"name": "shop.count"}).text


def test_what_the_catalog_counts(shop):
    """The catalog's page, and a card of the overview, have the counted numbers."""
    assert "late arguments" not in shop.client().get("/").text
    use_catalog(shop.wire)
    shop.hook.recorder.write()
    client = shop.client()
    page = re.sub("(<[^>]*>)+", " ", client.get("/catalog", params={"since": "1h"}).text)
    assert "Saved 5  versions in the last hour; refused because the version existed: 2 " in page
    assert "Loaded 4  objects; for tasks: 1 reference, 3 late arguments " in page
    assert "Removed 2  versions " in page
    page = re.sub("(<[^>]*>)+", " ", client.get("/", params={"since": "1h"}).text)
    assert "Catalog 5 versions  saved; 4 objects loaded, 3 late arguments of tasks " in page


def test_tasks_are_sorted_and_filtered_by_the_address(shop):
    """Any column sorts in both directions, and part of a name filters."""
    shop.work()
    client = shop.client()

    def names(query):
        return re.findall(r'<tr data-key="([^"]*)">', client.get(f"/tasks?{query}").text)

    assert names("sort=bytes&desc=1") == ["shop.report", "shop.count"]
    assert names("sort=bytes&desc=0") == ["shop.count", "shop.report"]
    assert names("sort=name&desc=1") == ["shop.report", "shop.count"]
    assert names("q=COUNT") == ["shop.count"]
    assert names("q=nothing") == []
    assert names("sort=<script>&page=-3&desc=x") == ["shop.report", "shop.count"]


def test_a_task_has_its_arguments(shop):
    """Each argument is a row with its number of observations."""
    shop.work()
    page = shop.client().get("/task", params={"name": "shop.report"}).text
    assert shown(page, "rows")["Values"] == "3"
    assert shown(page, "title")["Values"] == "3"
    assert "upload" in page
    assert "Nothing has been counted for this task" in shop.client().get("/task?name=unknown").text


def test_hostile_names_are_shown_as_text(shop):
    """Markup in a task's name is shown as text everywhere."""
    name = "<script>alert(1)</script>\"' onload=x"
    shop.task(name)
    client = shop.client()
    for page in (client.get("/tasks"), client.get("/task", params={"name": name})):
        assert "<script>alert" not in page.text
        assert "&lt;script&gt;alert(1)" in page.text


def test_an_empty_store_has_pages(shop):
    """Without statistics, pages say so, and a filter is blamed only if there is one."""
    client = shop.client()
    assert "Nothing was counted." in client.get("/").text
    assert "No task has sent or read a large value yet." in client.get("/tasks").text
    assert "Nothing matches this filter." in client.get("/tasks?q=report").text
    assert "No objects yet" in client.get("/catalog").text


def test_small_values_explain_why_nothing_is_saved(shop):
    """If all values are below the threshold, the overview says so instead of only zeros."""
    shop.hook.counters.add(values_seen=3)
    text = shop.client().get("/").text
    assert "3 values were inspected, and none had at least " in text
    shop.work()
    assert "none had at least" not in shop.client().get("/").text


def test_pages_keep_the_time_range(shop):
    """Links to pages with a time range keep the chosen one, and others have none."""
    page = shop.client().get("/tasks?since=3h").text.partition("<main")[0]
    assert re.findall(r'href="/(\w*)\?since=3h"', page) == ["", "tasks", "catalog", "estimate"]
    assert 'href="/values"' in page
    assert re.findall(r'aria-current="page">(\w+)<', page) == ["Tasks"]
    assert "since" not in shop.client().get("/tasks?since=<b>").text.partition("<main")[0]


def test_errors_of_tasks_without_figures(shop):
    """A task of which only the latest errors are known has a page with them."""
    with shop.hook.counters.about("shop.report", "rows"):
        shop.hook.counters.failed(BlobMissing("it is missing"))
    shop.hook.recorder.write()
    sums_of(shop.hook.store).clear()
    page = shop.client().get("/task", params={"name": "shop.report"}).text
    assert "it is missing" in page
    assert "No errors" not in page


@pytest.mark.parametrize("since", ("1h", "3h", "1d", "3d", "30d", "90d", "all", "<b>"))
def test_any_time_range(shop, since):
    """Ranges of minutes, hours, and days include what was just counted."""
    shop.work()
    assert "8 values by reference" in shop.client().get("/", params={"since": since}).text


def test_an_unknown_page(shop):
    """An unknown address gets 404."""
    answer = shop.client().get("/nowhere")
    assert answer.status_code == 404
    assert "Page not found" in answer.text


def test_responses_restrict_scripts(shop):
    """Responses only allow the dashboard's own scripts, and neither frames nor caching of pages."""
    headers = shop.client().get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("name", ("uplot/uplot.js", "uplot/uplot.css", "uplot/LICENSE"))
def test_charts_come_with_the_dashboard(shop, name):
    """The library that draws charts is served with its license, and a browser that has it gets
    304.
    """
    client = shop.client()
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 200
    again = client.get(f"/static/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_page_is_light(shop):
    """A page with all that it loads has less than 60 kB compressed, and refers to no other site."""
    shop.work()
    client = shop.client()
    page = client.get("/").text
    places = set(re.findall(r'(?:src|href)="([^"]*/static/[^"]+)"', page))
    assert len(places) == 5
    loaded = [page, *(client.get(place).text for place in places)]
    assert sum(len(gzip.compress(text.encode())) for text in loaded) < 60_000
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


def test_browsers_together_read_the_store_once(shop):
    """Many browsers on one page cause one read of the store within two seconds."""
    shop.work()
    client = shop.client()
    statistics = client.app.state.state.statistics
    for cache in (statistics._reports, statistics._lines, statistics._errors):
        cache._clock = lambda: 0.0
    client.get("/tasks")
    asked = sums_of(shop.hook.store)._client
    sent = []
    real = asked._sent
    asked._sent = lambda commands: sent.append(commands) or real(commands)
    for _ in range(10):
        client.get("/tasks")
    assert sent == []
