"""Request and parse the dashboard's pages of blobs."""

from __future__ import annotations

import gc
import html
import re
import tracemalloc

from offload.metrics import recorder
from tests.support.processes import wait_until


def page(client, path="/blobs", status=200, **query):
    """Return a page of blobs once the store has been listed."""
    found = []

    def ready():
        answer = client.get(path, params=query)
        found[:] = [answer]
        return "Scanning the store" not in answer.text

    wait_until(ready, "the store is listed")
    [answer] = found
    assert answer.status_code == status, answer.text
    return answer.text


def keys(text):
    return re.findall(r'<tr data-key="([^"]*)">', text)


def blobs(text):
    return [key for key in keys(text) if key.startswith("b3:")]


def cells(text, row):
    found = re.search(rf'<tr data-key="{re.escape(row)}">(.*?)</tr>', text, re.DOTALL)
    return [
        html.unescape(re.sub(r"<[^>]*>", "", cell)).strip()
        for cell in re.findall(r"<t[hd].*?</t[hd]>", found[1], re.DOTALL)
    ]


def token(text):
    return re.search(r'name="form" value="([^"]+)"', text)[1]


def free(shop, value, **options):
    """Store an unreferenced value; return its digest."""
    digest = shop.hook.put(value, **options).digest
    shop.hook.store.blobs.release([digest], "put", 3600)
    return digest


def assert_no_growth(ask, times, limit):
    """Assert that this process grows by less than *limit* bytes while *ask* runs four times as
    often.

    Two rounds of *times* come first. A leak grows in each of three measurements, so one below the
    limit is enough: threads of other tests may allocate memory meanwhile.
    """
    recorder._write_all()
    ask(times)
    grown = []
    while not grown or (grown[-1] >= limit and len(grown) < 3):
        grown.append(_growth(ask, times))
    assert min(grown) < limit, grown


def _growth(ask, times):
    tracemalloc.start()
    try:
        ask(times)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        ask(4 * times)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
