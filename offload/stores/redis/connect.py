"""Open Redis and Valkey from a URL."""

from __future__ import annotations

import inspect
import math
import os
import ssl
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.credentials import CredentialProvider
from redis.retry import Retry
from redis.sentinel import Sentinel

from offload.stores.redis.client import Driver, RedisClient
from offload.stores.redis.redis_internals import PACKER, UNLIMITED, Pool
from offload.stores.redis.store import RedisStore
from offload.stores.url import StoreURL, boolean, count, key_prefix, seconds, text

PORT = 6379
SENTINEL_PORT = 26379
OURS = frozenset(
    "self kwargs args host port path db connection_class connection_pool retry retry_on_timeout "  # noqa: SIM905
    "retry_on_error protocol command_packer encoding encoding_errors decode_responses "
    "parser_class socket_read_size".split()
)
"""Parameters of redis-py's connections that this module sets, so they aren't options."""
READ_SIZE = 1 << 16  # bytes per read from a socket; larger and smaller were slower


def open_redis(url: StoreURL) -> RedisStore:
    """Open Redis or Valkey.

    ========================================================  ===========================
    ``redis://user:password@host:port/db``                    one server
    ``redis+socket:///path/to/socket?db=0``                   one server, through a Unix socket
    ``redis+sentinel://host:port,host:port/db?master=name``   the primary that Sentinels name
    ``redis+cluster://host:port,host:port``                   a Cluster, found from any node
    ========================================================  ===========================

    Use ``rediss`` instead of ``redis`` for TLS; ``valkey`` and ``valkeys`` are synonyms.

    Options, with defaults: ``prefix`` of all keys (``offload``); ``global_keyprefix``, put before
    it; ``socket_timeout`` (10) and ``socket_connect_timeout`` (5) in seconds; ``socket_keepalive``;
    ``health_check_interval`` in seconds (0: never); ``max_connections`` per process (no limit);
    ``client_name``; ``username``, ``password``, ``credential_provider`` (an object, or
    ``package.module.Class``); ``db`` (or ``virtual_host``). With TLS: ``ssl_ca_certs``,
    ``ssl_ca_path``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_password``, ``ssl_cert_reqs``
    (``required``, ``optional``, ``none``), ``ssl_check_hostname``. With Sentinel:
    ``master_name`` (or ``master``; ``mymaster``), ``sentinel_username``,
    ``sentinel_password``, ``min_other_sentinels``.

    ``wait_replicas`` (0): number of replicas that must acknowledge a write within ``wait_timeout``
    (1) seconds before it counts as done; a failover to one of them then loses nothing.

    By keyword only (``offload_store_options``): ``sentinel_kwargs``, all parameters of the
    connections to Sentinels (by default, TLS and timeouts as for the server), and any other
    parameter of redis-py's connections.
    """
    base, _, form = url.scheme.partition("+")
    tls = base in ("rediss", "valkeys")
    prefix = url.take("prefix", key_prefix, "offload")
    prefix = url.take("global_keyprefix", text, "") + prefix
    options = _connection_options(url)
    if tls:
        options |= _tls_options(url)
    options |= _driver_options(url, tls=tls)
    replicas = url.take("wait_replicas", count, 0)
    patience = url.take("wait_timeout", seconds, 1.0)
    if replicas and form == "cluster":
        url.refuse("WAIT isn't available in a Cluster: set min-replicas-to-write on its servers")
    if replicas and patience >= (options.get("socket_timeout") or math.inf):
        url.refuse("wait_timeout must be shorter than socket_timeout")
    if form == "sentinel":
        connect = _sentinel(url, options, tls=tls)
    elif form == "cluster":
        connect = _cluster(url, options, tls=tls)
    elif form == "socket":
        database = url.take("virtual_host", count, url.take("db", count, 0))
        url.public += f"?db={database}" if database else ""
        options["db"] = database
        for name in ("socket_keepalive", "socket_keepalive_options"):  # only for TCP
            options.pop(name, None)
        kind = {"connection_class": UnixDomainSocketConnection, "path": url.path}
        connect = _pooled({**kind, **options})
    else:
        connect = _single(url, options, tls=tls)
    if prefix != "offload":
        url.public += ("&" if "?" in url.public else "?") + f"prefix={quote(prefix, ':')}"
    client = RedisClient(
        connect,
        url.public,
        prefix,
        replicas=replicas,
        patience=patience,
        connections=options["max_connections"],
    )
    return RedisStore(client)


def _connection_options(url: StoreURL) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": url.take("socket_timeout", seconds, 10.0),
        "socket_connect_timeout": url.take("socket_connect_timeout", seconds, 5.0),
        "health_check_interval": url.take("health_check_interval", count, 0),
        "client_name": url.take("client_name", text, None),
        "username": url.take("username", text, url.username),
        "password": url.take("password", text, url.password),
        "credential_provider": url.take("credential_provider", _provider, None),
        "max_connections": url.take("max_connections", count, UNLIMITED),
        "socket_keepalive": url.take("socket_keepalive", boolean, None),
        "socket_read_size": READ_SIZE,
        "protocol": 2,
    }
    if options["credential_provider"] is not None:
        options["username"] = options["password"] = None
    return {name: value for name, value in options.items() if value is not None}


