"""Pages of blobs report faults and recover by themselves."""

from __future__ import annotations

import os
import threading

import pytest

from tests.dashboard.asking import assert_no_growth, blobs, cells, free, page, token
from tests.dashboard.conftest import Shop
from tests.support.processes import wait_until
from tests.support.servers import redis_server

pytestmark = pytest.mark.server


def hurry(client):
    """List the store at each request for a page of blobs."""
    stored = client.app.state.state.stored
    making = stored._blobs._of_process.get()
    making._every = making._share = 0
    making.invalidate()
    for kept in (stored._contents, stored._described, stored._kinds):
        kept._seconds = 0
    return stored


def test_a_store_becomes_unavailable_and_comes_back():
    """The list stays, marked as old, and a blob's page has an error; later both are current."""
    with redis_server() as server:
        shop = Shop(f"{server.url}?prefix=away", retry={"max_retries": 0})
        refs = [shop.hook.put(os.urandom(3000).hex()) for _ in range(3)]
        client = shop.client()
        before = blobs(page(client))
        assert set(before) == {ref.digest for ref in refs}
        server.stop()
        hurry(client)
        wait_until(
            lambda: str(server.port) in page(client).partition("<main")[2], "the error is shown"
        )
        text = page(client)
        assert blobs(text) == before
        assert "s old: " in text
        assert client.get(f"/blobs/{before[0]}").status_code == 503
        assert "Holders could not be read" in page(client, by="somebody")
        server.start()
        wait_until(lambda: " old: " not in page(client), "the store is available again")
        wait_until(lambda: blobs(page(client)) == [], "the restarted server is empty")
        assert client.get(f"/blobs/{before[0]}").status_code == 404


def test_many_requests_take_no_memory(shop):
    """After sixty requests, twice as many leave no object or thread behind, although the store is
    listed again and changes.
    """
    refs = [shop.hook.put(os.urandom(3000).hex()) for _ in range(60)]
    shop.hook.pin(refs[0], "model")
    client = shop.client()
    stored = hurry(client)
    paths = ("/blobs", "/blobs?sort=expiry&page=2", "/blobs?by=model", f"/blobs/{refs[0].digest}")
    threads = threading.active_count()

    def ask(times):
        for number in range(times):
            client.get(paths[number % len(paths)])
            name = stored.remember(refs[number % 50].wire)
            client.get("/lookup", params={"ref": name})
            if number % 10 == 0:
                shop.hook.store.blobs.put({f"b3:{number:064x}": [b"\x00new"]}, 2)

    assert_no_growth(ask, 30, 200_000)
    wait_until(lambda: threading.active_count() <= threads + 1, "no thread is left")


def test_two_dashboards_delete_the_same_blob(shop):
    """The second dashboard finds the blob already deleted, which is no error."""
    digest = free(shop, "nobody's" * 1000)
    first, second = (shop.client(allow_delete=True) for _ in range(2))
    path = f"/blobs/{digest}/remove"
    tokens = [token(client.get(path).text) for client in (first, second)]
    for client, form in zip((first, second), tokens, strict=True):
        assert "Removed" in client.post(path, data={"form": form}).text
    hurry(second)
    wait_until(lambda: digest not in blobs(page(second)), "the other dashboard has noticed")


def test_lone_surrogates_break_no_page(shop, monkeypatch):
    """Lone surrogates, which others may write to the result backend, break no page."""
    shop.app.backend.store_result("half", "\ud800", "SUCCESS")
    answer = shop.client().get("/lookup", params={"what": "half"})
    assert answer.status_code == 200
    task = {"status": "FAILURE", "result": None, "name": "shop.\ud800report", "task_id": "other"}
    # Each thread has a backend of its own.
    monkeypatch.setattr(type(shop.app.backend), "get_task_meta", lambda *_: task)
    answer = shop.client().get("/lookup", params={"what": "other"})
    assert answer.status_code == 200
    assert "shop.?report" in answer.text


def test_an_object_store_has_ages(s3):
    """For an object store, pages show ages and no holders."""
    shop = Shop(s3.url(f"dashboard-{os.urandom(4).hex()}"))
    ref = shop.hook.put("v" * 5000)
    client = shop.client()
    _, kind, _, _, age = cells(page(client), ref.digest)
    assert (kind, age.partition(" ")[2]) == ("str (raw, 5.0 kB)", "s")
    assert "Age" in client.get(f"/blobs/{ref.digest}").text
