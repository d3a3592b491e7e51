"""The first page: health, savings, rates, and the default time range."""

from __future__ import annotations

import re
import time

import pytest

from offload.dashboard.caching import Refreshed
from offload.dashboard.health import errors_of, events_of, stores_of, verdict, workers_of
from offload.dashboard.state import Compared
from offload.doctor.servers import Capacity
from offload.doctor.store import StoreState, TierState
from offload.errors import BlobMissing, StoreUnavailable
from offload.inspect import Finding
from offload.inspect.workers import Worker, Workers
from offload.metrics.latest import Noted
from offload.metrics.report import Figures
from offload.metrics.storage import sums_of
from offload.stores.sums import SPANS
from tests.support.processes import wait_until

pytestmark = pytest.mark.server

NOW = 1_700_000_000.0


def tier(*capacity, error="", latency=0.00123456):
    return TierState("redis://cache", 0, error, latency, capacity, True)


def state(*tiers):
    return Refreshed(StoreState(NOW, "redis://cache", tiers, None))


def facts(card):
    return {fact.name: (fact.text, fact.level) for fact in card.facts}


def plain(page):
    return re.sub(r"\s+", " ", re.sub("(<[^>]*>)+", " ", page))


# -- is it healthy?


def test_a_healthy_store():
    """A reachable store shows its latency, its memory against the limit, and no evictions."""
    capacity = Capacity(used=1_200_000, limit=4_000_000, policy="noeviction", evicted=0)
    [card] = stores_of(state(tier(capacity)))
    assert (card.title, card.level, card.summary) == ("Store", "ok", "reachable")
    assert facts(card) == {
        "URL": ("redis://cache", "ok"),
        "Round trip": ("1.2 ms", "ok"),
        "Memory": ("1.2 MB of 4.0 MB (30%)", "ok"),
        "Evictions": ("0 (noeviction)", "ok"),
    }
    assert [fact.share for fact in card.facts] == [None, None, 0.3, None]


@pytest.mark.parametrize(
    ("capacity", "level", "name"),
    (
        (Capacity(used=95, limit=100, policy="noeviction", evicted=0), "warning", "memory"),
        (Capacity(used=1, limit=100, policy="allkeys-lru", evicted=0), "warning", "evictions"),
        (Capacity(used=1, limit=100, policy="allkeys-lru", evicted=7), "error", "evictions"),
        (Capacity(used=1, limit=100, policy="noeviction", evicted=7), "ok", ""),  # of earlier times
        (Capacity(used=1), "ok", ""),
    ),
)
def test_what_is_wrong_with_a_store(capacity, level, name):
    """Full memory and a server that evicts are reported with a remedy; a past eviction isn't."""
    [card] = stores_of(state(tier(capacity)))
    assert card.level == level
    assert card.summary.startswith(name or "reachable")
    assert all(bool(fact.remedy) == (fact.level != "ok") for fact in card.facts)


def test_unavailable_stores():
    """Each tier has a card; an unavailable one says why, and what happens to tasks."""
    cards = stores_of(state(tier(), tier(error="redis://cache is unavailable: refused")))
    assert [card.title for card in cards] == ["Store 1", "Store 2"]
    assert (cards[1].level, cards[1].summary) == ("error", "unavailable")
    assert facts(cards[1])["Reachable"][0] == "redis://cache is unavailable: refused"
    assert stores_of(Refreshed())[0].summary == "checking"
    [failed] = stores_of(Refreshed(error=StoreUnavailable("no")))
    assert failed.level == "error"


def replies(*workers, findings=(), note=""):
    return Refreshed(Compared(Workers(NOW, workers, note), findings, Worker("", "connected")))


