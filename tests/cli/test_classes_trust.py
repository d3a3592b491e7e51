"""What ``celery offload classes`` reports about loading, and what it loads."""

from __future__ import annotations

import pickle
import re
import sys
from dataclasses import replace
from types import ModuleType

from offload import ClassRegistry
from offload.classes.keys import generate
from offload.classes.versions import PointerNames, StoredVersion
from tests.cli.class_commands import HMAC, made
from tests.support.payload import Payload


class TestShow:
    def test_a_version(self, command):
        """show prints everything about a version: dependencies, tags, and other versions."""
        base = made("Base")
        scope = {"Base": base, "__name__": "shop.models"}
        exec("class Filter(Base): pass", scope)
        command.registry.register(base)
        command.registry.register(scope["Filter"])
        (done, _) = command.json("push", "Filter", "Base")
        command("tag", "Filter", "good", done["hash"])
        found = command.json("show", "Filter", "--tag", "good")
        (record,) = command.registry.versions("Filter")
        assert found["hash"] == record.hash == done["hash"]
        assert found["tags"] == ["good", "latest"]
        assert (found["name"], found["kind"]) == ("shop.models.Filter", "class")
        assert (found["python"], found["bytes"]) == (record.python, record.size)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["created"])
        need = {"name": "shop.models.Base", "hash": command.registry.get_class_hash(base)}
        assert found["needs"] == [need]
        assert (found["loads_here"], found["signature"]) == (True, None)
        assert [each["hash"] for each in found["versions"]] == [record.hash]
        lines = command("show", "Filter").splitlines()
        assert lines[2].split() == ["hash", record.hash[:12]]
        assert lines[-1].split()[0] == record.hash[:12]
        assert f"needs       shop.models.Base@{need['hash'][:12]}" in lines
        assert record.hash not in command.out

    def test_why_it_would_not_be_loaded(self, command, versions):
        """show names the reason why this process wouldn't load a version: off, unsigned, or not
        allowed, also of a dependency alone.
        """
        off = command.another(code="off").json("show", "Filter")
        assert not off["loads_here"]
        assert "offload_code is 'off'" in off["why_not"]
        signed = command.another(code="signed", signing_key=HMAC)
        assert "no: latest of shop.models.Filter@" in signed("show", "Filter")
        allowed = command.another(code_allow=["shop.models.Sub"])
        scope = {"Filter": made("Filter"), "__name__": "shop.models"}
        exec("class Sub(Filter): pass", scope)
        allowed.registry.register(scope["Filter"])
        allowed.registry.push(scope["Sub"])
        found = allowed.json("show", "Sub")
        assert "Filter@" in found["why_not"]
        assert "no pattern of offload_code_allow" in found["why_not"]

    def test_another_python(self, command, versions, monkeypatch):
        """show names both Pythons."""
        monkeypatch.setattr("offload.classes.loading.python_tag", lambda: "cpython-399")
        found = command.json("show", "Filter")
        assert not found["loads_here"]
        assert found["python"] in found["why_not"]
        assert "cpython-399" in found["why_not"]

    def test_the_newest_without_a_latest(self, command):
        """Without a latest, as of classes that messages stored, show prints the newest version."""
        command.registry.persist_class(made("Sent", 2))
        newest = command.registry.persist_class(made("Sent", 3))
        found = command.json("show", "Sent")
        assert (found["hash"], found["tags"], found["loads_here"]) == (newest, [], True)

    def test_hash_and_tag_are_exclusive(self, command):
        """Hash and tag together are a usage error."""
        for name in ("show", "pull"):
            message = command(name, "Filter", "--hash", "0" * 8, "--tag", "good", code=2)
            assert "use --hash or --tag, not both" in message
            assert "not a tag" in command(name, "Filter", "--tag", "a/b", code=2)


class TestPull:
    def test_a_version_by_hash_and_by_tag(self, command, versions):
        """pull loads the latest by default, or a version by hash or tag."""
        command("tag", "Filter", "good", versions[0])
        shown = [
            command("pull", "Filter", *words)
            for words in ((), ("--tag", "good"), ("--hash", versions[0][:8]))
        ]
        assert shown == [
            f"loaded class shop.models.Filter@{each[:12]}, signed by nobody\n"
            for each in (versions[1], versions[0], versions[0])
        ]

    def test_a_version_under_a_wrong_hash(self, command, versions):
        """pull loads the version from the store even if this process has the class, so that wrong
        code is found.
        """
        command.registry.register(made("Filter", 3))
        other = command.registry.stored("Filter", versions[0])
        there = command.hook.store.pointers.read(
            PointerNames("shop.models.Filter").version(versions[1])
        )
        record = replace(other.record, hash=versions[1])
        assert command.registry._versions.storage.put(StoredVersion(record, other.content), there)
        assert "the stored code has the hash" in command("pull", "Filter", code=1)

    def test_a_missing_import(self, command, monkeypatch):
        """A missing import is reported in one line, without a traceback."""
        missing = ModuleType("shop_parts")
        missing.Part = made("Part", module="shop_parts")
        monkeypatch.setitem(sys.modules, "shop_parts", missing)
        filter_ = made("Filter")
        filter_.part = missing.Part
        command.registry.push(filter_)
        monkeypatch.delitem(sys.modules, "shop_parts")
        message = command("pull", "Filter", code=1)
        assert message.startswith("Error: ")
        assert "shop.models.Filter@" in message
        assert "No module named 'shop_parts'; install it here, or" in message
        assert len(message.splitlines()) == 1

    def test_the_pickle_is_written_and_not_run(self, command, versions, tmp_path):
        """The pickle is written without being run, also where nothing may be loaded; an altered one
        isn't written.
        """
        off = command.another(code="off")
        assert "offload_code is 'off'" in off("pull", "Filter", code=1)
        target = tmp_path / "filter.pkl"
        message = off("pull", "Filter", "--hash", versions[0][:8], "--output", target)
        assert message.startswith("wrote ")
        assert target.read_bytes() == off.registry.stored("Filter", versions[0]).content
        assert off.json("pull", "Filter", "--output", target)["output"] == str(target)
        assert "No such file" in off("pull", "Filter", "--output", tmp_path / "a" / "b", code=1)

        pointer = PointerNames("shop.models.Filter").version(versions[0])
        content = bytearray(command.hook.store.pointers.read(pointer))
        content[20] ^= 1
        command.change(pointer, bytes(content))
        target.unlink()
        words = ("pull", "Filter", "--hash", versions[0], "--output", target)
        assert "was altered" in command(*words, code=1)
        assert not target.exists()


