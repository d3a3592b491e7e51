"""Real workers while keys change, are missing, or can't be had: no message is lost."""

from __future__ import annotations

import base64

import pytest

from offload import KeyUnavailable
from offload.encryption.blobs import key_id_of_blob
from offload.encryption.keys import EncryptionKey
from tests.integration.features import create
from tests.support.processes import worker
from tests.support.servers import redis_client, redis_server

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(180)]

OLD, NEW, OTHER = (f"aes256:{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2, 3))
NEW_ID = EncryptionKey(bytes([2]) * 32).id
APP = "tests.integration.features"
TIMEOUT = 60
QUEUE = "features"


@pytest.fixture(scope="module")
def server():
    with redis_server() as found:
        yield found


@pytest.fixture
def config(server):
    """Return a function that makes the configuration of a process with these keys."""
    redis_client(server).flushall()
    base = f"redis://{server.host}:{server.port}"

    def make(*keys):
        return {
            "broker": f"{base}/0",
            "backend": f"{base}/1",
            "offload": {
                "store": f"{base}/2",
                "cache": "off",
                "threshold": 1000,
                "encryption_keys": keys,
                "retry": {"max_retries": 2, "interval_start": 0.0, "interval_step": 0.0},
            },
        }

    return make


@pytest.fixture
def process(config):
    """Return a function that makes an app that publishes, with these keys."""
    apps = []

    def make(*keys):
        apps.append(create(config(*keys)))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


def value(number):
    return [f"value {number}"] * 1000


def test_messages_wait_through_a_rotation(process, config, server, tmp_path):
    """What was sent with the old key, before and while workers changed, is run once each; what a
    worker returns is encrypted with the new one.
    """
    old, both = process(OLD), process(OLD, NEW)
    waiting = [app.tasks["same"].delay(value(at)) for at, app in enumerate((old, both, old))]

    with worker(tmp_path, config(NEW, OLD), app=APP, pool="solo"):
        results = [both.AsyncResult(each.id).get(timeout=TIMEOUT) for each in waiting]
        made = both.tasks["make"].delay(7, 5000)
        assert both.AsyncResult(made.id).get(timeout=TIMEOUT) == [7] * 5000

    assert results == [value(at) for at in range(3)]
    client = redis_client(server)
    client.select(2)
    blobs = [client.get(key) for key in client.keys("offload:blob:*")]
    assert NEW_ID in {key_id_of_blob(blob) for blob in blobs}
    assert all(blob[:1] == b"\2" for blob in blobs)
    assert not client.exists("offload:pointer:keys/ref"), "the store keeps no signing key"


def test_a_missing_key_causes_no_storm(process, config, server, tmp_path):
    """A worker without the key sends the message again as often as offload_retry says, and asks the
    store for nothing; then the task fails, with the start of the key's id.
    """
    publisher = process(NEW)
    result = publisher.tasks["same"].delay(value(1))
    client = redis_client(server)
    assert client.llen(QUEUE) == 1
    with worker(tmp_path, config(OTHER), app=APP, pool="solo"):
        client.config_resetstat()
        with pytest.raises(KeyUnavailable) as caught:
            result.get(timeout=TIMEOUT)
        sent = client.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"]
        reads = client.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]

    assert NEW_ID.startswith(caught.value.key)
    assert sent <= 3
    assert reads == 0
    assert client.llen(QUEUE) == 0


def test_a_key_service_that_is_down(process, config, tmp_path):
    """A worker that can't get its key makes a few attempts, and doesn't start; the message waits,
    and a later worker, whose pool processes inherit the key, calls the service once.
    """
    (tmp_path / "key").write_text(NEW)
    (tmp_path / "down").touch()
    calls = tmp_path / "calls"
    result = process(NEW).tasks["same"].delay(value(2))
    settings = {**config(), "keys": str(tmp_path)}

    with (
        pytest.raises(AssertionError, match="raised OSError in 3 attempts"),
        worker(tmp_path, settings, app="tests.encryption.key_app", name="first"),
    ):
        pass
    assert len(calls.read_text().splitlines()) == 3
    assert result.state == "PENDING"

    (tmp_path / "down").unlink()
    calls.unlink()
    with worker(tmp_path, settings, app="tests.encryption.key_app", name="second"):
        assert result.get(timeout=TIMEOUT) == value(2)
    assert len(calls.read_text().splitlines()) == 1


@pytest.mark.parametrize("keys", ((NEW, NEW), ("aes256:bm90IGEga2V5",)), ids=("twice", "short"))
def test_wrong_keys_stop_a_worker_at_its_start(config, tmp_path, keys):
    """A worker with one key listed twice, or with a malformed one, exits, and doesn't show it."""
    with (
        pytest.raises(AssertionError, match="offload_encryption_keys") as caught,
        worker(tmp_path, config(*keys), app=APP, pool="solo"),
    ):
        pass
    assert not any(key in str(caught.value) for key in keys)
