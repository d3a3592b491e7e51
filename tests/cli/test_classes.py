"""``celery offload classes``: push, compare, and roll back."""

from __future__ import annotations

import re

import pytest

from offload.classes.versions import PointerNames
from offload.cli.classes import classes
from tests.cli.class_commands import HMAC, Command, made

MODULE = """
register = app._offload.classes.register

@register
class Base:
    LIMIT = {limit}

@register
class Filter(Base):
    def run(self, x):
        return x * {times}

@register(push="manual")
def score(x):
    return x + 1
"""


def module(limit=10, times=2):
    return MODULE.format(limit=limit, times=times)


def test_every_command_has_a_help_text():
    """Every command exists, has a help text, and has --json if it prints data."""
    named = {"diff", "keygen", "list", "pull", "push", "rollback", "show", "status", "tag"}
    assert set(classes.commands) == named | {"prune", "verify"}
    for each in classes.commands.values():
        assert each.help
        assert any("--json" in option.opts for option in each.params)


class TestRealProcesses:
    """The commands as operators run them, with classes that the app's modules register."""

    pytestmark = pytest.mark.integration

    def test_a_release(self, project, tmp_path):
        """status fails, and push fixes it; a changed base class puts its subclass out of sync, too;
        earlier versions are kept, compared, and restored.
        """
        settings = {"store": f"file://{tmp_path}/store", "ship_source": True}
        project.write(module(), **settings)
        out, _ = project.run("classes", "status", code=1)
        assert out.splitlines()[-1] == "3 untracked"
        pushed = project.json("classes", "push")
        assert [each["name"] for each in pushed] == ["proj.Base", "proj.Filter", "proj.score"]
        assert all(each["changed"] for each in pushed)
        out, _ = project.run("classes", "status")
        assert out.splitlines()[-1] == "3 synced"

        first = pushed[1]["hash"]
        project.write("\n# moved, and changed\n" + module(times=3, limit=11), **settings)
        found = project.json("classes", "status", code=1)
        assert (found["synced"], found["not_synced"]) == (1, 2)
        filter_ = found["classes"][1]
        assert filter_["status"] == "out_of_sync"
        assert filter_["latest"] == first != filter_["hash"]
        out, _ = project.run("classes", "push")
        second = filter_["hash"]
        assert f"pushed  proj.Filter@{second[:12]}\n" in out
        assert f"synced  proj.score@{pushed[2]['hash'][:12]}\n" in out
        out, _ = project.run("classes", "diff", "Filter", first[:8], "latest")
        assert "-        return x * 2\n+        return x * 3\n" in out
        out, _ = project.run("classes", "rollback", "Filter", first[:12])
        assert out == f"latest  proj.Filter@{first[:12]}  was {second[:12]}\n"
        listed = {each["name"]: each for each in project.json("classes", "list")}
        assert listed["proj.Filter"]["status"] == "out_of_sync"
        assert sorted(listed["proj.Filter"]["versions"]) == sorted([first, second])

    def test_a_process_loads_only_trusted_code(self, project, tmp_path):
        """A process with the public key loads a version and names its signer; one without it is
        refused without a traceback.
        """
        url = f"file://{tmp_path}/store"
        keys = project.json("classes", "keygen", app=None)
        project.write(module(), store=url, code="signed", signing_key=keys["private"])
        project.run("classes", "push")
        verify = {"key": keys["public"], "name": "ci", "until": "2999-12-31"}
        project.write(store=url, code="signed", verify_keys=[verify])
        out, _ = project.run("classes", "pull", "Filter")
        assert re.fullmatch(
            rf"loaded class proj\.Filter@\w{{12}}, signed by ci \(key {keys['key']}\)\n", out
        )
        project.write(store=url, code="signed", verify_keys=[HMAC])
        out, err = project.run("classes", "pull", "Filter", code=1)
        assert out == ""
        assert err.startswith("Error: latest of proj.Filter@")
        assert len(err.splitlines()) == 1
        out, err = project.run("classes", "verify", code=1)
        assert (out.splitlines()[-1], err) == ("0 ok, 3 refused", "")

    @pytest.mark.server
    def test_an_unreachable_server_exits_with_69(self, project):
        """The exit code is 69, as of other commands, and not the 1 for classes out of sync."""
        project.write(module(), store="redis://localhost:1/0")
        _, said = project.run("classes", "status", code=69)
        assert "\nError: redis://localhost:1/0 is unavailable" in f"\n{said}"


