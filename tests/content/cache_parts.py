"""Shared parts of the node cache's tests: a counting store, and processes with one cache."""

from __future__ import annotations

import multiprocessing
import traceback
from pathlib import Path

import numpy as np

from offload.content.cache import NodeCache
from offload.content.cache.folder import Folder
from offload.content.holds import Hold
from offload.content.manifest import CHUNK
from offload.content.store import ContentStore
from offload.metrics.counters import Counters
from offload.serializers.choose import Registry
from offload.settings import Settings
from offload.stores.memory import MemoryStore

FORK = multiprocessing.get_context("fork")
MB = 1024**2
HOUR = 3600.0
SECONDS = 60


def noise(size, seed=1):
    """Return an incompressible array of *size* bytes."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


class Blobs:
    """Blobs of a memory store that count reads across forked processes.

    *before* is called with the number of each blob within a read.
    """

    def __init__(self, inner):
        self._inner = inner
        self.reads = FORK.Value("i", 0)
        self.before = lambda number: None

    def get(self, digests, limit):
        for number, digest in enumerate(digests):
            self.before(number)
            with self.reads.get_lock():
                self.reads.value += 1
            yield from self._inner.get([digest], limit)

    def __getattr__(self, name):
        return getattr(self._inner, name)


class Store(MemoryStore):
    def __init__(self):
        super().__init__("cached")
        self.blobs = Blobs(self.blobs)

    def take_reads(self):
        """Return how many blobs were read since the last call."""
        with self.blobs.reads.get_lock():
            reads, self.blobs.reads.value = self.blobs.reads.value, 0
        return reads

    def alter(self, digest):
        blob = self.blobs._inner._state.blobs[digest]
        blob.content = blob.content[:-1] + bytes([blob.content[-1] ^ 1])


class Reader:
    """A content store with a cache, as each process has one."""

    def __init__(self, store, path, *, accept=("json", "pickle"), size=1024 * MB, **options):
        self.counters = Counters()
        folder = {name: options.pop(name) for name in ("shared", "unused") if name in options}
        cache = {
            name: options.pop(name)
            for name in ("verify", "patience", "sleep", "clock")
            if name in options
        }
        self.folder = Folder(path, size, **folder)
        self.cache = NodeCache(self.folder, self.counters, **cache)
        self.content = ContentStore(
            store, Registry(accept), Settings(**options), self.counters, cache=self.cache
        )

    def get(self, ref):
        return self.content.open(ref.wire).get()

    def counted(self):
        """Return the nonzero counters of the cache."""
        return {
            name.removeprefix("cache_"): count
            for name, count in self.counters.snapshot().items()
            if name.startswith("cache_") and count and name != "cache_bytes"
        }


class Machine:
    """One folder and one store, with any number of readers."""

    def __init__(self, path: Path):
        self.path = path
        self.store = Store()
        self._writer = ContentStore(
            self.store, Registry(("json", "pickle")), Settings(), Counters()
        )

    def put(self, value, native="pickle"):
        return self._writer.writer.put(value, celery_serializer=native, hold=Hold(HOUR))

    def reader(self, **options):
        return Reader(self.store, options.pop("path", self.path), **options)

    def names(self):
        """Return the files in the folder except its lock."""
        return {path.name for path in self.path.iterdir() if path.name != "lock"}

    def file(self, ref):
        return self.path / ref.digest.replace(":", "-")

    def part(self, ref):
        return Path(f"{self.file(ref)}.part")


class Child:
    """A forked process that runs *function*; `result` returns or raises its outcome."""

    def __init__(self, function, *args):
        self._answer, theirs = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self._run, args=(theirs, function, args), daemon=True)
        self.process.start()
        theirs.close()

    @staticmethod
    def _run(answer, function, args):
        try:
            answer.send((True, function(*args)))
        except BaseException:
            answer.send((False, traceback.format_exc()))

    def result(self):
        assert self._answer.poll(SECONDS), "the process does not answer"
        good, found = self._answer.recv()
        self.process.join(SECONDS)
        assert good, found
        return found

    def kill(self):
        self.process.kill()
        self.process.join(SECONDS)


CHUNKS = 3
LARGE = CHUNKS * CHUNK
