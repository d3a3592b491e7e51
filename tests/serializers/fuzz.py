"""Feed hostile input to every decoder and watch what the process does: those of values, of
registered types, and of all else that stores and messages contain (`fuzz_records`).

This is a program, because an audit hook stays for the rest of a process. It prints what went wrong.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import resource
import subprocess
import sys
import traceback
from contextlib import suppress
from decimal import Decimal
from importlib import import_module
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pandas as pd
import polars as pl
import pyarrow as pa
import scipy.sparse as sp
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from offload import register_type
from offload.classes.hashing import identify
from offload.classes.scope import Scope
from offload.content.encoding import decode, decode_prefix
from offload.content.manifest import pack, read_prefix, read_root
from offload.errors import OffloadError
from offload.inspect.preview import preview
from offload.serializers import Registry
from offload.stores.memory import MemoryStore
from tests.classes.sides import Side
from tests.serializers.fuzz_records import KEYS, RECORDS, SEALED
from tests.serializers.test_hostile import CLAIMS, EXPANDED, SAMPLES

ROUNDS = int(os.environ.get("OFFLOAD_FUZZ_ROUNDS", "500"))
MOST = 600 << 20
"""Bytes by which the process may grow: far less than what inputs claim."""
FORBIDDEN = (
    *("compile", "exec", "subprocess", "os.system", "os.exec", "os.posix_spawn", "os.spawn"),
    *("os.fork", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link"),
    *("os.symlink", "os.truncate", "shutil", "socket", "ctypes", "pickle.find_class", "marshal"),
    *("code.__new__", "function.__new__", "sys.settrace", "sys.setprofile", "urllib", "ftplib"),
)
SHIPPED = """
class Point:
    def __init__(self, x=0): self.x = x
    def double(self): return 2 * self.x
    @classmethod
    def of(cls, x): return cls(x)
def scale(n): return n
"""
TAGS = (
    *("int", "float", "complex", "Decimal", "UUID", "timedelta", "date", "time", "datetime"),
    *("timezone", "ZoneInfo", "pytz", "Fraction", "range", "path", "address", "json", "raw"),
    *("tuple", "dict", "set", "frozenset", "slice", "deque", "OrderedDict", "Counter"),
    *("defaultdict", "numpy", "pandas", "polars", "pyarrow", "shipped", "code", "object"),
    *("again", "alias", "partial", "bound", "type", "itemgetter", "import", "registered"),
    *("__class__", "eval"),
)
EDGES = (
    *(None, True, 0, 1, -1, 2**31, 2**63 - 1, -(2**63), 10**18, 1.5, 1e308, "", "a", "nan", "S0"),
    *("|O", "O", "<U0", "<f8", "M8[ns]", "0x" + "f" * 99, "1e999999999", "AAAA", "new", "call"),
    *("eval", "to_csv", "query", "__init__", "__class__", "__globals__", "mro", "os.system"),
    *("../../etc/passwd", "/etc/passwd", "Europe/Berlin", [], {}, [[]], {"a": 1, "b": 2}),
)


class Item(BaseModel):
    """A model whose fields pydantic converts."""

    count: int = 0
    rows: list[float] = []
    price: Decimal = Decimal(1)
    more: dict[str, set[int]] = {}


REGISTERED = (
    [Item(rows=[1.5], more={"a": {1}})],
    [xr.DataArray(np.arange(6.0).reshape(2, 3), coords={"x": [1, 2]}, dims=("x", "y"))],
    [sp.csr_array(np.eye(3)), sp.coo_array(np.eye(3)), sp.lil_array(np.eye(3))],
    [sp.dia_array(np.eye(3)), sp.dok_array(np.eye(3)), sp.bsr_array(np.eye(4))],
    [Image.new("P", (3, 2))],
)
"""Values of registered types."""

armed = False
seen: list[str] = []


def watch(event, args):
    if not armed:
        return
    if event.startswith(FORBIDDEN):
        seen.append(f"{event} {args!r:.200}")
    if event == "open":
        _path, mode, flags = args
        if (mode and set(mode) & set("wax+")) or (
            flags and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            seen.append(f"{event} {args!r:.200}")
    if event == "import" and not str(args[0]).startswith(("pytz", "tzdata")):
        seen.append(f"{event} {args!r:.200}")


def guarded(what, call):
    """Call and allow only offload's own errors and no action but building data."""
    global armed
    armed = True
    try:
        call()
    except OffloadError:
        pass
    except BaseException as exc:
        armed = False
        traceback.print_exc()
        raise SystemExit(f"{type(exc).__name__} from {what!r:.2000}") from exc
    finally:
        armed = False
    if seen:
        raise SystemExit(f"{seen} from {what!r:.2000}")


