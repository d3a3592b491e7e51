"""Pages of stores and workers, requested without a browser."""

from __future__ import annotations

import html
import json
import os
import re
import threading
from contextlib import ExitStack

import pytest
from celery import Celery
from starlette.testclient import TestClient

from offload import Offload
from offload.dashboard import dashboard, state
from offload.inspect.workers import Worker, Workers, this_process
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock, unique
from offload.text import human_size
from tests.dashboard.conftest import Shop
from tests.integration.features import create
from tests.support.processes import wait_until, worker
from tests.support.servers import redis_client, redis_server

pytestmark = pytest.mark.server

PENDING = ("Checking stores…", "Waiting for workers to reply…")


def client_of(app):
    return TestClient(dashboard(app, hosts=["*"]))


def settled(client, path="/stores", **options):
    """Return a page once its data has been read in the background."""
    pages = []

    def is_settled():
        pages.append(client.get(path, **options).text)
        return not any(text in pages[-1] for text in PENDING)

    wait_until(is_settled, f"{path} has what it shows", 60)
    return pages[-1]


def rows(page, caption):
    """Return the texts of all cells of a table's rows."""
    table = re.search(rf"<caption>{caption} .*?</table>", page, re.DOTALL)
    assert table, page
    found = re.findall(r'<tr data-key="[^"]*">(.*?)</tr>', table[0], re.DOTALL)
    return [
        [
            html.unescape(re.sub(r"<[^>]*>", "", cell)).strip()
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in found
    ]


def make_app(store, broker="memory://", **settings):
    app = Celery("shop", broker=broker, set_as_current=False)
    Offload(app, store=store, cache="off", **settings)
    return app


def test_each_tier_is_a_row(redis, s3):
    """Each tier is a row with its availability, latency, sizes, and, for S3, its sweeps."""
    urls = [f"{redis.url}?prefix={unique().replace('/', '-')}", s3.url(unique("tiers"))]
    page = settled(client_of(make_app(urls, tier_sizes=[5_000_000])))
    first, second = rows(page, "Stores")
    assert first[0] == urls[0]
    assert second[0].startswith("s3://")
    assert (first[2], second[2]) == ("yes", "yes")
    assert (first[4], second[4]) == ("0 B", "5.0 MB")
    assert all(re.fullmatch(r"[\d.,]+ m?s", row[3]) for row in (first, second))
    assert first[1].startswith("Redis ")
    assert "(noeviction)" in first[7]
    assert "Never swept" in page


def test_no_password_is_shown(redis):
    """Passwords of the store and the broker aren't shown."""
    with redis_client(redis) as client:
        client.config_set("requirepass", "hidden-word")
        client.auth("hidden-word")
        try:
            url = f"redis://:hidden-word@{redis.host}:{redis.port}/0"
            page = settled(client_of(make_app(url, broker=url)))
        finally:
            client.config_set("requirepass", "")
    assert rows(page, "Stores")[0][2] == "yes"
    assert "hidden-word" not in page


def test_a_store_becomes_unavailable_and_comes_back(monkeypatch):
    """While the store is unavailable, the page says so; afterwards it shows the store again."""
    monkeypatch.setattr(state, "_STORES", 0.05)
    with redis_server() as server:
        server.stop()
        client = client_of(make_app(server.url))
        page = settled(client)
        assert rows(page, "Stores")[0][2] == "no"
        assert "is unavailable" in page
        server.start()
        wait_until(
            lambda: rows(settled(client), "Stores")[0][2] == "yes",
            "the store is available again",
        )


def test_messages_that_wait_too_long_are_reported():
    """A warning says that queued messages are about to lose their values, and what to do."""
    shop, clock = Shop("memory://waiting"), FakeClock()
    shop.hook._store = MemoryStore(clock=clock)
    shop.count.delay(["row"] * 50_000)
    clock.advance(6 * 86400)
    client = shop.client()
    warning = "1 messages have waited for most of their retention"
    wait_until(lambda: warning in client.get("/stores").text, "the warning is there")


def test_figures_of_each_tier_are_those_of_the_command(redis, tmp_path):
    """Each tier's figures are those of `stats --by store`."""
    prefix = unique("figures").replace("/", "-")
    urls = [f"{redis.url}?prefix={prefix}", f"file://{tmp_path}/store"]
    shop = Shop(urls, tier_sizes=[150_000])
    shop.work()
    shop.count.delay(os.urandom(200_000).hex())
    page = settled(shop.client())
    message = json.loads(shop.command("stats", "--json"))["stores"]
    shown = {row[0]: row[1:] for row in rows(page, "Traffic")}
    assert list(shown) == sorted(message, key=lambda url: -message[url]["bytes_stored"])
    for url, figures in message.items():
        assert figures["blobs_uploaded"] > 0
        assert shown[url][0] == str(figures["blobs_uploaded"])
        assert shown[url][1] == human_size(figures["bytes_stored"])
        assert shown[url][3] == "0"
    shop.hook.store.close()


def test_no_worker_can_be_queried():
    """A note says why no worker can be queried."""
    page = settled(client_of(make_app("memory://")), "/workers")
    assert "where no worker can reach it" in page
    assert rows(page, "Workers") == []


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_workers_and_whether_they_agree(redis, tmp_path):
    """The page shows what the children of a real worker fetched, its cache, and its drift."""
    with redis_server("redis-server") as broker:
        config = {
            "broker": f"redis://{broker.host}:{broker.port}/0",
            "backend": f"redis://{broker.host}:{broker.port}/1",
            "offload": {
                "store": redis.url,
                "threshold": 1000,
                "cache": str(tmp_path / "cache"),
                "secret": "known to both of them",
                "stats_interval": 0.2,
            },
        }
        app = create(config)
        its = {**config, "offload": {**config["offload"], "max_size": 3_000_000}}
        features = "tests.integration.features"
        with worker(tmp_path, its, pool="prefork", concurrency=2, app=features, name="one"):
            app.tasks["same"].delay("x" * 2_000_000).get(timeout=30)
            client = client_of(app)

            def shown():
                return rows(settled(client, "/workers"), "Workers")[0]

            wait_until(
                lambda: shown()[4].endswith("% of 1"), "the child has written its counts", 60
            )
            page = settled(client, "/workers")
            [row] = rows(page, "Workers")
            details = client.get("/worker", params={"name": row[0]}).text
            app.close()
    assert row[0].startswith("one-")
    assert row[1] == "connected"
    assert row[2] == row[2].strip("-")
    assert row[3].startswith("2.0 MB of ")
    assert row[8] == "offload_max_size"
    assert "offload_max_size differs: 2147483648 in this process; 3000000 in one-" in page
    assert "set the same offload_max_size everywhere" in page
    assert '<tr data-key="offload_max_size">' in details
    assert "3000000" in details
    assert '<tr data-key="offload_threshold">' not in details
    assert "known to both" not in page + details


def test_workers_are_queried_once(monkeypatch):
    """Workers are queried after the first request, once for all browsers; a page in between doesn't
    wait.
    """
    asked = []
    monkeypatch.setattr(state, "ask_workers", lambda app: asked.append(1) or Workers(0.0, ()))
    client = client_of(make_app("memory://"))
    client.get("/healthz")
    assert asked == []
    for _ in range(20):
        assert client.get("/workers").status_code == 200
    assert asked == [1]


def test_repeated_queries_leave_nothing_behind(monkeypatch):
    """Repeated queries leave no threads and no connections to the broker."""
    monkeypatch.setattr(state, "_WORKERS", 0.0)
    monkeypatch.setattr(state, "_STORES", 0.0)
    asked = []
    real = state.ask_workers
    monkeypatch.setattr(
        state, "ask_workers", lambda app: asked.append(1) or real(app, timeout=0.01)
    )
    with ExitStack() as stack:
        server = stack.enter_context(redis_server())
        look = stack.enter_context(redis_client(server))
        broker = f"redis://{server.host}:{server.port}/1"
        client = stack.enter_context(client_of(make_app(server.url, broker=broker)))
        wait_until(
            lambda: client.get("/workers") and client.get("/stores") and len(asked) > 5,
            "workers were queried often",
            60,
        )
        wait_until(
            lambda: (
                not any(thread.name == "offload-dashboard" for thread in threading.enumerate())
                and not any(each["db"] == "1" for each in look.client_list())
            ),
            "nothing is asked any more, and nothing is left open",
        )


def test_workers_answers_are_shown_as_text(monkeypatch):
    """Markup in workers' names, settings, and findings is shown as text, in the table and on a
    worker's page.
    """
    bad = "<script>alert(1)</script>\"' onload=x"
    app = make_app("memory://")
    report = this_process(app._offload).reply
    settings = {**report["settings"], "mode": bad, bad: [bad]}
    hostile = Worker(bad, "connected", {**report, "settings": settings, "version": bad, bad: bad})
    asked = Workers(0.0, (hostile, Worker("odd" + bad, "unreadable", reason=bad)))
    monkeypatch.setattr(state, "ask_workers", lambda app: asked)
    client = client_of(app)
    for page in (
        settled(client, "/workers"),
        client.get("/worker", params={"name": bad}).text,
        client.get("/worker", params={"name": "odd" + bad}).text,
    ):
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page
    assert "No worker with this name replied" in client.get("/worker?name=nobody").text


def test_workers_are_sorted_by_the_address(monkeypatch):
    """Workers are sorted by any column, in both directions."""
    names = ("b", "a", "c")
    asked = Workers(0.0, tuple(Worker(name, "silent") for name in names))
    monkeypatch.setattr(state, "ask_workers", lambda app: asked)
    client = client_of(make_app("memory://"))

    def shown(query):
        return [row[0] for row in rows(settled(client, f"/workers?{query}"), "Workers")]

    assert shown("") == ["a", "b", "c"]
    assert shown("sort=name&desc=1") == ["c", "b", "a"]


def test_settings_are_shown_where_they_differ(monkeypatch):
    """A worker's row names the settings that differ; its page has both values, and no others."""
    app = make_app("memory://")
    reply = this_process(app._offload).reply
    other = {**reply, "python": "3.9", "settings": {**reply["settings"], "threshold": 7}}
    workers = (Worker("same", "connected", reply), Worker("other", "connected", other))
    monkeypatch.setattr(state, "ask_workers", lambda app: Workers(0.0, workers))
    client = client_of(app)
    found = {row[0]: row[8] for row in rows(settled(client, "/workers"), "Workers")}
    assert found == {"same": "nothing", "other": "python, offload_threshold"}
    details = client.get("/worker?name=other").text
    shown = rows(details.replace("Compared", "Settings "), "Settings ")
    assert shown[0][:2] == ["python", "3.9"]
    assert shown[1][:2] == ["offload_threshold", "7"]
    assert "None: this worker's settings match" in client.get("/worker?name=same").text