class TestVerify:
    def test_every_version_is_reported(self, command, versions):
        """verify reports the latest of all or of the named classes; with --all-versions every tag
        and version.
        """
        command.registry.push(made("One"))
        command("tag", "Filter", "good", versions[0])
        found = command.json("verify")
        assert [each["name"] for each in found["versions"]] == [
            "shop.models.Filter",
            "shop.models.One",
        ]
        assert (found["ok"], found["refused"]) == (2, 0)
        found = command.json("verify", "Filter", "--all-versions")
        assert [each["what"] for each in found["versions"]] == [
            "latest",
            "tag good",
            "version",
            "version",
        ]
        assert command("verify", "One").splitlines()[-1] == "1 ok, 0 refused"

    def test_refused_versions_exit_with_1(self, command, tmp_path):
        """Altered bytes, a class's pointer in place of another's, and a tag signed by somebody else
        are each reported, exit with 1, and run nothing.
        """
        signed = command.another(code="signed", signing_key=HMAC)
        for name in ("Bad", "Filter", "Good", "Swapped"):
            signed.registry.push(made(name))
        bad = signed.registry.versions("Bad")[0]
        pointer = PointerNames("shop.models.Bad").version(bad.hash)
        written = tmp_path / "written"
        payload = pickle.dumps(Payload(written))
        content = command.hook.store.pointers.read(pointer)
        command.change(pointer, payload.ljust(bad.size, b".") + content[bad.size :])
        pointers = command.hook.store.pointers
        command.change(
            PointerNames("shop.models.Swapped").latest,
            pointers.read(PointerNames("shop.models.Good").latest),
        )
        command("tag", "Filter", "mine", signed.registry.versions("Filter")[0].hash)

        found = signed.json("verify", code=1)
        verdicts = {each["name"].rpartition(".")[2]: each for each in found["versions"]}
        assert {name: each["ok"] for name, each in verdicts.items()} == {
            "Bad": False,
            "Filter": True,
            "Good": True,
            "Swapped": False,
        }
        assert "was altered" in verdicts["Bad"]["why"]
        assert "another record was moved there" in verdicts["Swapped"]["why"]
        signature = verdicts["Good"]["signature"]
        assert signature == {"key": signature["key"], "by": "this process"}
        signed("verify", "Filter")
        message = signed("verify", "Filter", "--all-versions", code=1)
        assert "tag mine of shop.models.Filter" in message
        assert message.splitlines()[-1] == "2 ok, 1 refused"
        assert not written.exists()

    def test_verify_needs_a_mode(self, command, versions):
        """verify with settings that load nothing is refused."""
        message = command.another(code="off")("verify", code=1)
        assert message.startswith("Error: offload_code is 'off', so")


class TestKeygen:
    def test_the_settings_can_be_copied(self, command):
        """The output is valid Python, and the two keys are a pair."""
        scope = {}
        exec(command("keygen"), scope)
        private, public = scope["offload_signing_key"], scope["offload_verify_keys"]
        store = command.hook.store.url
        producer = ClassRegistry(store, mode=scope["offload_code"], signing_key=private)
        producer.push(made("Filter"))
        worker = ClassRegistry(store, mode="signed", verify_keys=public)
        assert worker.pull("Filter")().run(2) == 4

    def test_each_is_new(self, command):
        """Each key is new, and its id is the one in signatures."""
        first, second = command.json("keygen"), command.json("keygen")
        assert first["private"] != second["private"]
        store = command.hook.store.url
        registry = ClassRegistry(store, mode="signed", signing_key=first["private"])
        registry.push(made("Filter"))
        assert registry.versions("Filter")[0].signature.key == first["key"]


def test_no_secret_is_printed(command):
    """No command prints a signing key or a password of the store."""
    private, public = generate()
    # The verification key is in this process as well.
    signed = command.another(code="signed", signing_key=private, verify_keys=[public, HMAC])
    signed.registry.register(made("Filter"))
    printed = [signed("push"), signed("push", "--json")]
    (version,) = signed.registry.versions("Filter")
    for words in (
        ("list",),
        ("status",),
        ("show", "Filter"),
        ("pull", "Filter"),
        ("verify",),
        ("tag", "Filter", "good", version.hash),
        ("rollback", "Filter", version.hash),
    ):
        printed += [signed(*words), signed(*words, "--json")]
    assert not [text for text in printed if private[8:] in text or HMAC[5:] in text]