@pytest.mark.server
@pytest.mark.parametrize("server", ("redis", "s3"))
def test_real_stores(server, request):
    """Listing and rollback work on every kind of store."""
    running = request.getfixturevalue(server)
    url = running.url("classes") if server == "s3" else f"{running.url}?prefix=classes"
    command = Command(store=url)
    command.registry.register(made("Filter"))
    (first,) = command.json("push")
    command.registry.register(made("Filter", times=3))
    command("status", code=1)
    (second,) = command.json("push")
    command("tag", "Filter", "good", first["hash"][:8])
    command("rollback", "Filter", first["hash"][:8])
    (listed,) = command.json("list")
    assert (listed["latest"], listed["tags"]) == (first["hash"], ["good"])
    assert listed["versions"] == sorted([first["hash"], second["hash"]])
    assert command("verify", "--all-versions").splitlines()[-1] == "4 ok, 0 refused"


class Watched:
    """Records which methods of an object are used."""

    def __init__(self, watched, asked):
        self.watched, self.asked = watched, asked

    def __getattr__(self, name):
        self.asked.append(name)
        return getattr(self.watched, name)


class TestStatus:
    def test_status_takes_one_round_trip(self, command):
        """status takes one round trip for any number of classes."""
        for number in range(20):
            command.registry.register(made(f"C{number}"))
        command("push")
        asked = []
        storage = command.registry._versions.storage
        storage._pointers = Watched(storage._pointers, asked)
        command("status")
        assert asked == ["read_all"]

    def test_names_select_classes(self, command):
        """Names, full or short, select classes; an unregistered name is an error."""
        command.registry.register(made("One"))
        command.registry.register(made("Two"))
        command("push", "One")
        command("status", "shop.models.One")
        command("status", "Two", "One", code=1)
        assert command.out.splitlines()[-1] == "1 synced, 1 untracked"
        assert "'Three' is not registered in this process" in command("status", "Three", code=1)

    def test_an_ambiguous_name_is_an_error(self, command):
        """The error lists the full names."""
        command.registry.register(made("One"))
        command.registry.register(made("One", module="shop.others"))
        said = command("status", "One", code=1)
        assert "'One' is ambiguous: shop.models.One or shop.others.One" in said

    def test_a_refused_class_is_reported_next_to_others(self, command):
        """One altered pointer doesn't hide the status of others; push repairs it."""
        for name in ("One", "Two"):
            command.registry.register(made(name))
        command("push")
        command.change(PointerNames("shop.models.One").latest, b"{}")
        found = command.json("status", code=1)
        assert [each["status"] for each in found["classes"]] == ["refused", "synced"]
        assert "isn't a class record" in found["classes"][0]["why"]
        assert "pushed  shop.models.One@" in command("push")
        command("status")

    def test_no_registered_classes_are_no_error(self, command):
        """Without registered classes the command says so, which hints at a missing import."""
        assert command("status") == "no registered classes\n"
        assert command("push") == "no registered classes\n"
        assert command.json("status") == {"synced": 0, "not_synced": 0, "classes": []}


class TestPush:
    def test_push_without_latest(self, command):
        """With --no-latest the latest stays; a second push stores nothing."""
        command.registry.register(made("Filter"))
        command("push")
        command.registry.register(made("Filter", times=3))
        (done,) = command.json("push", "--no-latest")
        assert done["changed"]
        assert command.registry.tags("Filter")["latest"] != done["hash"]
        again = command("push", "--no-latest", "Filter")
        assert again == f"present  shop.models.Filter@{done['hash'][:12]}\n"
        assert len(command.registry.versions("Filter")) == 2

    def test_push_without_a_key(self, command):
        """In mode signed, push without a key is refused, and the error names the setting."""
        other = command.another(code="signed", verify_keys=[HMAC])
        other.registry.register(made("Filter"))
        assert "there is no offload_signing_key" in other("push", code=1)
        assert command("list") == f"{command.hook.store.url} has no classes\n"


