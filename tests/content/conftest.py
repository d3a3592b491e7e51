"""A content store over a memory store that counts calls, with a clock that tests move."""

from __future__ import annotations

from collections import Counter

import pytest

from offload.content.holds import Hold
from offload.content.store import ContentStore
from offload.metrics.counters import Counters
from offload.serializers.choose import Registry
from offload.settings import RetryPolicy, Settings
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock

HOUR = 3600.0


class Counting:
    """One part of a store that counts calls, can be made to fail, and records arguments."""

    def __init__(self, inner, calls):
        self._inner = inner
        self.calls = calls
        self.fail = None
        self.asked = []

    def __getattr__(self, name):
        method = getattr(self._inner, name)

        if not callable(method):
            return method

        def call(*args, **kwargs):
            self.calls[name] += 1
            self.asked.append((name, *args))
            if self.fail is not None:
                self.fail(name, *args)
            return method(*args, **kwargs)

        return call


class CountingStore:
    """A memory store that counts calls; each is one round trip."""

    def __init__(self, clock):
        self.raw = MemoryStore("test", clock=clock)
        self.url = self.raw.url
        self.calls = Counter()
        self.blobs = Counting(self.raw.blobs, self.calls)
        self.pointers = Counting(self.raw.pointers, self.calls)
        self.leases = self.raw.leases

    @property
    def stored(self):
        """The raw blobs, to be read and altered directly."""
        return self.raw.state.blobs

    def replace(self, digest, content):
        self.stored[digest].content = bytes(content)


class Parts:
    """A content store and all its parts."""

    def __init__(self, *, accept=("json", "pickle"), **settings):
        settings.setdefault("retry", RetryPolicy(max_retries=3, interval_start=1.0))
        self.clock = FakeClock(1_700_000_000.0)
        self.store = CountingStore(self.clock)
        self.settings = Settings(**settings)
        self.counters = Counters()
        self.slept = []
        self.content = self.another(accept=accept)

    def another(self, *, accept=("json", "pickle"), **settings):
        """Return a second content store over the same store, as another process has one."""
        return ContentStore(
            self.store,
            Registry(accept),
            Settings(**settings) if settings else self.settings,
            self.counters,
            clock=self.clock,
            sleep=self.slept.append,
        )

    def put(self, value, native="json", ttl=HOUR):
        return self.content.writer.put(value, celery_serializer=native, hold=Hold(ttl))

    def uploads(self, value, native="json"):
        """Store *value*; return how many blobs that uploaded."""
        before = self.counters.snapshot()["blobs_uploaded"]
        self.put(value, native)
        return self.counters.snapshot()["blobs_uploaded"] - before


@pytest.fixture
def parts():
    return Parts()


@pytest.fixture
def make_parts():
    return Parts