def test_workers():
    """Workers without offload, those that don't reply, and configuration drift are named."""
    connected = Worker("a@one", "connected", {"version": "1"})
    card = workers_of(replies(connected, findings=[Finding("ok", "they agree")]))
    assert (card.level, card.summary) == ("ok", "1 online")
    assert facts(card)["Online"] == ("1", "ok")
    card = workers_of(
        replies(
            connected,
            Worker("b@two", "without", reason="no"),
            Worker("c@three", "silent", reason="busy"),
            findings=[Finding("error", "offload_secret differs", "set it to the same on all")],
        )
    )
    assert (card.level, card.summary) == ("error", "3 online, 1 problem")
    shown = facts(card)
    assert shown["Without offload"] == ("b@two", "warning")
    assert shown["Not replying"] == ("c@three", "warning")
    assert shown[""] == ("offload_secret differs", "error")
    assert card.facts[-1].remedy == "set it to the same on all"
    card = workers_of(replies(note="no worker replied within 1 s"))
    assert (card.level, card.summary) == ("info", "none replied")
    assert workers_of(Refreshed()).summary == "checking"
    assert workers_of(Refreshed(error=ValueError("no"))).level == "warning"


def test_the_latest_error_of_each_kind():
    """Each kind has its count, the latest error in the time range, and a remedy."""
    figures = Figures({"errors_missing": 3, "errors_other": 9, "task_retries": 2, "values_seen": 1})
    old = Noted("errors_other", "shop.count", "", NOW - 9000, 1, "ValueError")
    noted = [
        Noted("errors_missing", "shop.report", "rows", NOW - 5, 2, "BlobMissing: new"),
        Noted("errors_missing", "shop.count", "rows", NOW - 9, 1, "BlobMissing: before"),
        old,
    ]
    other, missing = errors_of(figures, noted, NOW - 3600)
    assert (other.kind, other.count, other.latest, other.link) == ("errors_other", 9, None, "")
    assert (missing.label, missing.count, missing.latest) == ("values missing", 3, noted[0])
    assert missing.link == "/task?name=shop.report#errors"
    assert missing.remedy
    assert errors_of(figures, noted)[0].latest == old
    assert [row.label for row in events_of(figures)] == ["tasks retried"]


def test_the_verdict():
    """The answer is yes only if nothing has to be looked at."""
    healthy = stores_of(state(tier()))
    assert verdict(healthy, [], "in the last hour") == ("ok", "Yes.")
    unasked = verdict([*healthy, workers_of(Refreshed())], [], "in the last hour")
    assert unasked == ("info", "No problems found; workers: checking.")
    full = stores_of(state(tier(Capacity(used=95, limit=100, policy="noeviction"))))
    level, answer = verdict(full, [], "in the last hour")
    assert (level, answer) == ("warning", "Look at store: memory 95 B of 100 B (95%).")
    errors = errors_of(Figures({"errors_missing": 1}))
    assert verdict(healthy, errors, "in the last hour") == (
        "error",
        "No: 1 error in the last hour.",
    )


def test_the_order_of_the_first_page(shop):
    """The page answers in order: is it healthy, what does it save, what happens now, trends."""
    shop.work()
    page = shop.client().get("/").text
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert heads == ["Is it healthy?", "What does it save?", "What's happening now?", "Trends"]


def test_an_error_is_shown_with_its_task(shop):
    """The latest error of a kind is shown on the first page and on its task's page, as text."""
    with shop.hook.counters.about("shop.report", "rows"):
        shop.hook.counters.failed(BlobMissing("<b>b3:12</b> is missing: raise offload_retention"))
    client = shop.client()
    for path in ("/", "/task?name=shop.report"):
        page = client.get(path).text
        assert "&lt;b&gt;b3:12&lt;/b&gt; is missing: raise offload_retention" in page, path
        assert 'id="errors"' in page
    link = '/task?name=shop.report#errors">shop.report</a> · rows · '
    assert link in client.get("/").text


def test_an_error_outside_tasks_is_shown_as_such(shop):
    """The latest error that no task had is linked, too, to the page of what is outside tasks."""
    shop.hook.counters.failed(BlobMissing("b3:12 is missing"))
    client = shop.client()
    assert '/task?name=#errors">(outside tasks)</a> · ' in client.get("/").text
    page = client.get("/task?name=").text
    assert "<h1>(outside tasks)" in page
    assert "b3:12 is missing" in page