def _driver_options(url: StoreURL, *, tls: bool) -> dict[str, Any]:
    """Take further parameters of redis-py's connections that were passed by keyword."""
    kind: type = SSLConnection if tls else Connection
    kind = url.take("connection_class", _connection_class, kind)
    own = {"connection_class": kind} if "connection_class" in url.given else {}
    kinds = {each for one in (kind, UnixDomainSocketConnection) for each in one.__mro__}
    known = {name for each in kinds for name in inspect.signature(each).parameters}
    return {**own, **url.take_given(known - OURS)}


def _tls_options(url: StoreURL) -> dict[str, Any]:
    requirement = url.take("ssl_cert_reqs", _cert_reqs, "required")
    options: dict[str, Any] = {
        "ssl_cert_reqs": requirement,
        "ssl_check_hostname": url.take("ssl_check_hostname", boolean, requirement == "required"),
    }
    for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"):
        value = url.take(name, _path, None)
        if value is not None:
            options[name] = value
    return options


def _path(value: Any) -> str:
    return text(os.fspath(value))


def _connection_class(value: Any) -> type:
    if not (isinstance(value, type) and issubclass(value, AbstractConnection)):
        raise ValueError("a class of redis-py's connections")
    return value


def _provider(value: Any) -> CredentialProvider:
    """Convert to a credential provider, given as an object or as its class's name."""
    if isinstance(value, str):
        try:
            value = resolve_name(value)()
        except (ImportError, AttributeError, ValueError):
            value = None
    if not isinstance(value, CredentialProvider):
        raise ValueError("a redis.CredentialProvider, or the importable name of one")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("a dict")
    return dict(value)


def _cert_reqs(value: Any) -> str:
    """Convert redis-py's ``required``, Celery's ``CERT_REQUIRED``, or Python's constants."""
    if isinstance(value, int):
        value = ssl.VerifyMode(value).name
    word = str(value).lower().removeprefix("cert_")
    if word not in ("required", "optional", "none"):
        raise ValueError("one of required, optional, none")
    return word


def _pooled(options: dict[str, Any]) -> Callable[[], Driver]:
    return lambda: redis.Redis(connection_pool=_Pool(**options, retry=_no_retry()))


def _single(url: StoreURL, options: dict[str, Any], *, tls: bool) -> Callable[[], Driver]:
    if len(url.hosts) > 1:
        url.refuse("several hosts are for redis+sentinel:// and redis+cluster://")
    host, port = (url.hosts or [("localhost", None)])[0]
    where = {"host": host or "localhost", "port": port or PORT, "db": _database(url)}
    kind = {"connection_class": SSLConnection} if tls else {}
    return _pooled({**kind, **options, **where})


def _sentinel(url: StoreURL, options: dict[str, Any], *, tls: bool) -> Callable[[], Driver]:
    hosts = _hosts(url, SENTINEL_PORT)
    options["db"] = _database(url)
    master = url.take("master_name", text, url.take("master", text, "mymaster"))
    others = url.take("min_other_sentinels", count, 0)
    url.public += f"?master={master}"
    # Sentinels have their own users; TLS and timeouts are the server's.
    own = {
        name: value
        for name, value in options.items()
        if name.startswith(("ssl_", "socket_")) and name != "socket_read_size"
    }
    own["username"] = url.take("sentinel_username", text, None)
    own["password"] = url.take("sentinel_password", text, None)
    for each in (options, own):
        each["ssl"] = tls
    timeouts = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")}
    own = {**timeouts, **url.take("sentinel_kwargs", _mapping, own)}

    def connect() -> Driver:
        sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
            hosts, min_other_sentinels=others, sentinel_kwargs={**own, "retry": _no_retry()}
        )
        client: redis.Redis = sentinel.master_for(
            master, **options, command_packer=PACKER, retry=_no_retry()
        )
        return client

    return connect


def _cluster(url: StoreURL, options: dict[str, Any], *, tls: bool) -> Callable[[], Driver]:
    if url.path.strip("/") not in ("", "0"):
        url.refuse("a Cluster has only database 0")
    hosts = _hosts(url, PORT)
    if tls:
        options.setdefault("connection_class", SSLConnection)
    retries: dict[str, Any] = {"retry": _no_retry()}
    if int(redis.__version__.partition(".")[0]) < 6:  # older versions count retries twice
        retries["cluster_error_retry_attempts"] = 0

    def connect() -> Driver:
        # Pass `url`: then nodes create their pools with the class named here.
        (host, port), *others = hosts
        where = f"redis://[{host}]:{port}" if ":" in host else f"redis://{host}:{port}"
        return redis.RedisCluster(
            url=where,
            startup_nodes=[ClusterNode(*other) for other in others],  # type: ignore[no-untyped-call]
            connection_pool_class=_Pool,
            **options,
            **retries,
        )

    return connect


class _Pool(Pool):
    """A connection pool whose connections pack blobs without copying."""

    def __init__(self, **options: Any) -> None:
        super().__init__(command_packer=PACKER, **options)


def _no_retry() -> Retry:
    """Disable redis-py's retries, because callers retry."""
    return Retry(NoBackoff(), 0)


def _hosts(url: StoreURL, port: int) -> list[tuple[str, int]]:
    if not url.hosts:
        url.refuse("it names no host")
    return [(host, given or port) for host, given in url.hosts]


def _database(url: StoreURL) -> int:
    path = url.path.strip("/")
    if path and not path.isdigit():
        url.refuse(f"{path!r} isn't a database number")
    database = url.take("virtual_host", count, url.take("db", count, None))
    if database is None:
        return int(path or 0)
    scheme, _, rest = url.public.partition("://")
    url.public = f"{scheme}://{rest.partition('/')[0]}/{database}"
    return database
