"""The page of values, and the page of one, requested without a browser."""

from __future__ import annotations

import html
import os
import re

import numpy as np
import pytest

from offload.errors import StoreUnavailable
from tests.dashboard.asking import blobs, cells, free, page
from tests.dashboard.conftest import Shop
from tests.support.processes import wait_until

pytestmark = pytest.mark.server


@pytest.fixture
def filled(shop):
    shop.big = shop.hook.put("".join(chr(97 + at) * (4 << 20) for at in range(3)))
    shop.array = shop.hook.put(np.arange(100_000))
    shop.hook.pin(shop.array, "model")
    shop.loose = free(shop, "nobody's" * 1000)
    for _ in range(3):
        shop.report.delay(np.arange(100_000))
    return shop


def test_values_instead_of_blobs(filled):
    """Each value is a row: what it is, its size, who uses it, and until when; chunks are none."""
    text = page(filled.client(), "/values")
    assert blobs(text) == [filled.big.digest, filled.array.digest, filled.loose]
    assert cells(text, filled.array.digest) == [
        "ndarray",
        "800.1 kB",
        "3 tasks, 1 publisher, pin model",
        "kept until unpinned",
        filled.array.digest[:15],
    ]
    assert cells(text, filled.big.digest)[:3] == ["str", "12.6 MB", "1 publisher"]
    assert cells(text, filled.loose)[2:4] == ["nothing", "in 60.0 min"]


def test_values_are_chosen_by_the_address(filled):
    """The address chooses values by type, size, use, and holder, and sorts them."""
    client = filled.client()
    page(client, "/values")

    def found(**query):
        return blobs(client.get("/values", params=query).text)

    assert found(type="ndarray") == [filled.array.digest]
    assert found(held="no") == [filled.loose]
    assert found(by="model") == [filled.array.digest]
    assert found(larger="1MB") == [filled.big.digest]
    assert found(sort="size", desc="0")[0] == filled.loose
    assert found(sort="expiry")[0] == filled.loose
    assert found(sort="<script>", page="99")[0] == filled.big.digest
    assert "no-size is not a size" in client.get("/values?larger=no-size").text
    assert "nobody-else holds no values" in client.get("/values?by=nobody-else").text


def test_a_values_page_says_what_it_is(filled):
    """A value's page begins with what it is, who uses it, and until when; chunks are closed."""
    client = filled.client()
    text = client.get(f"/blobs/{filled.array.digest}").text
    assert (
        "<h1>ndarray int64 (100000,), 800.2 kB</h1>" in html.unescape(text)
        or "ndarray" in (re.search("<h1>(.*?)</h1>", text)[1])
    )
    lead = html.unescape(re.search('<p class="lead">(.*?)</p>', text)[1])
    assert lead.startswith("A value used by ")
    assert "3 tasks" in lead
    assert "pin model" in lead
    assert lead.endswith("It is kept until it is unpinned.")
    lead = re.search('<p class="lead">(.*?)</p>', client.get(f"/blobs/{filled.loose}").text)[1]
    assert lead == "A value that nothing uses. It expires in 60.0 min, unless it is held longer."
    text = client.get(f"/blobs/{filled.big.digest}").text
    assert '<details id="chunks">\n<summary>3 chunks</summary>' in text
    chunk = re.search(r'<details id="chunks">.*?/blobs/(b3:[0-9a-f]+)', text, re.DOTALL)[1]
    assert "<h1>Chunk, 4.2 MB</h1>" in client.get(f"/blobs/{chunk}").text


def test_many_holders_are_counted(shop):
    """A value with more than a hundred holders shows their number."""
    ref = shop.hook.put(os.urandom(2000).hex())
    for number in range(120):
        shop.hook.store.blobs.hold([ref.digest], 3600, f"task:{number}")
    assert cells(page(shop.client(), "/values"), ref.digest)[2] == "121 holders"


def test_a_hostile_holder_is_shown_as_text(shop):
    """Markup in a holder's name is shown as text."""
    ref = shop.hook.put(os.urandom(2000).hex())
    shop.hook.store.blobs.hold([ref.digest], 3600, "pin:<script>alert(1)</script>+1")
    client = shop.client()
    for text in (page(client, "/values"), client.get(f"/blobs/{ref.digest}").text):
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text


def test_a_store_without_holds(tmp_path):
    """A store that tracks no holds has no column of users, and filters by use are ignored."""
    shop = Shop(f"file://{tmp_path}/store")
    ref = shop.hook.put("x" * 5000)
    text = page(shop.client(), "/values", by="model")
    assert cells(text, ref.digest)[:2] == ["str", "5.0 kB"]
    assert "Used by</a>" not in text
    assert "track holds" in text
    shop.hook.store.close()


def test_an_unavailable_store():
    """While the store is unavailable, the page says so."""
    client = Shop("redis://localhost:1/0").client()
    answers = []

    def unavailable():
        answers[:] = [client.get("/values")]
        return answers[0].status_code == 503

    wait_until(unavailable, "it says so", 60)
    assert "is unavailable" in answers[0].text


def test_users_that_cannot_be_read(filled, monkeypatch):
    """If holders can't be read, the values are shown with a note."""
    client = filled.client()
    page(client, "/values")

    def fail(*_):
        raise StoreUnavailable("it is unavailable")

    monkeypatch.setattr("offload.dashboard.stored.holders_of", fail)
    client.app.state.state.stored._users._of_process.get().cached.clear()
    assert "Holders could not be read: it is unavailable" in client.get("/values").text