def test_a_reset_forgets_errors(shop):
    """`stats --reset` forgets the latest errors as well."""
    shop.hook.counters.failed(BlobMissing("it is missing"))
    client = shop.client()
    assert "it is missing" in client.get("/").text
    shop.command("stats", "--reset")
    fresh = shop.client()
    assert "it is missing" not in fresh.get("/").text


# -- what does it save?


def test_savings_have_denominators(shop):
    """Bytes have a share, and the hit rate and deduplication say of how many values."""
    shop.work()
    shop.hook.counters.add(cache_hits=3, cache_misses=1, cache_bytes=5_000_000)
    shown = plain(shop.client().get("/").text)
    assert "8 values by reference, 99.9% less to send" in shown
    assert "4 of 8 values were already in the store" in shown
    assert "Cache hits 75% 3 of 4 large values came from the node cache (5.0 MB)" in shown


# -- what happens now, and when?


def counted(shop, span, ago, **counts):
    """Write counts that happened some seconds ago."""
    store = sums_of(shop.hook.store)
    at = (int(time.time()) - ago) // SPANS[span] * SPANS[span]
    words = [part for pair in counts.items() for part in pair]
    store._client.run([("HSET", f"{store._key}:{span}:{at}", *words)])


def test_rates_are_means_of_the_last_minutes(shop):
    """Rates are means over the five complete minutes before now; older counts don't matter."""
    client = shop.client()
    counted(shop, "minute", 90, values_offloaded=20, bytes_offloaded=3_000_000, cache_hits=1)
    counted(shop, "minute", 1200, values_offloaded=5000)
    rates = client.app.state.state.statistics.rates()
    assert rates.per_minute("values_offloaded", "cache_hits") == 4.2
    assert rates.per_second("bytes_offloaded") == 10_000
    assert rates.latest is not None
    assert "4.0/min" in client.get("/").text


@pytest.mark.parametrize(
    ("span", "ago", "label"),
    (
        ("minute", 600, "1 hour"),
        ("minute", 6000, "3 hours"),
        ("hour", 40_000, "1 day"),
        ("hour", 200_000, "3 days"),
        ("day", 20 * 86400, "30 days"),
        ("day", 80 * 86400, "90 days"),
        (None, 0, "1 hour"),
    ),
)
def test_the_default_range_is_the_shortest_with_data(shop, span, ago, label):
    """Without a range in the address, the shortest that has data is shown; if none has, an hour."""
    if span is not None:
        counted(shop, span, ago, values_offloaded=1)
    page = shop.client().get("/").text
    assert re.findall(r'aria-current="true">([^<]*)</a>', page) == [label]


def test_nothing_was_counted(shop):
    """Without counts, the page says what to do."""
    page = plain(shop.client().get("/").text)
    assert "Nothing has been counted yet. Call a task with an argument of at least" in page
    assert "nothing was counted in the last 3 hours" in page


def test_checks_appear_once_they_are_done(shop):
    """The first page doesn't wait for slow checks; it has them once they are done."""
    client = shop.client()
    wait_until(lambda: "reachable" in client.get("/").text, "the store was checked")
    wait_until(lambda: "none replied" in client.get("/").text, "workers were asked")
    assert "No errors in the last hour." in client.get("/").text


def test_a_detail_page_keeps_its_tab(shop):
    """Pages about one thing mark the tab they belong to, and only the page itself is current."""
    client = shop.client()
    for path, tab, kind in (
        ("/tasks", "Tasks", "page"),
        ("/task?name=x", "Tasks", "true"),
        ("/lookup", "Values", "true"),
        ("/class?name=x", "Classes", "true"),
    ):
        page = client.get(path).text
        found = re.findall(r'aria-current="(\w+)">([^<]*)</a></li>\n', page.partition("</nav>")[0])
        assert found == [(kind, tab)], path
