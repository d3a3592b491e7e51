"""Pages of blobs, requested without a browser."""

from __future__ import annotations

import json
import os
import re

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from offload.dashboard import dashboard
from offload.errors import StoreUnavailable
from offload.text import human_size
from tests.dashboard.asking import blobs, cells, free, keys, page, token
from tests.dashboard.conftest import Shop
from tests.support.payload import Payload
from tests.support.processes import wait_until

pytestmark = pytest.mark.server

HOSTILE = "<script>alert(1)</script><img src=x onerror='x'>\"' "


@pytest.fixture
def filled(shop):
    shop.refs = [shop.hook.put(os.urandom(n).hex()) for n in (1000, 3000, 9000, 27_000)]
    shop.hook.pin(shop.refs[1], "model")
    shop.loose = free(shop, "nobody's" * 1000)
    shop.big = shop.hook.put("".join(chr(97 + at) * (4 << 20) for at in range(3)))
    return shop


# -- all blobs


def test_the_numbers_are_those_of_the_command(filled):
    """Each blob is listed once, with the size, holders, and kind of `ls --json`."""
    text = page(filled.client())
    listed = {each["digest"]: each for each in json.loads(filled.command("ls", "--json"))}
    assert sorted(blobs(text)) == sorted(listed)
    for digest, each in listed.items():
        name, kind, size, _, holders = cells(text, digest)
        assert digest.startswith(name)
        assert (size, holders) == (human_size(each["bytes"]), str(each["holders"]))
        assert kind.startswith(each["type"] or each["kind"])
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))
    assert f"Stored {human_size(sum(each['bytes'] for each in listed.values()))}" in shown
    held = sum(1 for each in listed.values() if each["holders"])
    assert f"Held {held} " in shown
    assert f"Unreferenced {len(listed) - held} " in shown


def test_orders_are_those_of_the_command(filled):
    """Blobs are sorted by size, expiry, and holders, in both directions."""
    client = filled.client()
    for sort, desc in (("size", "1"), ("expiry", "0"), ("holders", "1")):
        rows = json.loads(filled.command("ls", "--json", "--sort", sort))
        key = {"size": "bytes", "expiry": "ttl", "holders": "holders"}[sort]
        by = {each["digest"]: each[key] for each in rows}
        found = [by[digest] for digest in blobs(page(client, sort=sort, desc=desc))]
        assert found == sorted(found, reverse=desc == "1")
        other = [by[d] for d in blobs(page(client, sort=sort, desc="10"[int(desc)]))]
        assert other == found[::-1]
    assert 'aria-sort="ascending"' in page(client, sort="digest", desc="0")
    assert blobs(page(client, sort="<b>")) == blobs(page(client))


def test_the_address_filters_blobs(filled):
    """Blobs are filtered by digest prefix, size, holder, and whether they are held."""
    client = filled.client()
    first = filled.refs[0].digest
    for text in (first, first[:12], first[3:12].upper(), f"{first[:12]}…"):
        assert blobs(page(client, q=text)) == [first]
    assert blobs(page(client, held="no")) == [filled.loose]
    assert filled.loose not in blobs(page(client, held="yes"))
    assert blobs(page(client, by="model")) == [filled.refs[1].digest]
    assert blobs(page(client, by="model", larger="1MB")) == []
    assert "nobody holds no blobs." in page(client, by="nobody")
    large = {
        each["digest"]
        for each in json.loads(filled.command("ls", "--json", "--larger-than", "10kB"))
    }
    assert set(blobs(page(client, larger="10kB"))) == large
    assert "is not a size" in page(client, larger="big")
    assert "No digest starts with report-7" in page(client, q="report-7")


def test_a_tasks_values_are_found_by_its_id(filled):
    """A task's values are found by its id while its message exists."""
    result = filled.report.delay(["row"] * 50_000)
    text = page(filled.client(), by=result.id)
    [digest] = blobs(text)
    assert any(
        name.startswith(f"task:{result.id}") for name in filled.hook.store.blobs.holders(digest)
    )


