"""Which store an app uses where none is configured: the Redis that Celery has already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from offload.errors import ConfigurationError
from offload.settings import Settings

__all__ = ("store_urls",)

_REDIS = ("redis", "rediss", "redis+socket", "valkey", "valkeys")


def store_urls(settings: Settings, conf: Any) -> str | Sequence[str]:
    """Return the URL (or URLs) of the store: the one configured, else the result
    backend's Redis, else the broker's.

    Raises ConfigurationError that says what to set.
    """
    if settings.store is not None:
        return settings.store
    candidates = (
        (conf.result_backend, conf.get("result_backend_transport_options")),
        (conf.broker_url, conf.get("broker_transport_options")),
    )
    for url, options in candidates:
        found = _redis_url(url, options or {})
        if found is not None:
            return found
    raise ConfigurationError(
        "no store: neither the result backend nor the broker is Redis. Set offload_store (or "
        "Offload(app, store=…)) to a URL such as redis://localhost:6379/2 or file:///var/lib/offload"
    )


def _redis_url(url: Any, options: Mapping[str, Any]) -> str | None:
    if not isinstance(url, str):
        return None
    first, *others = url.split(";")
    scheme = urlsplit(first).scheme
    if scheme in _REDIS:
        return first.partition("?")[0] + _tls(first)
    if scheme == "sentinel" and options.get("master_name"):
        parts = [urlsplit(one) for one in (first, *others)]
        hosts = ",".join(part.netloc.rpartition("@")[2] for part in parts)
        login = parts[0].netloc.rpartition("@")[0]
        return (
            f"redis+sentinel://{login + '@' if login else ''}{hosts}{parts[0].path}"
            f"?master={options['master_name']}"
        )
    return None


def _tls(url: str) -> str:
    """Return the query's TLS options; others are meant for Celery's own client."""
    query = urlsplit(url).query
    kept = [item for item in query.split("&") if item.startswith("ssl_")]
    return "?" + "&".join(kept) if kept else ""
