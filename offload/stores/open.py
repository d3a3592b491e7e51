"""Open the store at a URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from offload.errors import ConfigurationError
from offload.stores.protocols import Store
from offload.stores.url import StoreURL, count
from offload.text import parse_size

Factory = Callable[[StoreURL], Store]

_SMALLEST_CHUNK = 64 << 10
_REDIS = "offload.stores.redis.connect:open_redis"

# Each scheme's factory, imported on first use, so that unused stores need no packages.
_FACTORIES: dict[str, str | Factory] = {
    "memory": "offload.stores.memory:open_memory",
    "file": "offload.stores.file:open_file",
    "redis": _REDIS,
    "rediss": _REDIS,
    "redis+socket": _REDIS,
    "redis+sentinel": _REDIS,
    "rediss+sentinel": _REDIS,
    "redis+cluster": _REDIS,
    "rediss+cluster": _REDIS,
    "valkey": _REDIS,
    "valkeys": _REDIS,
    "valkey+sentinel": _REDIS,
    "valkeys+sentinel": _REDIS,
    "valkey+cluster": _REDIS,
    "valkeys+cluster": _REDIS,
    "s3": "offload.stores.s3.connect:open_s3",
    "sqlite": "offload.stores.sqlite:open_sqlite",
    "fsspec+…": "offload.stores.fsspec:open_fsspec",  # any of its protocols
}
_PACKAGES = {"s3": "boto3", "fsspec": "fsspec"}


def open_store(
    url: str | Sequence[str],
    *,
    tier_sizes: Sequence[int] | None = None,
    tier_options: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Store:
    """Return the store at *url*.

    It connects on first use, so its server may be down now.

    Args:
        url: the store's URL, or a list of the URLs of its tiers; see `offload.stores.tiered`.
        tier_sizes: minimum sizes in bytes of values in the second tier, the third, and so on;
            required for more than two tiers.
        tier_options: options of each tier, in order.
        options: options of a single store, which can also be in the URL's query.

    Options:

    - all forms of Redis: ``prefix`` of all keys (default ``offload``), ``socket_timeout``
      and ``socket_connect_timeout`` in seconds, ``max_connections``, ``ssl_ca_certs`` and
      others; see `offload.stores.redis.connect.open_redis`.
    - ``s3``: ``endpoint_url``, ``region``, ``profile``, ``sse`` and others; see
      `offload.stores.s3.connect.open_s3`.
    - ``fsspec+PROTOCOL``: see `offload.stores.fsspec.open_fsspec`.
    - ``chunk_size``, for all stores: maximum bytes of a chunk, for servers and proxies with a limit
      (at least 65536; the default, 4 MiB, is the maximum). Publishers and workers need the same.
    - ``file``: ``mode`` (such as ``0660``), ``skew`` and ``lock_timeout`` in seconds; see
      `offload.stores.file.FileStore`.
    - ``sqlite``: ``mode``, ``timeout`` in seconds, ``fsync``; see
      `offload.stores.sqlite.SQLiteStore`.

    Raises:
        ConfigurationError: if the scheme or an option is unknown or invalid; the message lists
            the valid ones.
    """
    urls = [url] if isinstance(url, str) else list(url)
    if len(urls) != 1:
        return _open_tiers(urls, tier_sizes, tier_options, options)
    location = StoreURL(urls[0], {**options, **(tier_options[0] if tier_options else {})})
    factory = _factory(location)
    if isinstance(factory, str):
        module, _, name = factory.partition(":")
        factory = getattr(import_module(module), name)
    chunk_size = location.take_common("chunk_size", _chunk_size, None)
    store = factory(location)
    location.finish()
    if chunk_size is not None:
        vars(store)["chunk_size"] = chunk_size  # see chunk_size_of
    return store


def _factory(location: StoreURL) -> str | Factory:
    base, plus, _ = location.scheme.partition("+")
    factory = _FACTORIES.get(location.scheme) or _FACTORIES.get(f"{base}{plus}…")
    if factory is None:
        near = get_close_matches(location.scheme, _FACTORIES, n=1)
        known = ", ".join(f"{scheme}://" for scheme in sorted(_FACTORIES))
        hint = f"did you mean {near[0]}://?" if near else f"known: {known}"
        raise ConfigurationError(f"no store handles URLs with {location.scheme}://; {hint}")
    return factory


def check_url(url: str) -> None:
    """Raise ConfigurationError if `open_store` certainly couldn't open *url*.

    Imports no driver, so it doesn't check options; opening the store does.
    """
    location = StoreURL(url)
    _factory(location)
    package = _PACKAGES.get(location.scheme.partition("+")[0])
    if package is not None and find_spec(package) is None:
        open_store(url)  # its error says what to install


def _chunk_size(value: Any) -> int:
    size = parse_size(value) if isinstance(value, str) else count(value)
    if size is None or size < _SMALLEST_CHUNK:
        raise ValueError(f"at least {_SMALLEST_CHUNK} bytes, a number or a string such as 1MiB")
    return size


def _open_tiers(
    urls: list[str],
    sizes: Sequence[int] | None,
    tier_options: Sequence[Mapping[str, Any]] | None,
    options: dict[str, Any],
) -> Store:
    if not urls:
        raise ConfigurationError("a store is one URL or several, not an empty list")
    if options:
        raise ConfigurationError(
            f"{', '.join(sorted(options))}: with several stores, pass options in the URL of "
            "each, or as tier_options"
        )
    from offload.stores.tiered import TieredStore
    from offload.stores.tiered.store import SIZES

    each = tier_options or [{}] * len(urls)
    if len(each) != len(urls):
        raise ConfigurationError(f"{len(urls)} stores need {len(urls)} dicts of options")
    first, *lower = (open_store(url, **given) for url, given in zip(urls, each, strict=True))
    return TieredStore(first, lower, SIZES if sizes is None else sizes)


def register_scheme(scheme: str, factory: Factory) -> None:
    """Make `open_store` use *factory* for URLs that start with ``scheme://``.

    Args:
        factory: receives a `StoreURL`, takes its options from it, and returns the store.
    """
    _FACTORIES[scheme] = factory
