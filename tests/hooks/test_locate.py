from __future__ import annotations

import pytest
from celery import Celery

from offload import ConfigurationError, Settings
from offload.hooks.locate import store_urls


def located(broker="amqp://", backend=None, store=None, **conf):
    app = Celery("locate", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(conf)
    return store_urls(Settings(store=store), app.conf)


def test_what_is_configured_comes_first():
    """A configured store is taken as it is, one URL or several."""
    assert located("redis://a/0", "redis://b/1", "file:///x") == "file:///x"
    assert located(store=["file:///x", "redis://b/1"]) == ("file:///x", "redis://b/1")


@pytest.mark.parametrize(
    ("broker", "backend", "url"),
    (
        ("redis://a:1/0", "redis://b:2/1", "redis://b:2/1"),
        ("redis://a:1/0", None, "redis://a:1/0"),
        ("redis://a:1/0", "rpc://", "redis://a:1/0"),
        ("amqp://", "redis://:secret@b:2/1", "redis://:secret@b:2/1"),
        (
            "redis://a/0",
            "rediss://b/1?ssl_cert_reqs=required",
            "rediss://b/1?ssl_cert_reqs=required",
        ),
        ("redis://a/0?socket_timeout=3", None, "redis://a/0"),
    ),
)
def test_the_redis_that_celery_has(broker, backend, url):
    """Else it is the result backend's Redis, else the broker's."""
    assert located(broker, backend) == url


def test_sentinel():
    """A Sentinel broker or backend gives the store its hosts, password and master."""
    url = "sentinel://:pw@a:1/0;sentinel://:pw@b:2/0"
    found = located("amqp://", url, result_backend_transport_options={"master_name": "mymaster"})
    assert found == "redis+sentinel://:pw@a:1,b:2/0?master=mymaster"


def test_none_is_an_error_that_says_what_to_set():
    """Without any Redis the error names the setting and gives examples."""
    with pytest.raises(ConfigurationError, match="offload_store.*redis://.*file://"):  # noqa: RUF043
        located("amqp://", "rpc://")