def test_pages_of_blobs(shop):
    """A page has fifty blobs; a page number that is too high shows the last page."""
    digests = {f"b3:{at:064x}": [b"\x00" + bytes(at)] for at in range(120)}
    shop.hook.store.blobs.put(digests, 3600)
    client = shop.client()
    found = [blobs(page(client, page=number)) for number in (1, 2, 3, 99)]
    assert [len(each) for each in found] == [50, 50, 20, 20]
    assert {digest for each in found for digest in each} == set(digests)
    assert 'rel="next"' in page(client, page=2)
    assert blobs(page(client, page="<3>")) == found[0]


def test_shared_chunks_are_counted_on_request(filled):
    """Values that share a chunk are counted on request only, because it reads all blobs."""
    filled.hook.put("".join(chr(97 + at) * (4 << 20) for at in range(2)))
    client = filled.client()
    assert "In values" not in page(client)
    wait_until(lambda: "In values" in page(client, shared=1), "shared chunks are counted")
    text = page(client, shared=1)
    shared = {
        each["digest"]: each["shared"]
        for each in json.loads(filled.command("ls", "--json", "--shared"))
    }
    counted = {digest: cells(text, digest)[-1] for digest in blobs(text)}
    assert {d: int(n) for d, n in counted.items() if n.isdigit()} == {
        d: n for d, n in shared.items() if n is not None
    }


def test_an_empty_store(shop):
    """An empty store is no error."""
    text = page(shop.client())
    assert "No blobs yet" in text
    assert blobs(text) == []


def test_without_hold_tracking_no_blob_is_called_unreferenced(tmp_path):
    """For stores without hold tracking, such as files, there is no column or filter for holders."""
    shop = Shop(f"file://{tmp_path}/store")
    ref = shop.hook.put("v" * 5000)
    client = shop.client()
    text = page(client)
    assert blobs(text) == [ref.digest]
    assert "Holders" not in text
    assert "t track holds" in page(client, held="no")
    assert "t track holds" in page(client, by="model")
    assert "t track holds" in client.get(f"/blobs/{ref.digest}").text


def test_a_store_becomes_unavailable_and_comes_back(filled, monkeypatch):
    """While the store is unavailable, old data is shown with the error; afterwards it is current
    again.
    """
    client = filled.client()
    before = blobs(page(client))
    real = filled.hook.store.blobs.scan

    def away():
        raise StoreUnavailable("redis://shop is unavailable: <refused>")

    monkeypatch.setattr(filled.hook.store.blobs, "scan", away)
    kept = client.app.state.state.stored._blobs._of_process.get()
    kept._every = kept._share = 0
    kept.invalidate()
    wait_until(lambda: "redis://shop" in page(client), "the outage is shown")
    text = page(client)
    assert blobs(text) == before
    assert "no longer stored" not in text
    assert re.search(r"This is \d+ s old: .*&lt;refused&gt;", text)
    monkeypatch.setattr(filled.hook.store.blobs, "scan", real)
    wait_until(lambda: "redis://shop" not in page(client), "the store is available again")


def test_a_store_that_was_never_there():
    """Each page says that the store is unavailable, and reloads itself."""
    client = Shop("redis://localhost:1/0", watch=False).client()
    digest = "b3:" + "0" * 64
    for path in ("/blobs", f"/blobs/{digest}", "/lookup?what=01234567"):
        answers = []

        def unavailable(path=path, answers=answers):
            answers[:] = [client.get(path)]
            return answers[0].status_code == 503

        wait_until(unavailable, f"{path} says so")
        assert "redis://localhost:1/0 is unavailable" in answers[0].text


# -- one blob


def test_a_blobs_page_matches_inspect(filled):
    """A blob's page shows its kind, sizes, holders, chunks, and a preview."""
    client = filled.client()
    told = json.loads(filled.command("inspect", filled.big.digest, "--json"))
    text = client.get(f"/blobs/{filled.big.digest}").text
    assert [cells(text, str(at))[0] for at in (1, 2, 3)] == [c["digest"] for c in told["chunks"]]
    assert f"{human_size(told['value_bytes'])} ({told['value_bytes']:,} bytes)" in text
    assert re.search(r"<pre[^>]*>a{400}…</pre>", text)
    assert keys(text)[: len(told["holders"])] == list(told["holders"])
    pinned = client.get(f"/blobs/{filled.refs[1].digest}").text
    assert any(key.startswith("pin:model+") for key in keys(pinned))
    chunk = client.get(f"/blobs/{told['chunks'][0]['digest']}").text
    assert "Preview" not in chunk
    assert "chunk" in chunk