def paths(node, path=()):
    yield path
    items = node.items() if type(node) is dict else enumerate(node) if type(node) is list else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def mutated(chance, node, others):
    """Return a copy of a node with one or a few parts replaced."""
    root = [copy.deepcopy(node)]
    for _ in range(chance.choice((1, 1, 2, 4))):
        path = chance.choice(list(paths(root))[1:])
        at = root
        for step in path[:-1]:
            at = at[step]
        other = chance.choice(others)
        inner = chance.choice([place for place, _ in zip(paths(other), range(50), strict=False)])
        for step in inner:
            other = other[step]
        change = chance.randrange(5)
        if change == 0:
            at[path[-1]] = copy.deepcopy(other)
        elif change == 1:
            at[path[-1]] = copy.deepcopy(chance.choice(EDGES))
        elif change == 2:
            at[path[-1]] = {chance.choice(TAGS): at[path[-1]]}
        elif change == 3 and type(at) is list:
            at.insert(path[-1], copy.deepcopy(chance.choice(EDGES)))
        elif type(at) is dict:
            at[chance.choice(TAGS)] = at.pop(path[-1])
    return root[0]


def main():
    data = Registry({"json", "msgpack", "yaml"})
    names = {"__name__": "__main__"}
    exec(SHIPPED, names)
    sides = {mode: Side(MemoryStore(), mode=mode) for mode in ("off", "trusted")}
    pairs = [
        [f"__main__.{name}", sides["trusted"].registry.push(names[name])]
        for name in ("Point", "scale")
    ]
    register_type(Item, name="Item")
    shipped = [
        {"object": ["new", 0, 1, None, None, {"dict": [["x"], [{"again": 1}]]}]},
        {"object": ["call", {"bound": [{"code": 0}, "of"]}, 0, {"tuple": [1]}]},
        [{"partial": [{"code": 1}, {"tuple": [1]}, {"dict": [[], []]}]}, {"code": 0}],
    ]
    frame = orjson.loads(data.encode(pd.DataFrame({"a": [1]}), "json").head)
    run = identify(subprocess.run, Scope()).hash
    options = {
        "dict": [["local_dict", "global_dict", "engine"], [{"dict": [[], []]}] * 2 + ["python"]]
    }
    calls = [
        {"object": ["call", {"bound": [frame, "eval"]}, 0, {"tuple": ["1 + 1"]}, options]},
        {"object": ["call", {"bound": [frame, "to_csv"]}, 0, {"tuple": [os.devnull]}]},
    ]
    gadgets = [*calls, *({"shipped": [pairs, call]} for call in calls)]
    call = {"object": ["call", {"code": 0}, 0, {"tuple": [["true"]]}]}
    gadgets.append({"shipped": [[["subprocess.run", run]], call]})
    payloads = [data.encode(value, "json") for value in (*SAMPLES.values(), *REGISTERED)]
    payloads += [data.encode(SAMPLES["json"], native) for native in ("msgpack", "yaml")]
    trees = [(orjson.loads(p.head), list(p.buffers)) for p in payloads if p.serializer == "tree"]
    trees += [({"shipped": [pairs, node]}, []) for node in shipped]
    trees += [(node, []) for node in (*CLAIMS.values(), *EXPANDED.values(), *gadgets)]
    others = [node for node, _ in trees] + [{tag: []} for tag in TAGS]
    readers = [data, *(side.serializers for side in sides.values())]

    def read(node, buffers):
        head = orjson.dumps(node)
        for reader in readers:
            fresh = [memoryview(bytearray(b)) for b in buffers]
            guarded(node, lambda r=reader, f=fresh: r.decode("tree", head, f))
        guarded(node, lambda: preview("tree", head, [], lambda *_: b"x" * 100, 200))

    for node, buffers in trees:  # imported or created on first use
        for reader in readers:
            try:
                reader.decode(
                    "tree", orjson.dumps(node), [memoryview(bytearray(b)) for b in buffers]
                )
            except OffloadError:
                continue
    for kind in ("Europe/Berlin", "UTC"):
        pd.Timestamp(0, tz=kind)
    repr([pl.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}), pa.table({"a": [1]}), np.ones(3)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for node, buffers in trees:
        read(node, buffers)
    chance = random.Random(os.environ.get("OFFLOAD_FUZZ_SEED", "1"))
    for _ in range(ROUNDS):
        node, buffers = chance.choice(trees)
        read(mutated(chance, node, others), buffers)

    scalars = st.sampled_from(EDGES)
    nodes = st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(TAGS), inner, min_size=1, max_size=1)
            | st.builds(lambda body: {"object": ["call", *body]}, st.lists(inner, max_size=4))
            | st.builds(lambda body: {"bound": body}, st.lists(inner, min_size=2, max_size=2))
        ),
        max_leaves=12,
    )
    quick = settings(
        max_examples=ROUNDS // 3,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    @quick
    @given(nodes, st.lists(st.binary(max_size=40), max_size=2))
    def trees_of_any_shape(node, buffers):
        read(node, buffers)
        read({"shipped": [pairs, node]}, buffers)

    serializers = ("raw", "json", "native:json", "native:msgpack", "native:yaml", "tree", "pickle")

    @quick
    @given(st.sampled_from(payloads), st.sampled_from(serializers), st.randoms())
    def bytes_of_any_value(payload, serializer, at):
        parts = [bytearray(payload.head), *(bytearray(b[:4096]) for b in payload.buffers)]
        for _ in range(at.choice((1, 3))):
            part = at.choice(parts)
            if part:
                part[at.randrange(len(part))] = at.randrange(256)
        name = at.choice((payload.serializer, serializer))
        views = list(map(memoryview, parts[1:]))
        guarded((name, parts), lambda: data.decode(name, parts[0], views))

    roots = [(b"".join(pack(p).root), p.size) for p in payloads if p.size < 1 << 16]

    @quick
    @given(st.sampled_from(roots), st.randoms())
    def roots_and_references(sample, at):
        root, size = bytearray(sample[0]), sample[1]
        for _ in range(at.choice((1, 2))):
            root[at.randrange(min(len(root), 200))] = at.randrange(256)
        stored = bytes([at.choice((0, 1, 2))]) + bytes(root)
        for call in (
            lambda: read_root(memoryview(root), size=size, where="it"),
            lambda: read_root(memoryview(root), size=None, where="it"),
            lambda: read_prefix(bytes(root)),
            lambda: decode(stored, 1 << 20, "it"),
            lambda: decode_prefix(stored, 1 << 16),
            lambda: KEYS.open(f"offload:1?{bytes(root[:80]).decode('latin-1')}&m={'0' * 32}"),
        ):
            guarded(bytes(root), call)

    others += EDGES
    for _ in range(ROUNDS):
        sample, decode_it = chance.choice(RECORDS)
        node = mutated(chance, sample, others)
        guarded(node, lambda d=decode_it, n=node: d(n))
    for _ in range(ROUNDS):
        sample, decode_it = chance.choice(SEALED)
        content = bytearray(sample[: chance.choice((len(sample), chance.randrange(len(sample))))])
        if content:
            content[chance.randrange(min(len(content), 40))] = chance.randrange(256)
        guarded(content, lambda d=decode_it, c=bytes(content): d(c))

    trees_of_any_shape()
    bytes_of_any_value()
    roots_and_references()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > MOST:
        raise SystemExit(f"it grew by {grown >> 20} MiB")
    print("nothing but data was made")


if __name__ == "__main__":
    logging.disable()
    for name in ("Nowhere", "Europe/Nowhere", "Europe/Berlin", "UTC"):
        with suppress(LookupError):
            ZoneInfo.no_cache(name)
    with suppress(ImportError):
        import_module("pytz")
    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    main()
