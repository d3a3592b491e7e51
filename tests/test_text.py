"""Sizes and durations are parsed by exact rules, and formatted in one style."""

from __future__ import annotations

import pytest

from offload.text import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    (
        ("0", 0),
        ("65536", 65_536),
        ("1 B", 1),
        ("64k", 64_000),
        ("64K", 64_000),
        ("64 kB", 64_000),
        ("64Ki", 65_536),
        ("64 kib", 65_536),
        ("1.5MB", 1_500_000),
        ("1.1kB", 1100),
        ("1.0001 KiB", 1024),
        ("2TiB", 2 << 40),
    ),
)
def test_sizes(text, size):
    """Units are powers of 1000, with ``i`` of 1024; fractions of a byte are dropped."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    (
        "",
        "k",
        "1.5",
        "1.5B",
        "64q",
        "64ib",
        "64  k",
        " 64k",
        "64k\n",
        "-1",
        "1e3",
        "1_000",
        "\u0663k",
    ),
)
def test_other_texts_are_no_sizes(text):
    """A sign, an exponent, other units, digits, or spaces, and half a byte are refused."""
    assert parse_size(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    (
        ("0s", 0),
        ("250ms", 0.25),
        ("90s", 90),
        ("5m", 300),
        ("5 min", 300),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1m30ms", 60.03),
        ("1w 2d 3h 4min 5s 6ms", 788_645.006),
        ("36500d", 3_153_600_000),
    ),
)
def test_durations(text, seconds):
    """Numbers with units add up."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    (
        "",
        " ",
        "7",
        "h",
        "7D",
        "1d1d",
        "30m1h",
        "1h30",
        "1d  5s",
        "1h ",
        " 1h",
        "36501d",
        "-1s",
        "5m s",
    ),
)
def test_other_texts_are_no_durations(text):
    """A number without a unit, a unit in the wrong order or twice, other spaces, and more than 100
    years are refused.
    """
    assert parse_duration(text) is None
