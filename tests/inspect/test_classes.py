"""Classes in a store, as operators see them."""

from __future__ import annotations

import pytest

from offload.classes.listing import OUT_OF_SYNC, SYNCED, UNTRACKED
from offload.classes.versions import PointerNames
from offload.inspect.classes import MOST, classes_of, history_of
from tests.cli.class_commands import HMAC, Command, made

OTHER = "hmac:another secret that is long enough"


def history(registry, name="shop.models.Filter"):
    """Return the versions of one of the listed classes."""
    [state] = [each for each in classes_of(registry) if each.name == name]
    return history_of(registry, state)


@pytest.fixture
def command():
    return Command(code="signed", signing_key=HMAC)


def test_the_status_of_local_classes(command):
    """Local classes are synced, out of sync, or not in the store; others have no status."""
    registry = command.registry
    for name in ("Pushed", "Changed", "New"):
        registry.register(made(name))
    registry.push_all([each for each in registry.registered if each.__name__ != "New"])
    registry.push(made("Theirs"))
    registry.register(made("Changed", times=3))
    found = {each.name.rpartition(".")[2]: each for each in classes_of(registry)}
    assert {name: each.status for name, each in found.items()} == {
        "Changed": OUT_OF_SYNC,
        "New": UNTRACKED,
        "Pushed": SYNCED,
        "Theirs": "",
    }
    assert found["New"].latest is None
    assert len(found["Pushed"].versions) == 1
    assert found["Pushed"].tags == ()
    assert found["Pushed"].signer.startswith("this process")
    assert not any(each.refused for each in found.values())


def test_refused_classes_have_a_reason(command):
    """A class signed by nobody trusted here, or without a valid record, is refused; nothing is if
    no code is loaded.
    """
    command.registry.push(made("Signed"))
    command.registry.push(made("Broken"))
    command.change(PointerNames("shop.models.Broken").latest, b"<script>")
    other = command.another(code="signed", signing_key=OTHER).registry
    broken, signed = classes_of(other)
    assert "isn't a class record" in broken.broken
    assert broken.latest is None
    assert "not among offload_verify_keys" in signed.refused
    assert "not verified" in signed.signer
    off = command.another(code="off").registry
    assert [each.refused for each in classes_of(off)][1] == ""


def test_all_versions_of_a_class(command):
    """Versions are listed newest first, with tags, the local one, and an altered one."""
    registry = command.registry
    clock = iter(range(1000, 2000))
    registry._versions.clock = lambda: float(next(clock))
    first, second, third = (made("Filter", times=n) for n in (1, 2, 3))
    hashes = [registry.push(each) for each in (first, second, third)]
    registry.tag("shop.models.Filter", "stable", hashes[0])
    registry.register(second)
    command.change(PointerNames("shop.models.Filter").version(hashes[2]), b"nothing of ours")
    report = history(registry)
    found = {each.hash: each for each in report.versions}
    assert [each.hash for each in report.versions] == [hashes[1], hashes[0], hashes[2]]
    assert [found[each].tags for each in hashes] == [("stable",), (), ("latest",)]
    assert [found[each].here for each in hashes] == [False, True, False]
    assert found[hashes[2]].record is None
    assert found[hashes[2]].refused == "the stored record can't be read"
    assert not found[hashes[0]].refused
    assert (report.left_off, report.broken) == (0, ())


def test_missing_classes(command):
    """A class that is only registered has no versions; a broken tag hides no others."""
    command.registry.register(made("New"))
    assert history(command.registry, "shop.models.New").versions == ()
    code_hash = command.registry.push(made("Filter"))
    command.registry.tag("shop.models.Filter", "stable", code_hash)
    command.change(PointerNames("shop.models.Filter").tag("stable"), b"{}")
    report = history(command.registry)
    assert [(each.hash, each.tags) for each in report.versions] == [(code_hash, ("latest",))]
    assert report.broken == ("stable",)


def test_a_class_that_is_removed_meanwhile(command):
    """A class that is removed meanwhile is reported as missing."""
    command.registry.push(made("Filter"))
    [state] = classes_of(command.registry)
    command.registry.push(made("Filter", times=9))
    command.registry.prune(-1)
    [version] = history_of(command.registry, state).versions
    assert version.record is None
    assert version.refused


def test_very_many_versions(command, monkeypatch):
    """The list is limited and says how many more versions there are."""
    monkeypatch.setattr("offload.inspect.classes.MOST", 3)
    assert MOST > 3
    for times in range(5):
        command.registry.push(made("Filter", times=times))
    report = history(command.registry)
    assert (len(report.versions), report.left_off) == (3, 2)
