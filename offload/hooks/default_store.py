"""Open the store of an app: the configured one, else the Redis that Celery itself uses.

The default store connects exactly as Celery does. So its parameters are those that Celery's Redis
backend or kombu's Redis transport computes (TLS, Sentinel, credentials, timeouts, databases, key
prefixes); the settings are never interpreted a second time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from celery import Celery
from celery.app.backends import BACKEND_ALIASES, by_url
from celery.app.defaults import DEFAULTS
from celery.exceptions import ImproperlyConfigured
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import url_to_parts

from offload.errors import ConfigurationError
from offload.hooks.celery_internals import channel_params, uses_sentinel
from offload.settings import Settings
from offload.stores import open_store
from offload.stores.open import check_url
from offload.stores.protocols import Store
from offload.text import url_host

_NO_STORE = (
    "no store: neither the result backend nor the broker is Redis. Set offload_store (or "
    "Offload(app, store=…)) to a URL such as redis://localhost:6379/2 or file:///var/lib/offload"
)


def open_app_store(settings: Settings, app: Celery) -> Store:
    """Open the configured store, else the result backend's Redis, else the broker's.

    Raises ConfigurationError if there is none.
    """
    given = settings.store_options
    if settings.store is None:
        url, options = _celery_store(app)
        return open_store([url], tier_options=[{**options, **(given[0] if given else {})}])
    urls = [settings.store] if isinstance(settings.store, str) else settings.store
    return open_store(urls, tier_sizes=settings.tier_sizes, tier_options=given or None)


def check_store(settings: Settings, app: Celery) -> None:
    """Raise ConfigurationError if *app* certainly has no store, or one with a wrong URL.

    For publishers, as they start: no driver is imported, and nothing is connected.
    """
    if settings.store is not None:
        for url in (settings.store,) if isinstance(settings.store, str) else settings.store:
            check_url(url)
    elif settings.mode == "on" and not app.conf.task_always_eager and not _may_be_redis(app):
        raise ConfigurationError(_NO_STORE)


def _may_be_redis(app: Celery) -> bool:
    """Return whether result backend or broker may be Redis, or the broker serves a test."""
    backend = app.backend_cls or app.conf.result_backend or "disabled"
    name = backend.partition("://")[0].partition("+")[0] if isinstance(backend, str) else ""
    if "redis" in BACKEND_ALIASES.get(name, "redis"):
        return True
    with app.connection_for_write() as connection:
        kind = connection.transport_cls
    path = TRANSPORT_ALIASES.get(kind, "redis") if isinstance(kind, str) else "redis"
    return "redis" in path or "memory" in path


def _celery_store(app: Celery) -> tuple[str, dict[str, Any]]:
    """Return the URL and options of the Redis that *app* has as result backend or broker.

    Raises ConfigurationError where neither is Redis.
    """
    backend, broker = _backend(app), _broker(app)
    if backend is None and broker is None:
        raise ConfigurationError(_NO_STORE)
    url, options = backend or broker  # type: ignore[misc]
    # Tenants that share one Redis may have set a prefix for either alone.
    prefixes = [found[1]["global_keyprefix"] for found in (backend, broker) if found is not None]
    options["global_keyprefix"] = next(filter(None, prefixes), "")
    return url, {name: value for name, value in options.items() if value not in (None, "")}


def _backend(app: Celery) -> tuple[str, dict[str, Any]] | None:
    """Return URL and options of the result backend's Redis; None for another backend."""
    try:
        kind, _ = by_url(app.backend_cls or app.conf.result_backend, app.loader)
    except (ImproperlyConfigured, ImportError):  # which Celery reports once results are used
        return None
    if not any(each.__module__ == "celery.backends.redis" for each in kind.__mro__):
        return None
    backend = app.backend
    params = dict(backend.connparams)
    # Celery's default suits a client that waits for messages; the store's suits short calls.
    if params.get("socket_timeout") == DEFAULTS["redis_socket_timeout"]:
        del params["socket_timeout"]
    transport = dict(app.conf.get("result_backend_transport_options") or {})
    prefix = transport.get("global_keyprefix") or ""
    if prefix and prefix[-1] not in ":_-.":
        prefix += "_"  # as the backend does
    hosts = [(each["host"], each["port"]) for each in params.pop("hosts", ())]
    kwargs = transport.get("sentinel_kwargs") or {}
    return _store_url(params, {**transport, "sentinel_kwargs": kwargs}, prefix, hosts)


def _broker(app: Celery) -> tuple[str, dict[str, Any]] | None:
    """Return URL and options of the broker's Redis; None for another broker."""
    with app.connection_for_write() as connection:  # connects to nothing
        try:
            transport = connection.get_transport_cls()
        except ImportError:  # which Celery reports once it connects
            return None
        kind: Any = getattr(transport, "Channel", object)
        if not any(each.__module__ == "kombu.transport.redis" for each in kind.__mro__):
            return None
        given = dict(connection.transport_options)
        params = channel_params(connection, transport)
        for name in kind.from_transport_options:
            if name not in given:  # kombu's defaults suit a client that waits for messages
                params.pop(name, None)
        hosts: list[tuple[str, int]] = []
        if uses_sentinel(kind):
            default = transport.default_port
            others = [url_to_parts(url) for url in connection.alt] or [connection]
            hosts = [(one.hostname or "localhost", one.port or default) for one in others]
    return _store_url(params, given, given.get("global_keyprefix") or "", hosts)


def _store_url(
    params: dict[str, Any], transport: Mapping[str, Any], prefix: str, hosts: list[tuple[str, int]]
) -> tuple[str, dict[str, Any]]:
    """Translate redis-py's connection parameters to a store's URL and options."""
    from redis.connection import SSLConnection

    from offload.stores.redis.connect import OURS

    kind = params.get("connection_class")
    is_tls = kind is not None and issubclass(kind, SSLConnection)
    scheme = "rediss" if is_tls else "redis"
    if is_tls and "ssl_check_hostname" not in params:  # Celery leaves it to the driver
        known = inspect.signature(SSLConnection.__init__).parameters["ssl_check_hostname"]
        params["ssl_check_hostname"] = known.default
    where = [(params.pop("host", None) or "localhost", params.pop("port", None) or 6379)]
    path, database = params.pop("path", None), params.pop("db", None) or 0
    options = {name: value for name, value in params.items() if name not in OURS}
    options["global_keyprefix"] = prefix
    if hosts:
        scheme, where = f"{scheme}+sentinel", hosts
        if not transport.get("master_name"):
            raise ConfigurationError(
                "no store: Sentinel needs the name of the primary: set 'master_name' in "
                "broker_transport_options or result_backend_transport_options"
            )
        for name in ("master_name", "sentinel_kwargs", "min_other_sentinels"):
            options[name] = transport.get(name)
    elif path is not None:
        return f"redis+socket://{quote(path)}", {**options, "db": database}
    netloc = ",".join(f"{url_host(host)}:{port}" for host, port in where)
    return f"{scheme}://{netloc}/{database}", options