def test_a_missing_blob(filled):
    """Unknown digests and texts that are no digest have an error page."""
    client = filled.client()
    answer = client.get("/blobs/b3:" + "0" * 64)
    assert (answer.status_code, "The store has no b3:000" in answer.text) == (404, True)
    assert client.get("/blobs/<script>").status_code == 404
    assert client.get("/blobs/..%2f..%2fetc").status_code == 404


def test_an_altered_blob(filled, redis):
    """An altered blob's content isn't shown, but its page is, and it can be removed."""
    import redis as driver

    digest = filled.refs[0].digest
    prefix = filled.url.partition("prefix=")[2]
    with driver.Redis.from_url(redis.url) as client:
        client.set(f"{prefix}:blob:{{{digest}}}", b"\x00<b>altered</b>", ex=3600)
    text = filled.client(allow_delete=True).get(f"/blobs/{digest}").text
    assert "was altered" in text
    assert "<b>" not in text
    assert "Remove this blob" in text


def test_a_missing_chunk(filled):
    """The manifest is shown, and which chunk is missing."""
    told = json.loads(filled.command("inspect", filled.big.digest, "--json"))
    gone = told["chunks"][0]["digest"]
    filled.hook.store.blobs.delete([gone])
    text = filled.client().get(f"/blobs/{filled.big.digest}").text
    assert f"has no {gone}" in text
    assert len(re.findall(r'<tr data-key="\d">', text)) == 3


def test_a_pickle_is_never_loaded(shop, tmp_path):
    """Neither the list nor a blob's page unpickles a value."""
    ref = shop.hook.put([Payload(tmp_path / "mark")] * 100)
    assert ref.serializer == "pickle"
    client = shop.client()
    assert "pickle" in cells(page(client), ref.digest)[1]
    text = client.get(f"/blobs/{ref.digest}").text
    assert "Not shown: it is a pickle" in text
    assert "pickle" in look_up(client, ref.wire).text
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("value", (HOSTILE * 100, {HOSTILE: [HOSTILE] * 100}, [HOSTILE] * 100))
def test_previews_are_shown_as_text(shop, value):
    """Markup in a preview is shown as text."""
    ref = shop.hook.put(value)
    client = shop.client()
    for text in (client.get(f"/blobs/{ref.digest}").text, look_up(client, ref.wire).text):
        assert "<script>alert" not in text
        assert "<img" not in text
        assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in page(client)


def test_names_from_the_store_are_shown_as_text(shop):
    """Names of columns, serializers, and holders are shown as text."""
    pd = pytest.importorskip("pandas")
    shop.app.conf.accept_content = ["json"]
    ref = shop.hook.put(pd.DataFrame({HOSTILE: range(1000)}))
    shop.hook.store.blobs.hold([ref.digest], 3600, f"task:{HOSTILE}")
    root = b'OFFLOAD1%s{"b":[1],"s":"<script>alert(2)"}'
    head = root[9:].replace(b"s{", b"{")
    fake = b"\x00OFFLOAD1" + len(head).to_bytes(8, "little") + head + b"x"
    shop.hook.store.blobs.put({"b3:" + "1" * 64: [fake]}, 3600)
    client = shop.client()
    texts = [page(client), client.get(f"/blobs/{ref.digest}").text]
    texts.append(page(client, by=HOSTILE.strip(), q=HOSTILE, larger=HOSTILE[:20]))
    texts.append(look_up(client, HOSTILE).text)
    for text in texts:
        assert "<script>alert" not in text
        assert "<img" not in text
    assert "&lt;script&gt;alert(1)" in texts[1]


def test_many_holders_are_counted(shop):
    """A blob with thousands of holders is shown with their number instead of their names."""
    ref = shop.hook.put("v" * 5000)
    for number in range(1001):
        shop.hook.store.blobs.hold([ref.digest], 3600, f"task:{number}")
    assert "1,002 holders, too many" in shop.client().get(f"/blobs/{ref.digest}").text


