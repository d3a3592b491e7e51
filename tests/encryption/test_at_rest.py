"""A canary in values is found nowhere in what a Redis that is broker, backend, and store keeps."""

from __future__ import annotations

import base64
import random

import pytest

from offload import Catalog
from offload.stores.file import FileStore
from offload.stores.sqlite import SQLiteStore
from tests.integration.features import create
from tests.support.processes import wait_until, worker
from tests.support.servers import redis_client, redis_server

KEY = "aes256:" + base64.b64encode(bytes(range(32))).decode()
CANARY = "canary-of-exactly-32-characters!"
TIMEOUT = 60


def values():
    """Return values that contain the canary: small and large, which compress or don't."""
    noise = random.Random(1).randbytes(1 << 20).hex()
    return [CANARY * 4000, noise + CANARY, [CANARY] * 5000, {"a": CANARY * 1000, "b": noise}]


def assert_unreadable(folder):
    found = [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (CANARY.encode() in path.read_bytes() or CANARY in str(path))
    ]
    assert not found


@pytest.mark.server
@pytest.mark.integration
@pytest.mark.timeout(180)
def test_nothing_readable_is_in_redis(tmp_path):
    """With all values encrypted, an RDB file and an AOF of the broker, backend, and store contain
    no argument, result, statistic, or catalog object.
    """
    with redis_server(args=["--appendonly", "yes", "--aof-use-rdb-preamble", "no"]) as server:
        base = f"redis://{server.host}:{server.port}"
        config = {
            "broker": f"{base}/0",
            "backend": f"{base}/1",
            "conf": {"result_extended": True},
            "offload": {
                "store": f"{base}/2",
                "cache": "off",
                "threshold": 1024,
                "encryption_keys": [KEY],
                "encryption": "required",
                "stats_interval": 0.2,
            },
        }
        app = create(config)
        with redis_client(server) as client:
            waiting = [app.tasks["same"].delay(value) for value in values()]
            app.offload.catalog.save("object", values()[0], metadata={"by": CANARY})
            client.save()
            assert_unreadable(server.folder)
            with worker(tmp_path, config, app="tests.integration.features", pool="solo"):
                for result, value in zip(waiting, values(), strict=True):
                    assert result.get(timeout=TIMEOUT) == value
                wait_until(lambda: client.info("persistence")["aof_enabled"], "AOF", TIMEOUT)
                client.save()
                names = [path.name for path in server.folder.rglob("*") if path.is_file()]
                assert any(name.endswith(".rdb") for name in names)
                assert any(".aof" in name for name in names)
                assert_unreadable(server.folder)
            assert app.offload.catalog.load("object") == values()[0]
        app.close()


@pytest.mark.parametrize("kind", ("file", "sqlite"))
def test_nothing_readable_is_in_files(tmp_path, kind):
    """Folders of file and SQLite stores, and local copies of a catalog, contain no value."""
    folder = tmp_path / "all"
    make = FileStore if kind == "file" else SQLiteStore
    store = make(folder / ("store" if kind == "file" else "store.sqlite"))
    catalog = Catalog(
        store,
        "models",
        cache_dir=folder / "copies",
        encryption_keys=[KEY],
        encryption="required",
    )
    for number, value in enumerate(values()):
        catalog.save(f"object-{number}", value, metadata={"by": CANARY})
        assert catalog.load(f"object-{number}") == value
    store.close()

    assert sum(path.is_file() for path in folder.rglob("*")) > 2
    assert_unreadable(folder)
