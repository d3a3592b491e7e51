"""Nobody who reads what is stored finds 32 bytes that were in a value."""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import boto3
import pytest
from celery import chain

from offload import Catalog, ConfigurationError, KeyUnavailable
from offload.testing.store import unique
from tests.support.proxy import Proxy
from tests.support.servers import redis_client, redis_server
from tests.support.wire import make_wire

pytestmark = pytest.mark.server

KEY, FORMER = (f"aes256:{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))
CANARY = "canary-7f3a91c2d4e5b6a8f0c1d2e3b"
LARGE = CANARY * 200
SIZE = 300_000  # of a value in several blobs, which are compressed


def forms():
    """Return what stands for the canary in plain text, JSON, and base64, wherever it begins."""
    raw = CANARY.encode()
    for start in range(3):
        text = base64.b64encode(b"\0" * start + raw)
        yield text[4:-4]
        yield text[4:-4].replace(b"+", b"-").replace(b"/", b"_")
    yield raw[4:-4]
    yield raw[4:-4].hex().encode()


def leaks(contents):
    """Return where contents show the canary, and what is around it."""
    return [
        (name, content[max(at - 200, 0) : at + 40])
        for name, content in contents
        for form in forms()
        if (at := content.find(form)) >= 0
    ]


def files(folder):
    return [(str(path), path.read_bytes()) for path in Path(folder).rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def durable():
    """A server that writes each command to its log."""
    with redis_server("redis-server") as server:
        client = redis_client(server)
        client.config_set("appendonly", "yes")
        yield server


def contents_of(server):
    """Return the files of a server, with its snapshot and its log, and all its keys."""
    redis_client(server).save()
    found = files(server.folder)
    assert any(name.endswith(".rdb") for name, _ in found)
    assert any(name.endswith(".aof") and content for name, content in found)
    return found


def use(wire, catalog):
    """Pass, return, remember, save, and fail with the canary."""
    seen = []

    @wire.app.task(name="echo", shared=False)
    def echo(value, more=None):
        seen.append(value)
        return [value, more]

    @wire.app.task(name="small", shared=False, ignore_result=True, offload={"memo": 3600.0})
    def small(value):
        seen.append(value)
        return CANARY

    @wire.app.task(name="model", shared=False, offload={"memo": 3600.0, "save_as": "made/{task}"})
    def model(value):
        return [value] * 9

    @wire.app.task(name="fail", shared=False, bind=True)
    def fail(self, value):
        self.update_state(state="HALFWAY", meta={"so far": value})
        raise ValueError(value)

    failed = fail.delay(LARGE)
    wire.work()
    with pytest.raises(ValueError, match=CANARY):
        failed.get(timeout=10)
    assert wire.run(echo, LARGE, more=[LARGE]) == [LARGE, [LARGE]]
    wire.get(chain(echo.s(LARGE), echo.s(LARGE)).delay())
    for _ in range(2):
        small.delay(LARGE)
        assert len(wire.run(model, CANARY * 9000)) == 9
        wire.work()
    assert seen.count(LARGE) == 3, "once for the chain, and once for the remembered call"
    ref = wire.hook.put({"a": [CANARY] * (SIZE // 32)})
    with suppress(ConfigurationError):  # some stores pin nothing
        wire.hook.pin(ref, "kept")
    catalog.save("some/model", [LARGE], metadata={"stage": CANARY})
    catalog.save("some/small", CANARY, metadata={"stage": CANARY})
    assert catalog.load("some/model") == [LARGE]
    assert catalog.info("some/small", "latest").metadata == {"stage": CANARY}
    assert [each.name for each in catalog.find(metadata={"stage": CANARY})]
    wire.app._offload.recorder.write()


def objects_of(server, prefix):
    """Return the objects in the bucket of a server under *prefix*."""
    url = server.url(prefix)
    address = urlsplit(url)
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=address.username,
        aws_secret_access_key=unquote(address.password),
    )
    bucket = address.hostname
    listed = client.list_objects_v2(Bucket=bucket, Prefix=address.path.strip("/"))["Contents"]
    objects = [client.get_object(Bucket=bucket, Key=each["Key"]) for each in listed]
    return [(repr(each["Metadata"]), each["Body"].read()) for each in objects]


@pytest.mark.parametrize("kind", ("redis", "file", "sqlite", "s3"))
def test_nothing_that_is_stored_shows_the_canary(kind, durable, request, tmp_path):
    """Messages, results, statistics, remembered calls, records of the catalog, its copies on disk,
    and all blobs: in a snapshot and the log of Redis, in files, in SQLite, and in S3.
    """
    redis_client(durable).flushall()
    url = {
        "redis": lambda: f"{durable.url}?prefix=canary",
        "file": lambda: f"file://{tmp_path}/store",
        "sqlite": lambda: f"sqlite://{tmp_path}/store.db",
        "s3": lambda: request.getfixturevalue("s3").url("canary"),
    }[kind]()
    base = durable.url.rpartition("/")[0]
    wire = make_wire(
        store=url,
        encryption_keys=[KEY, FORMER],
        broker=f"{base}/1",
        conf={"result_backend": f"{base}/2", "result_extended": True},
        watch=False,
    )
    catalog = Catalog(url, encryption_keys=[KEY], author=CANARY, cache_dir=tmp_path / "copies")
    use(wire, catalog)
    found = contents_of(durable) + files(tmp_path)
    found += [(str(n), repr(message).encode()) for n, message in enumerate(wire.sent)]
    if kind == "s3":
        found += objects_of(request.getfixturevalue("s3"), "canary")
    assert len(found) > 20
    assert leaks(found) == []
    wire.hook.store.close()
    catalog.store.close()


def test_what_waits_during_an_outage_is_encrypted(redis, tmp_path):
    """Saves that wait on disk show neither their value nor their metadata; they are saved once the
    store is available, also if another key encrypts by then.
    """
    with Proxy(redis.port) as proxy:
        url = f"{proxy.url}&prefix={unique().replace('/', '-')}"
        options = {"cache_dir": tmp_path, "offline": "queue", "retry": {"max_retries": 0}}
        proxy.refuse()
        asked = []
        keys = [lambda: asked.append(1) or KEY]
        waiting = Catalog(url, encryption_keys=keys, author=CANARY, **options)
        waiting.save("some/model", [LARGE], metadata={"stage": CANARY})
        waiting.save("some/small", CANARY)
        assert asked == [1], "one keyring for the store, the copies, and what waits"
        assert len(files(tmp_path)) > 3
        assert leaks(files(tmp_path)) == []
        proxy.restore()
        with pytest.raises(KeyUnavailable):
            Catalog(url, encryption_keys=[FORMER], **options).sync()
        rotated = Catalog(url, encryption_keys=[FORMER, KEY], **options)
        assert len(rotated.sync()) == 2
        assert rotated.load("some/model") == [LARGE]
        assert rotated.info("some/model", "latest").metadata == {"stage": CANARY}
        assert rotated.info("some/model", "latest").author == CANARY
        assert leaks(files(tmp_path)) == []
        rotated.store.close()
        waiting.store.close()
