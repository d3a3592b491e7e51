"""The default store connects in the same way as Celery."""

from __future__ import annotations

import ssl

import celery
import kombu
import pytest
from celery import Celery
from kombu.transport.redis import Channel
from kombu.utils.url import url_to_parts
from redis.credentials import UsernamePasswordCredentialProvider

from offload import ConfigurationError, Offload, Settings
from offload.hooks.default_store import open_app_store
from tests.support.servers import redis_client, redis_sentinel, redis_server

PROVIDER = UsernamePasswordCredentialProvider("user", "secret")
USE_SSL = {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_ca_certs": "/ca.pem", "ssl_keyfile": "/k"}


def app_of(broker="amqp://", backend=None, **conf):
    app = Celery("locate", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(conf)
    return app


def opened(broker="amqp://", backend=None, store=None, store_options=(), **conf):
    settings = Settings(store=store, store_options=store_options)
    return open_app_store(settings, app_of(broker, backend, **conf))


def parameters(store):
    """Return the parameters of the store client's connections, without connecting."""
    return parameters_of(store.client.driver().connection_pool)


def parameters_of(pool):
    most = {} if pool.max_connections > 1 << 30 else {"max_connections": pool.max_connections}
    return {"connection_class": pool.connection_class, **most, **pool.connection_kwargs}


def test_a_configured_store_takes_precedence():
    """A configured store, of one URL or several, takes precedence."""
    assert opened("redis://a/0", "redis://b/1", "file:///x").url == "file:///x"
    several = opened(store=["redis://b/1", "file:///x"])
    assert [several.url] == ["redis://b/1 + file:///x"]


@pytest.mark.parametrize(
    ("broker", "backend", "url"),
    (
        ("redis://a:1/0", "redis://b:2/1", "redis://b:2/1"),
        ("redis://a:1/0", None, "redis://a:1/0"),
        ("redis://a:1/0", "rpc://", "redis://a:1/0"),
        ("redis://a:1/0", "nonsense://", "redis://a:1/0"),
        ("amqp://", "redis://:secret@b:2/1", "redis://b:2/1"),
        ("redis://a/0", "rediss://b/1?ssl_cert_reqs=required", "rediss://b:6379/1"),
        ("redis://[::1]:7/3", None, "redis://[::1]:7/3"),
        ("redis+socket:///run/r.sock?virtual_host=3", None, "redis+socket:///run/r.sock?db=3"),
        ("amqp://", "redis+socket:///run/r.sock?virtual_host=3", "redis+socket:///run/r.sock?db=3"),
    ),
)
def test_the_default_is_the_redis_of_celery(broker, backend, url):
    """Without one, the store is the result backend's Redis, or else the broker's."""
    store = opened(broker, backend)
    assert store.url == url
    if "virtual_host" in f"{broker}{backend}":
        assert parameters(store)["db"] == 3


SAME = (
    ("redis://user:p%40ss@h:7/3", {}, {}),
    ("redis://h", {"redis_backend_use_ssl": USE_SSL}, None),
    ("redis://h", None, {"broker_use_ssl": USE_SSL}),
    ("rediss://h?ssl_cert_reqs=CERT_NONE", {}, {}),
    ("rediss://h?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem", {}, {}),
    ("rediss://h", {"redis_backend_use_ssl": USE_SSL}, {"broker_use_ssl": USE_SSL}),
    ("redis+socket:///run/r.sock?virtual_host=3&password=secret", {}, {}),
    ("redis://h", {"redis_socket_timeout": 3, "redis_socket_connect_timeout": 2}, {}),
    ("redis://h", {"redis_socket_keepalive": True, "redis_max_connections": 7}, {}),
    ("redis://h", {"redis_backend_health_check_interval": 9, "redis_client_name": "me"}, {}),
    ("redis://h", {"redis_backend_credential_provider": PROVIDER}, {}),
    ("redis://h?socket_timeout=4&client_name=me&health_check_interval=3", {}, None),
    (
        "redis://h",
        None,
        {
            "broker_transport_options": {
                "socket_timeout": 3,
                "socket_connect_timeout": 2,
                "socket_keepalive": True,
                "socket_keepalive_options": {1: 2},
                "health_check_interval": 9,
                "max_connections": 7,
                "client_name": "me",
                "retry_on_timeout": True,
                "visibility_timeout": 60,
            }
        },
    ),
)
_OURS = {"command_packer", "protocol", "retry", "socket_read_size", "retry_on_timeout"}


def backends_parameters(app):
    try:
        return app.backend.connparams
    except ValueError as exc:
        if "use the scheme rediss" not in str(exc):
            raise
        pytest.skip(f"Celery {celery.__version__} refuses TLS options for redis://")


def channels_parameters(app):
    from types import SimpleNamespace

    connection = app.connection_for_write()
    kind = connection.get_transport_cls().Channel
    channel = kind.__new__(kind)
    vars(channel).update(connection.transport_options)
    channel.connection = SimpleNamespace(client=connection, default_port=6379)
    return channel._connparams()


def same(theirs, store):
    """Assert that the store uses every parameter that Celery sets."""
    found = parameters(store)
    unset = {"socket_timeout": 10.0, "socket_connect_timeout": 5.0}
    words = {ssl.CERT_NONE: "none", ssl.CERT_OPTIONAL: "optional", ssl.CERT_REQUIRED: "required"}
    for name, value in theirs.items():
        expected = value
        if name == "ssl_cert_reqs":
            expected = words.get(value, value)
        if (name, value) == ("socket_timeout", 120.0) or (name in unset and not value):
            expected = unset[name]
        if name not in _OURS and expected is not None:
            assert found.get(name) == expected, name


@pytest.mark.parametrize(("url", "backend", "broker"), SAME)
def test_the_store_connects_as_celery_does(url, backend, broker):
    """The store's connections use every connection setting of Celery."""
    if backend is not None:
        app = app_of(backend=url, **backend)
        same(backends_parameters(app), open_app_store(Settings(), app))
    if broker is not None:
        app = app_of(broker=url, **broker)
        given = app.conf.broker_transport_options
        theirs = channels_parameters(app)
        defaults = set(app.connection().get_transport_cls().Channel.from_transport_options)
        theirs = {k: v for k, v in theirs.items() if k not in defaults or k in given}
        store = open_app_store(Settings(), app)
        same(theirs, store)
        assert "health_check_interval" in given or not parameters(store)["health_check_interval"]


@pytest.mark.parametrize("part", ("backend", "broker"))
@pytest.mark.parametrize("tls", (False, True))
def test_sentinel(part, tls):
    """The store uses Sentinel's hosts, credentials, primary, and connection parameters."""
    url = "sentinel://user:pw@a:1/2;sentinel://user:pw@b/2"
    options = {
        "master_name": "primary",
        "min_other_sentinels": 1,
        "sentinel_kwargs": {"password": "theirs", "ssl": True, "ssl_cert_reqs": "none"},
        "socket_timeout": 3.5,
    }
    use_ssl = {"ssl_cert_reqs": ssl.CERT_NONE}
    if part == "backend":
        conf = {"redis_backend_use_ssl": use_ssl if tls else None}
        conf |= {"result_backend_transport_options": options, "redis_socket_timeout": 3.5}
        store = opened("amqp://", url, **conf)
    else:
        conf = {"broker_use_ssl": use_ssl if tls else None, "broker_transport_options": options}
        store = opened(url, None, **conf)
    b = url_to_parts("sentinel://b:26379" if part == "broker" else "sentinel://b:6379")
    scheme = "rediss" if tls else "redis"
    assert store.url == f"{scheme}+sentinel://a:1,b:{b.port}/2?master=primary"
    pool = store.client.driver().connection_pool
    assert (pool.service_name, pool.sentinel_manager.min_other_sentinels) == ("primary", 1)
    known = pool.connection_kwargs
    user = "user"
    if part == "backend":  # whose user older Celery ignores
        user = app_of("amqp://", url, **conf).backend.connparams.get("username")
    assert (known.get("username"), known["password"], known["db"]) == (user, "pw", 2)
    assert known["socket_timeout"] == 3.5
    assert ("SSL" in pool.connection_class.__name__) is tls
    theirs = pool.sentinel_manager.sentinels[0].connection_pool
    assert theirs.connection_kwargs["password"] == "theirs"
    assert "SSL" in theirs.connection_class.__name__


def test_sentinel_needs_the_primarys_name():
    """Without master_name, the error names it."""
    with pytest.raises(ConfigurationError, match="master_name"):
        opened("sentinel://a:1/0")


def test_no_redis_is_an_error_with_advice():
    """Without any Redis, the error names the setting and gives examples."""
    with pytest.raises(ConfigurationError, match="offload_store.*redis://.*file://"):  # noqa: RUF043
        opened("amqp://", "rpc://")


@pytest.mark.parametrize(
    ("conf", "prefix"),
    (
        ({}, "offload"),
        ({"result_backend_transport_options": {"global_keyprefix": "shop:"}}, "shop:offload"),
        ({"result_backend_transport_options": {"global_keyprefix": "shop"}}, "shop_offload"),
        ({"broker_transport_options": {"global_keyprefix": "{shop}"}}, "{shop}offload"),
    ),
)
def test_the_key_prefix_is_celerys(conf, prefix):
    """All keys of the default store start with the prefix of Celery's keys."""
    store = opened("redis://h", "redis://h", **conf)
    assert store.client.prefix == prefix
    assert opened(
        "redis://h", "redis://h", store_options={"prefix": "p"}, **conf
    ).client.prefix == (prefix.removesuffix("offload") + "p")


def test_options_of_a_store_of_its_own():
    """offload_store_options accepts Celery's connection options, for one or for each store."""
    options = {
        **USE_SSL,
        "credential_provider": PROVIDER,
        "global_keyprefix": "shop:",
        "socket_keepalive_options": {1: 2},
        "socket_timeout": 3,
        "virtual_host": 5,
    }
    store = opened(store="rediss://h", store_options=options)
    found = parameters(store)
    assert found["ssl_cert_reqs"] == "none"
    assert found["ssl_ca_certs"] == "/ca.pem"
    assert found["credential_provider"] is PROVIDER
    assert found["socket_keepalive_options"] == {1: 2}
    assert (found["socket_timeout"], found["db"]) == (3.0, 5)
    assert store.client.prefix == "shop:offload"
    store = opened(
        store="redis+sentinel://a", store_options={"master_name": "m", "sentinel_kwargs": {"db": 1}}
    )
    assert store.client.driver().connection_pool.service_name == "m"
    tiers = opened(store=["redis://h", "file:///x"], store_options=[{"db": 4}, {}])
    assert parameters(tiers.tiers[0])["db"] == 4
    assert parameters(opened("redis://h/1", store_options={"db": 4}))["db"] == 4


@pytest.mark.parametrize(
    ("store", "options", "message"),
    (
        ("redis://h", "text", "a dict"),
        ("redis://h", {1: 2}, "a dict"),
        ("redis://h", [{"db": 1}, {"db": 2}], "2 dicts for 1 stores"),
        (["redis://h", "file:///x"], {"db": 1}, "1 dicts for 2 stores"),
        ("redis://h", {"ssl_cert_reqs": "none"}, "unknown option 'ssl_cert_reqs'"),
        ("redis://h", {"decode_responses": True}, "unknown option 'decode_responses'"),
        ("redis://h", {"url": "file:///x"}, "unknown option 'url'"),
        ("redis://h", {"tier_sizes": 1}, "unknown option 'tier_sizes'"),
        (["redis://h"], [{"tier_options": []}], "unknown option 'tier_options'"),
        ("file:///x", {"mode": [0o660]}, "mode=… is not octal permissions"),
        ("file:///x", {"mode": 432.0}, "mode=432.0 is not octal permissions"),
        ("redis://h", {"credential_provider": "no.such"}, "credential_provider=… is not"),
        ("redis+sentinel://h", {"sentinel_kwargs": "secret"}, "is not a dict"),
    ),
)
def test_a_wrong_option_is_named(store, options, message):
    """A wrong store option is refused by name; the error doesn't show its value."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        opened(store=store, store_options=options)
    assert "secret" not in str(caught.value)


def used(app, **options):
    """Store and fetch a value through the app's store; return its keys."""
    offload = Offload(app, retry={"max_retries": 0}, stats_interval=0, **options)
    ref = offload.put(b"x" * 100_000)
    assert offload.get(ref) == b"x" * 100_000
    offload.store.close()


@pytest.mark.parametrize("part", ("backend", "broker"))
def test_a_server_with_a_certificate_of_its_own(redis_tls, part):
    """TLS options in Celery's settings suffice to reach a server with TLS."""
    url = f"rediss://127.0.0.1:{redis_tls.port}/0"
    if part == "backend":
        used(
            app_of(
                backend=url,
                redis_backend_use_ssl={"ssl_ca_certs": redis_tls.ca, "ssl_cert_reqs": "required"},
            )
        )
    else:
        used(app_of(broker=url, broker_use_ssl={"ssl_cert_reqs": ssl.CERT_NONE}))
    used(app_of(), store=url, store_options={"ssl_cert_reqs": ssl.CERT_NONE})


def test_tenants_share_nothing():
    """Users of one Redis, each limited to a key prefix, have separate keys and blobs."""
    with redis_server() as server, redis_client(server) as client:
        for tenant in ("one", "two"):
            client.execute_command(
                "ACL", "SETUSER", tenant, "on", f">{tenant}", f"~{tenant}:*", "&*", "+@all"
            )
            url = f"redis://{tenant}:{tenant}@{server.host}:{server.port}/0"
            options = {"global_keyprefix": f"{tenant}:"}
            used(app_of(backend=url, result_backend_transport_options=options))
            used(app_of(broker=url, broker_transport_options=options))
        begins = [key.decode().split(":")[0] for key in client.scan_iter()]
    assert set(begins) == {"one", "two"}
    assert begins.count("one") == begins.count("two")


@pytest.mark.parametrize("part", ("backend", "broker"))
def test_a_socket_and_its_database(tmp_path, part):
    """A Unix socket with a virtual_host in Celery's settings selects that database."""
    path = tmp_path / "r.sock"
    with redis_server(args=["--unixsocket", str(path)]) as server:
        used(app_of(**{part: f"redis+socket://{path}?virtual_host=3"}))
        with redis_client(server, db=3) as third, redis_client(server) as first:
            assert third.dbsize() > 0
            assert first.dbsize() == 0


@pytest.mark.parametrize("part", ("backend", "broker", "store"))
def test_a_provider_of_credentials(part):
    """The store uses the credential provider of Celery's settings."""
    provider = UsernamePasswordCredentialProvider("shop", "secret")
    with redis_server() as server, redis_client(server) as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", ">secret", "~*", "&*", "+@all")
        client.execute_command("ACL", "SETUSER", "default", "off")
        url = f"redis://{server.host}:{server.port}/0"
        if part == "backend":
            app = app_of(backend=url, redis_backend_credential_provider=provider)
            if "credential_provider" not in app.backend.connparams:
                pytest.skip(f"Celery {celery.__version__} ignores the setting")
            used(app)
        elif part == "broker":
            if not hasattr(Channel, "_process_credential_provider"):
                pytest.skip(f"kombu {kombu.__version__} knows no such parameter")
            name = f"{__name__}.Provider"
            used(app_of(broker=f"{url}?credential_provider={name}"))
        else:
            used(app_of(), store=url, store_options={"credential_provider": provider})


class Provider(UsernamePasswordCredentialProvider):
    def __init__(self):
        super().__init__("shop", "secret")


@pytest.mark.parametrize("part", ("backend", "broker"))
def test_sentinels_with_a_password_of_their_own(part):
    """sentinel_kwargs reach the Sentinels, which ask for a password that the servers don't know."""
    with redis_sentinel() as setup:
        (watching,) = setup.sentinels
        with redis_client(watching) as client:
            client.execute_command("ACL", "SETUSER", "default", "resetpass", ">theirs")
        url = f"sentinel://{watching.host}:{watching.port}/0"
        options = {"master_name": setup.name, "sentinel_kwargs": {"password": "theirs"}}
        if part == "backend":
            used(app_of(backend=url, result_backend_transport_options=options))
        else:
            used(app_of(broker=url, broker_transport_options=options))
        own = f"redis+sentinel://{watching.host}:{watching.port}/0"
        used(app_of(), store=own, store_options=options)