class TestVersions:
    def test_tags(self, command, versions):
        """A tag is set by a hash prefix and can be moved; its former version is printed."""
        first, second = versions
        assert command("tag", "Filter", "good", first[:8]) == (
            f"good  shop.models.Filter@{first[:12]}\n"
        )
        done = command.json("tag", "Filter", "good", second)
        assert done == {"name": "shop.models.Filter", "tag": "good", "hash": second, "was": first}
        assert command.registry.pull("Filter", tag="good")().run(1) == 3

    @pytest.mark.parametrize("tag", ("latest", "a/b", ""))
    def test_an_invalid_tag(self, command, versions, tag):
        """An invalid tag is a usage error."""
        assert "not a tag" in command("tag", "Filter", tag, versions[0], code=2)

    def test_rollback(self, command, versions):
        """After a rollback, pull returns the former version, also if the pointer was unreadable."""
        command("rollback", "Filter", versions[0][:8])
        assert command.registry.pull("Filter")().run(1) == 2
        command.change(PointerNames("shop.models.Filter").latest, b"{}")
        done = command.json("rollback", "Filter", versions[1])
        assert (done["hash"], done["was"]) == (versions[1], None)
        assert command.registry.pull("Filter")().run(1) == 3

    def test_a_hash_is_not_guessed(self, command, versions):
        """A prefix of fewer than 8 digits, or one that is ambiguous or unknown, changes nothing."""
        other = "1" if versions[0][8] == "0" else "0"
        pointer = PointerNames("shop.models.Filter").version(versions[0][:8] + other * 56)
        command.hook.store.pointers.swap(pointer, None, b"x")
        assert "is ambiguous" in command("rollback", "Filter", versions[0][:8], code=1)
        for begin in (versions[0][:7], "0" * 12, "good", ""):
            said = command("rollback", "Filter", begin, code=1)
            assert f"has no version {begin!r}" in said
        assert command.registry.tags("Filter") == {"latest": versions[1]}
        command("rollback", "Filter", versions[0][:9])

    def test_changes_do_not_accept_tags(self, command, versions):
        """Commands that change something don't accept a tag, which anybody with access to the store
        could move.
        """
        command("tag", "Filter", "good", versions[0])
        assert "has no version 'good'" in command("rollback", "Filter", "good", code=1)

    def test_an_unknown_class(self, command):
        """Every command that takes a name reports an unknown one."""
        for words in (
            ("show",),
            ("pull",),
            ("rollback", "0" * 64),
            ("diff", "a", "b"),
            ("verify",),
        ):
            said = command(words[0], "Nope", *words[1:], code=1)
            assert "has no class or function 'Nope'" in said

    def test_no_source_no_diff(self, command, versions):
        """The error names the version without source and the setting that pushes source."""
        said = command("diff", "Filter", *versions, code=1)
        assert f"Filter@{versions[0][:12]} was pushed without its source" in said
        assert "offload_ship_source" in said


class TestList:
    def test_the_list_shows_the_whole_store(self, command, versions):
        """The list has registered classes, others in the store, and those from messages only."""
        command.registry.register(made("Filter", 2))
        command.registry.register(made("Mine"))
        command("push", "Mine")
        command.registry.persist_class(made("Sent", module="__main__"))
        rows = [re.split(r"  +", line) for line in command("list").splitlines()]
        python = command.registry.versions("Filter")[0].python
        mine = command.registry.tags("Mine")["latest"]
        assert rows == [
            ["NAME", "LATEST", "VERSIONS", "STATUS", "PYTHON", "SIGNED BY"],
            ["__main__.Sent", "-", "1", "-", "-", "-"],
            ["shop.models.Filter", versions[1][:12], "2", "out_of_sync", python, "nobody"],
            ["shop.models.Mine", mine[:12], "1", "synced", python, "nobody"],
        ]

    def test_names_without_a_readable_pointer(self, command):
        """Lambdas, local classes, and names too long for a pointer are listed by name, with and
        without a latest.
        """
        inner = made("Inner")
        inner.__qualname__ = "make.<locals>.Inner"
        long = made("Long" * 40)
        command.registry.push(inner)
        command.registry.persist_class(long)
        names = [each["name"] for each in command.json("list")]
        assert names == [f"shop.models.{'Long' * 40}", "shop.models.make.<locals>.Inner"]

    def test_a_broken_pointer_hides_nothing(self, command, versions):
        """A broken or foreign pointer is marked and doesn't hide others."""
        one = command.registry.push(made("One"))
        command.change(PointerNames("shop.models.One").latest, b"[]")
        pointers = command.hook.store.pointers
        command.registry.push(made("Two"))
        command.change(
            PointerNames("shop.models.Two").latest,
            pointers.read(PointerNames("shop.models.Filter").latest),
        )
        found = {each["name"]: each for each in command.json("list")}
        assert found["shop.models.Filter"]["latest"] == versions[1]
        assert found["shop.models.One"]["versions"] == [one]
        for name in ("shop.models.One", "shop.models.Two"):
            assert found[name]["latest"] is None
            assert found[name]["broken"]
        assert command.registry.full_name("Filter") == "shop.models.Filter"

    def test_control_characters_in_names_are_escaped(self, command):
        """Control characters in stored names are escaped, in errors, too."""
        bad = made("Bad")
        bad.__qualname__ = "Bad\x1b[2J"
        command.registry.push(bad)
        assert "shop.models.Bad\\x1b[2J" in command("list")
        assert "\x1b" not in command("pull", "Bad\x1b[2J", "--hash", "0" * 8, code=1)
