"""Values that contain their own checksum."""

from __future__ import annotations

import hashlib
import random

SUM = 32  # characters


def make(seed, size):
    """Return the value of *seed*: text of about *size* characters that starts with its checksum."""
    body = random.Random(seed).randbytes(max(1, (size - SUM) // 2)).hex()
    return sum_of(body) + body


def sum_of(body):
    return hashlib.blake2b(body.encode(), digest_size=SUM // 2).hexdigest()


def is_right(value, wanted):
    """Whether *value* is intact and has the *wanted* checksum."""
    if isinstance(value, bytes):
        value = value.decode()
    return isinstance(value, str) and value[:SUM] == wanted == sum_of(value[SUM:])


def size_of(rng, most=100_000):
    """Return a random size from 1 kB to 3 MB, rarely more than *most*."""
    if rng.random() < 0.02:
        return rng.randint(1_000_000, 3_000_000)
    return int(1000 * (most / 1000) ** rng.random())