def test_a_blobs_content_is_read_once(filled):
    """While a blob's page is open, only its holders and remaining life are read again."""
    client = filled.client()
    read = []
    real = filled.hook.store.blobs.get
    object.__setattr__(
        filled.hook.store.blobs, "get", lambda *args: read.append(args) or real(*args)
    )
    for _ in range(10):
        client.get(f"/blobs/{filled.big.digest}")
    assert len(read) == 2  # the root, and its first chunk


def test_kinds_of_blobs_are_read_once(filled):
    """For half a minute, all browsers on the same page share the kinds of its blobs, each of which
    takes a request to a bucket.
    """
    clients = [filled.client()] * 3
    page(clients[0])
    looks = []
    real = filled.hook.store.blobs.peek
    object.__setattr__(
        filled.hook.store.blobs, "peek", lambda *args: looks.append(args) or real(*args)
    )
    for client in clients * 3:
        assert "str (raw" in page(client)
    assert looks == []
    page(clients[0], sort="digest")
    assert looks != []


# -- search


def look_up(client, what):
    """Return the page that the search form leads to."""
    return client.post("/lookup", data={"form": token(client.get("/lookup").text), "what": what})


def test_a_digest_is_found(filled):
    """A digest prefix leads to the blob's page."""
    client = filled.client()
    digest = filled.refs[0].digest
    for text in (digest, digest[3:], digest[:12], f" {digest[:15]}… "):
        assert look_up(client, text).url.path == f"/blobs/{digest}"
        answer = client.get("/lookup", params={"what": text}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/blobs/{digest}")
    assert client.get("/lookup").status_code == 200


def test_a_reference_is_found(filled):
    """A reference is described and leads to its blob; a changed one is refused."""
    client = filled.client()
    ref = filled.refs[0]
    text = look_up(client, ref.wire).text
    assert "Reference" in text
    assert f'href="/blobs/{ref.digest}"' in text
    forged = look_up(client, ref.wire.replace("n=", "n=1"))
    assert forged.status_code == 404
    assert "no valid signature" in forged.text
    gone = filled.hook.put("gone" * 1000)
    filled.hook.store.blobs.delete([gone.digest])
    assert "has no" in look_up(client, gone.wire).text


def test_references_are_not_in_addresses(filled):
    """References never appear in addresses, which browsers and proxies keep: their text grants
    access.
    """
    client = filled.client()
    ref = filled.refs[0]
    answer = look_up(client, ref.wire)
    assert ref.wire not in answer.text
    for step in (*answer.history, answer):
        assert "offload:" not in str(step.url)
        assert "offload%3A" not in str(step.url)
    assert "Use the form" in client.get("/lookup", params={"what": ref.wire}).text
    assert "no longer remembered" in client.get("/lookup", params={"ref": "0" * 32}).text
    assert client.post("/lookup", data={"what": ref.wire}).status_code == 403
    stored = client.app.state.state.stored
    for number in range(200):
        stored.remember(f"offload:{number}")
    assert len(stored._refs) == 100
    assert "no longer remembered" in client.get(answer.url).text


def test_a_task_is_found(filled):
    """A task's page has its state, its result's reference, and a link to what it holds."""

    @filled.app.task(name="shop.give")
    def give():
        return "result" * 1000

    client = filled.client()
    result = give.delay()
    assert "is queued or running" in client.get("/lookup", params={"what": result.id}).text
    filled.wire.work()
    text = client.get("/lookup", params={"what": result.id}).text
    told = json.loads(filled.command("inspect", result.id, "--json"))
    assert "SUCCESS" in text
    assert f'href="/blobs/{told["result"]["digest"]}"' in text
    assert f'href="/blobs?by={result.id}"' in text
    assert "resultresult" in text
    assert blobs(page(client, by=result.id)) == [told["result"]["digest"]]
    give.apply_async(task_id="0123456789abcdef")
    filled.wire.work()
    assert "SUCCESS" in client.get("/lookup", params={"what": "0123456789abcdef"}).text


# -- deletion


def test_nothing_is_removed_unless_allowed(filled):
    """Without permission there is no button, and a request is refused."""
    client = filled.client()
    path = f"/blobs/{filled.loose}"
    assert "Remove" not in client.get(path).text
    assert client.get(f"{path}/remove").status_code == 403
    assert client.post(f"{path}/remove", data={"form": "x"}).status_code == 403
    assert client.get(path).status_code == 200


def test_an_unreferenced_blob_is_deleted(filled):
    """An unreferenced blob is deleted after a confirmation page and leaves every list."""
    client = filled.client(allow_delete=True)
    path = f"/blobs/{filled.loose}"
    assert filled.loose in blobs(page(client))
    assert f'href="{path}/remove"' in client.get(path).text
    asks = client.get(f"{path}/remove").text
    assert "No holders" in asks
    assert client.get(path).status_code == 200
    done = client.post(f"{path}/remove", data={"form": token(asks)})
    assert f'Removed <span class="mono">{filled.loose}</span>' in done.text
    assert client.get(path).status_code == 404
    wait_until(lambda: filled.loose not in blobs(page(client)), "the list is refreshed")
    assert client.get(f"{path}/remove").status_code == 404
    message = client.get(f"/blobs?removed={filled.refs[0].digest}").text
    assert "Removed" not in message


def test_a_held_blob_stays_unless_forced(filled):
    """The page lists the holders; without its box ticked, a held blob stays."""
    client = filled.client(allow_delete=True)
    path = f"/blobs/{filled.refs[1].digest}"
    asks = client.get(f"{path}/remove").text
    assert any(key.startswith("pin:model+") for key in keys(asks))
    stays = client.post(f"{path}/remove", data={"form": token(asks)})
    assert stays.status_code == 409
    assert "Not removed" in stays.text
    assert filled.hook.get(filled.refs[1])
    gone = client.post(f"{path}/remove", data={"form": token(stays.text), "force": "yes"})
    assert "Removed" in gone.text
    assert client.get(path).status_code == 404


def test_a_hold_that_is_taken_meanwhile_keeps_it(filled):
    """A hold that is taken after the confirmation page keeps the blob."""
    client = filled.client(allow_delete=True)
    path = f"/blobs/{filled.loose}/remove"
    asks = client.get(path).text
    filled.hook.store.blobs.hold([filled.loose], 3600, "task:late")
    stays = client.post(path, data={"form": token(asks)})
    assert (stays.status_code, "task:late" in stays.text) == (409, True)


def test_it_may_be_mounted_anywhere(filled):
    """Links and redirects stay below the path where the app is mounted."""
    mounted = Starlette(
        routes=[Mount("/ops/offload", dashboard(filled.app, hosts=["*"], allow_delete=True))]
    )
    client = TestClient(mounted)
    text = page(client, "/ops/offload/blobs")
    paths = set(re.findall(r'(?:href|action)="(/[^"]*)"', text))
    assert all(path.startswith("/ops/offload/") for path in paths)
    assert f"/ops/offload/blobs/{filled.loose}" in paths
    looked_up = client.get("/ops/offload/lookup", params={"what": filled.loose[:14]})
    assert looked_up.url.path == f"/ops/offload/blobs/{filled.loose}"
    asks = client.get(f"/ops/offload/blobs/{filled.loose}/remove").text
    done = client.post(f"/ops/offload/blobs/{filled.loose}/remove", data={"form": token(asks)})
    assert done.url.path == "/ops/offload/blobs"
    assert "Removed" in done.text


@pytest.mark.parametrize(
    ("fields", "headers"),
    (
        ({}, {}),
        ({"form": "0" * 64}, {}),
        (None, {"origin": "https://evil.example"}),
        (None, {"sec-fetch-site": "cross-site"}),
    ),
)
def test_forms_from_elsewhere_are_refused(filled, fields, headers):
    """Without this browser's token, or from another page, nothing is deleted."""
    client = filled.client(allow_delete=True)
    path = f"/blobs/{filled.loose}/remove"
    given = {"form": token(client.get(path).text)} if fields is None else fields
    assert client.post(path, data=given, headers=headers).status_code == 403
    assert client.get(path).status_code == 200
