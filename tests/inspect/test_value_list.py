"""The values of a store, recognized among its blobs."""

from __future__ import annotations

import os
import struct

import numpy as np
import orjson
import pytest

from offload.content.holds import Hold
from offload.digest import digest_of
from offload.inspect.snapshot import take_snapshot
from offload.inspect.value_list import ValueQuery, describe_holders, list_values
from tests.support.wire import make_wire


@pytest.fixture
def hook(request):
    return make_wire(store=f"memory://values-{os.getpid()}-{request.node.name}").app._offload


def listed(hook, before=None, **options):
    store = hook.store
    return list_values(store, take_snapshot(store), before, cipher=hook.content.cipher, **options)


def found(values, **query):
    return values.select(ValueQuery(**query), 0, 100)[0]


def test_values_are_listed_without_their_chunks(hook):
    """Each value is listed once, with type and serialized size, however many chunks it has."""
    text = hook.put("".join(chr(97 + at) * (4 << 20) for at in range(3)))
    array = hook.put(np.arange(100_000))
    values = listed(hook)
    assert len(take_snapshot(hook.store)) == 5
    assert [(each.row.digest, each.type, each.size) for each in found(values)] == [
        (text.digest, "str", text.size),
        (array.digest, "ndarray", array.size),
    ]
    assert (values.count, values.size, values.unread) == (2, text.size + array.size, 0)
    assert values.by_type == {"str": 1, "ndarray": 1}


def test_values_are_chosen_and_sorted(hook):
    """Values are chosen by type, size, and holders, and sorted in both directions."""
    small, large = hook.put("s" * 1000), hook.put("l" * 9000)
    array = hook.put(np.arange(1000))
    hook.store.blobs.release([small.digest], "put", 3600)
    hook.content.holds.add([array], Hold(9e6, "pin:model+1"))
    values = listed(hook)

    def digests(**query):
        return [each.row.digest for each in found(values, **query)]

    assert digests() == [large.digest, array.digest, small.digest]
    assert digests(descending=False) == [small.digest, array.digest, large.digest]
    assert digests(type="NDARR") == [array.digest]
    assert digests(type="none of these") == []
    assert digests(larger_than=8000) == [large.digest, array.digest]
    assert digests(held=False) == [small.digest]
    assert digests(sort="expiry")[0] == small.digest
    assert digests(sort="holders")[0] == array.digest
    assert digests(sort="type")[0] == array.digest
    assert digests(among=[0]) == [values.snapshot.digest(0)]
    assert values.select(ValueQuery(), 1, 1)[1] == 3
    assert len(values.select(ValueQuery(), 1, 1)[0]) == 1


def test_a_blob_is_read_once(hook, monkeypatch):
    """A newer list reads only blobs that the older one didn't know, also if others are gone."""
    first, second = hook.put("f" * 1000), hook.put("s" * 2000)
    before = listed(hook)
    hook.store.blobs.delete([first.digest])
    third = hook.put(np.arange(1000))
    peeked = []
    real = hook.store.blobs.peek
    monkeypatch.setattr(
        hook.store.blobs,
        "peek",
        lambda digests, size: peeked.extend(digests) or real(digests, size),
    )
    values = listed(hook, before)
    assert peeked == [third.digest]
    assert {each.row.digest: each.type for each in found(values)} == {
        second.digest: "str",
        third.digest: "ndarray",
    }


def test_reading_continues(hook):
    """What isn't read in time is counted, and read for the next list."""
    for number in range(5):
        hook.put(f"{number}" * 1000)
    values = listed(hook, seconds=0.0)
    assert (values.count, values.unread) == (0, 5)
    assert found(values) == []
    values = listed(hook, values)
    assert (values.count, values.unread) == (5, 0)


def test_other_blobs_are_no_values(hook):
    """Blobs of others, and damaged ones, aren't listed."""
    hook.store.blobs.put({f"b3:{n:064x}": [os.urandom(500)] for n in range(5)}, 3600)
    values = listed(hook)
    assert (values.count, values.unread) == (0, 0)


def test_a_root_that_claims_too_much_is_no_value(hook):
    """A blob that claims more bytes than fit a list of sizes is left out, and others are listed."""
    for sizes in ([2**63], [2**62] * 3, [2**64 - 1]):
        text = orjson.dumps({"b": sizes, "s": "raw"})
        start = struct.pack("<8sII", b"OFFLOAD1", len(text), 3) + text + b"str"
        root = start + bytes(-len(start) % 64)
        hook.store.blobs.put({digest_of([root]): [b"\0" + root]}, 3600)
    value = hook.put("s" * 1000)
    assert [each.row.digest for each in found(listed(hook))] == [value.digest]


def test_holders_in_words():
    """Holders are counted by kind, and pins are named."""
    holders = ["task:a", "task:b+c", "result:d", "pin:model+3", "put", "task:e", "memo:f", "x:y"]
    assert describe_holders(holders) == (
        "3 tasks, 1 result, 1 publisher, 1 memo result, 1 other holder, pin model"
    )
    assert describe_holders([]) == ""
