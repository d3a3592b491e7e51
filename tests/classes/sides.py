"""Two processes that share a store, simulated in one: each has its own registry and serializers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from offload.classes.registry import ClassRegistry
from offload.classes.shipping import Shipping
from offload.errors import StoreUnavailable
from offload.metrics.counters import Counters
from offload.serializers import Registry
from tests.classes.conftest import Counting, CountingStore

CELLS = Path(__file__).with_name("cells.py")


def cells():
    """Return the definitions of `tests.classes.cells`, executed again in ``__main__``."""
    before, module = sys.modules["__main__"], ModuleType("__main__")
    sys.modules["__main__"] = module  # pydantic resolves annotations here
    try:
        exec(compile(CELLS.read_text(), str(CELLS), "exec"), vars(module))
    finally:
        sys.modules["__main__"] = before
    return vars(module)


class Pointers(Counting):
    """Pointers that count calls, of a store that can be made unavailable."""

    away = False

    def __getattr__(self, name):
        if self.away:
            raise StoreUnavailable("the store is away")
        return super().__getattr__(name)


class Side:
    """The parts of a process that deal with code."""

    def __init__(self, store, *, accept=("json",), mode="trusted", **options):
        self.store = CountingStore(store)
        self.store.pointers = Pointers(store.pointers)
        self.counters = Counters()
        self.registry = ClassRegistry(self.store, mode=mode, counters=self.counters, **options)
        self.code = Shipping(self.registry)
        self.serializers = Registry(accept, self.code)

    @property
    def calls(self):
        """Return the calls to the store's pointers."""
        return self.store.pointers.calls

    @property
    def written(self):
        """Return the names of the pointers that were written."""
        return [call[1] for call in self.calls if call[0] == "swap"]

    def write(self, value, native="json"):
        return self.serializers.encode(value, native)

    def read(self, payload):
        buffers = [memoryview(bytearray(view)) for view in payload.buffers]
        return self.serializers.decode(payload.serializer, payload.head, buffers)


def content(payload):
    """Return all bytes of a serialized value."""
    return payload.head + b"".join(map(bytes, payload.buffers))
