"""Sizes and durations as people write them.

Functions that take one accept any string that `parse_size` or `parse_duration` reads. Type
checkers can't parse strings: they know the common ones below, which editors complete. Pass others
through `size` or `duration`, as in ``Offload(app, threshold=size("96 KiB"))``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, Union

from offload.settings.checks import as_seconds, as_size

SizeText = Literal[
    "1k", "2k", "4k", "5k", "8k", "10k", "16k", "20k", "32k", "50k", "64k", "100k", "128k", "200k",
    "250k", "256k", "500k", "512k",
    "1kB", "2kB", "4kB", "5kB", "8kB", "10kB", "16kB", "20kB", "32kB", "50kB", "64kB", "100kB",
    "128kB", "200kB", "250kB", "256kB", "500kB", "512kB",
    "1 kB", "2 kB", "4 kB", "5 kB", "8 kB", "10 kB", "16 kB", "20 kB", "32 kB", "50 kB", "64 kB",
    "100 kB", "128 kB", "200 kB", "250 kB", "256 kB", "500 kB", "512 kB",
    "1KiB", "2KiB", "4KiB", "5KiB", "8KiB", "10KiB", "16KiB", "20KiB", "32KiB", "50KiB", "64KiB",
    "100KiB", "128KiB", "200KiB", "250KiB", "256KiB", "500KiB", "512KiB",
    "1 KiB", "2 KiB", "4 KiB", "5 KiB", "8 KiB", "10 KiB", "16 KiB", "20 KiB", "32 KiB", "50 KiB",
    "64 KiB", "100 KiB", "128 KiB", "200 KiB", "250 KiB", "256 KiB", "500 KiB", "512 KiB",
    "1M", "2M", "4M", "5M", "8M", "10M", "16M", "20M", "32M", "50M", "64M", "100M", "128M", "200M",
    "250M", "256M", "500M", "512M",
    "1MB", "2MB", "4MB", "5MB", "8MB", "10MB", "16MB", "20MB", "32MB", "50MB", "64MB", "100MB",
    "128MB", "200MB", "250MB", "256MB", "500MB", "512MB",
    "1 MB", "2 MB", "4 MB", "5 MB", "8 MB", "10 MB", "16 MB", "20 MB", "32 MB", "50 MB", "64 MB",
    "100 MB", "128 MB", "200 MB", "250 MB", "256 MB", "500 MB", "512 MB",
    "1MiB", "2MiB", "4MiB", "5MiB", "8MiB", "10MiB", "16MiB", "20MiB", "32MiB", "50MiB", "64MiB",
    "100MiB", "128MiB", "200MiB", "250MiB", "256MiB", "500MiB", "512MiB",
    "1 MiB", "2 MiB", "4 MiB", "5 MiB", "8 MiB", "10 MiB", "16 MiB", "20 MiB", "32 MiB", "50 MiB",
    "64 MiB", "100 MiB", "128 MiB", "200 MiB", "250 MiB", "256 MiB", "500 MiB", "512 MiB",
    "1G", "2G", "4G", "5G", "8G", "10G", "16G", "20G", "32G", "50G", "64G", "100G", "128G", "200G",
    "250G", "256G", "500G", "512G",
    "1GB", "2GB", "4GB", "5GB", "8GB", "10GB", "16GB", "20GB", "32GB", "50GB", "64GB", "100GB",
    "128GB", "200GB", "250GB", "256GB", "500GB", "512GB",
    "1 GB", "2 GB", "4 GB", "5 GB", "8 GB", "10 GB", "16 GB", "20 GB", "32 GB", "50 GB", "64 GB",
    "100 GB", "128 GB", "200 GB", "250 GB", "256 GB", "500 GB", "512 GB",
    "1GiB", "2GiB", "4GiB", "5GiB", "8GiB", "10GiB", "16GiB", "20GiB", "32GiB", "50GiB", "64GiB",
    "100GiB", "128GiB", "200GiB", "250GiB", "256GiB", "500GiB", "512GiB",
    "1 GiB", "2 GiB", "4 GiB", "5 GiB", "8 GiB", "10 GiB", "16 GiB", "20 GiB", "32 GiB", "50 GiB",
    "64 GiB", "100 GiB", "128 GiB", "200 GiB", "250 GiB", "256 GiB", "500 GiB", "512 GiB",
]  # fmt: skip
DurationText = Literal[
    "50ms", "100ms", "200ms", "250ms", "500ms",
    "1s", "2s", "3s", "5s", "10s", "15s", "20s", "30s", "45s", "60s", "90s", "120s",
    "1m", "2m", "3m", "5m", "10m", "15m", "20m", "30m", "45m", "60m", "90m",
    "1h", "2h", "3h", "4h", "6h", "8h", "12h", "18h", "24h", "36h", "48h", "72h",
    "1d", "2d", "3d", "4d", "5d", "7d", "10d", "14d", "28d", "30d", "60d", "90d", "180d", "365d",
    "1w", "2w", "3w", "4w",
    "1h30m", "2h30m", "1d12h",
]  # fmt: skip

Size = Union[int, SizeText]
"""A number of bytes, or a string such as ``64 KiB``."""
Duration = Union[float, timedelta, DurationText]
"""A number of seconds, a timedelta, or a string such as ``7d``."""


def size(text: str) -> int:
    """Convert a size such as ``96 KiB`` to bytes. Raises ConfigurationError for other strings."""
    return as_size("size", text)


def duration(text: str) -> float:
    """Convert a duration such as ``36h`` to seconds. Raises ConfigurationError for others."""
    return as_seconds("duration", text, zero=True)
