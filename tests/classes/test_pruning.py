"""Pruning removes old versions, except those still referred to."""

from __future__ import annotations

import pytest

from offload.classes.registry import ClassRegistry
from offload.errors import VersionMissing
from offload.stores import open_store
from offload.stores.memory import MemoryStore
from offload.testing.store import FakeClock
from tests.cli.class_commands import Command, made

DAY = 86400.0


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["memory", "file", "redis"])
def store(request, tmp_path):
    if request.param == "memory":
        return MemoryStore()
    if request.param == "file":
        return open_store(f"file://{tmp_path}")
    return open_store(f"{request.getfixturevalue('redis').url}?prefix=prune-{tmp_path.name}")


@pytest.fixture
def registry(store, clock):
    return ClassRegistry(store, mode="trusted", clock=clock)


def test_old_unreferenced_versions_are_removed(registry, clock):
    """The latest version, tagged versions, and recent ones stay."""
    hashes = []
    for times in range(5):
        hashes.append(registry.push(made("Filter", times)))
        clock.now += 10 * DAY
    registry.tag("Filter", "production", hashes[1])
    would = {record.hash for record in registry.prune(25 * DAY, dry_run=True)}
    assert would == {hashes[0], hashes[2]}
    assert len(registry.versions("Filter")) == 5
    assert {record.hash for record in registry.prune(25 * DAY)} == would
    assert [record.hash for record in registry.versions("Filter")] == [
        hashes[1],
        hashes[3],
        hashes[4],
    ]
    with pytest.raises(VersionMissing):
        ClassRegistry(registry.store, mode="trusted").pull("shop.models.Filter", hashes[0])
    assert registry.prune(25 * DAY) == []


def test_needed_versions_stay(registry, clock):
    """A version stays as long as one that needs it."""
    scope = {"__name__": "shop.models"}
    exec("class Base:\n    pass\nclass Sub(Base):\n    pass\n", scope)
    registry.register(scope["Base"])
    registry.push(scope["Sub"])
    clock.now += 100 * DAY
    assert registry.prune(DAY) == []
    registry.push(made("Sub"))
    clock.now += 100 * DAY
    assert {each.class_name for each in registry.prune(DAY)} == {
        "shop.models.Base",
        "shop.models.Sub",
    }


def test_all_parts_of_a_long_version_are_removed(registry, clock):
    """Pruning a version that is stored in several pointers deletes all of them."""
    scope = {"__name__": "shop.models"}
    exec(f"class Long:\n    words = {'x' * 200_000!r}\n", scope)
    registry.persist_class(scope["Long"])
    assert len(list(registry.store.pointers.names("plugins/"))) > 3
    clock.now += 2 * DAY
    assert len(registry.prune(DAY)) == 1
    assert list(registry.store.pointers.names("plugins/")) == []


def test_unreadable_versions_are_left(registry, clock):
    """Unreadable versions are left for inspection."""
    code_hash = registry.persist_class(made("Filter"))
    [pointer] = registry.store.pointers.names("plugins/")
    registry.store.pointers.swap(pointer, registry.store.pointers.read(pointer), b"altered")
    clock.now += 2 * DAY
    assert registry.prune(DAY) == []
    assert code_hash in next(iter(registry.store.pointers.names("plugins/")))


def test_a_removed_version_is_pushed_again(registry, clock):
    """A process that has the class pushes it again when it sends it."""
    cls = made("Filter")
    registry.register(cls)
    pair = registry.ship(cls)
    clock.now += 2 * DAY
    registry.push(made("Filter", 3))
    assert [each.hash for each in registry.prune(DAY)] == [pair[1]]
    assert registry.ship(cls) == pair
    assert pair[1] in {each.hash for each in registry.versions("Filter")}


def test_the_command_asks_for_an_age():
    """The command requires `--older-than`, and deletes nothing with `--dry-run`."""
    command = Command()
    command.registry.push(made("Filter", 1))
    command.registry.push(made("Filter", 2))
    assert "Missing option '--older-than'" in command("prune", code=2)
    assert command("prune", "--older-than", 1).endswith("deleted 0 versions\n")
    assert len(command.json("prune", "--older-than", 0.000000001, "--dry-run")) == 1
    out = command("prune", "--older-than", 0.000000001)
    assert out.startswith("shop.models.Filter@")
    assert out.endswith("deleted 1 version\n")
