"""``celery offload classes``: pushing, comparing, going back."""

from __future__ import annotations

import re

import pytest

from offload.classes.versions import Names
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


@pytest.fixture
def command():
    return Command()


def test_every_command_says_what_it_does():
    """All are there, each with a help text, and --json where it prints data."""
    named = {"diff", "keygen", "list", "pull", "push", "rollback", "show", "status", "tag"}
    assert set(classes.commands) == named | {"prune", "verify"}
    for each in classes.commands.values():
        assert each.help
        assert any("--json" in option.opts for option in each.params)


class TestRealProcesses:
    """As operators run it: the app's own modules register."""

    pytestmark = pytest.mark.integration

    def test_a_release(self, project, tmp_path):
        """Status fails, push heals it; a changed base puts its subclass out of sync, too; and
        the versions before are kept, compared and gone back to.
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

    def test_a_process_loads_what_it_trusts(self, project, tmp_path):
        """With the public key alone a version is loaded, and it is said whose it is; without
        it is not, and there is no traceback.
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
    def test_an_unreachable_server_ends_it_as_unavailable(self, project):
        """The exit code is that of the other commands, 69: not the 1 of what is out of sync."""
        project.write(module(), store="redis://localhost:1/0")
        _, said = project.run("classes", "status", code=69)
        assert "\nError: redis://localhost:1/0 does not answer" in f"\n{said}"


@pytest.mark.server
@pytest.mark.parametrize("server", ("redis", "s3"))
def test_real_stores(server, request):
    """What is listed and gone back to there is what was pushed."""
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
    """Notes which methods of an object are asked for."""

    def __init__(self, watched, asked):
        self.watched, self.asked = watched, asked

    def __getattr__(self, name):
        self.asked.append(name)
        return getattr(self.watched, name)


class TestStatus:
    def test_it_takes_one_round_trip(self, command):
        """However many classes are registered."""
        for number in range(20):
            command.registry.register(made(f"C{number}"))
        command("push")
        asked = []
        storage = command.registry._versions.storage
        storage._pointers = Watched(storage._pointers, asked)
        command("status")
        assert asked == ["read_all"]

    def test_names_look_at_those_alone(self, command):
        """By their whole name or the last part; a name that is not registered is an error."""
        command.registry.register(made("One"))
        command.registry.register(made("Two"))
        command("push", "One")
        command("status", "shop.models.One")
        command("status", "Two", "One", code=1)
        assert command.out.splitlines()[-1] == "1 synced, 1 untracked"
        assert "'Three' is not registered in this process" in command("status", "Three", code=1)

    def test_an_ambiguous_name_is_an_error(self, command):
        """The whole names are said."""
        command.registry.register(made("One"))
        command.registry.register(made("One", module="shop.others"))
        said = command("status", "One", code=1)
        assert "'One' is ambiguous: shop.models.One or shop.others.One" in said

    def test_what_is_refused_is_told_beside_the_others(self, command):
        """One altered pointer hides nothing of what else there is to say; push repairs it."""
        for name in ("One", "Two"):
            command.registry.register(made(name))
        command("push")
        command.change(Names("shop.models.One").latest, b"{}")
        found = command.json("status", code=1)
        assert [each["status"] for each in found["classes"]] == ["refused", "synced"]
        assert "isn't a class record" in found["classes"][0]["why"]
        assert "pushed  shop.models.One@" in command("push")
        command("status")

    def test_nothing_registered_is_no_error(self, command):
        """It is said, so that a module that was not imported is noticed."""
        assert command("status") == "no registered classes\n"
        assert command("push") == "no registered classes\n"
        assert command.json("status") == {"synced": 0, "not_synced": 0, "classes": []}


class TestPush:
    def test_only_the_version(self, command):
        """With --no-latest the latest stays what it was; a second time nothing is stored."""
        command.registry.register(made("Filter"))
        command("push")
        command.registry.register(made("Filter", times=3))
        (done,) = command.json("push", "--no-latest")
        assert done["changed"]
        assert command.registry.tags("Filter")["latest"] != done["hash"]
        again = command("push", "--no-latest", "Filter")
        assert again == f"present  shop.models.Filter@{done['hash'][:12]}\n"
        assert len(command.registry.versions("Filter")) == 2

    def test_a_key_that_is_needed(self, command):
        """In mode signed nothing is pushed without one, and it is said which setting has it."""
        other = command.another(code="signed", verify_keys=[HMAC])
        other.registry.register(made("Filter"))
        assert "there is no offload_signing_key" in other("push", code=1)
        assert command("list") == f"{command.hook.store.url} has no classes\n"


@pytest.fixture
def versions(command):
    """The hashes of two versions of ``shop.models.Filter``, of which the second is the latest."""
    return [command.registry.push(made("Filter", times)) for times in (2, 3)]


class TestVersions:
    def test_tags(self, command, versions):
        """A tag goes to the version whose hash so begins, and moves; what it was is said."""
        first, second = versions
        assert command("tag", "Filter", "good", first[:8]) == (
            f"good  shop.models.Filter@{first[:12]}\n"
        )
        done = command.json("tag", "Filter", "good", second)
        assert done == {"name": "shop.models.Filter", "tag": "good", "hash": second, "was": first}
        assert command.registry.pull("Filter", tag="good")().run(1) == 3

    @pytest.mark.parametrize("tag", ("latest", "a/b", ""))
    def test_what_is_no_tag(self, command, versions, tag):
        """It is a usage error."""
        assert "not a tag" in command("tag", "Filter", tag, versions[0], code=2)

    def test_rollback(self, command, versions):
        """What is pulled is the version before; also where the pointer was made unreadable."""
        command("rollback", "Filter", versions[0][:8])
        assert command.registry.pull("Filter")().run(1) == 2
        command.change(Names("shop.models.Filter").latest, b"{}")
        done = command.json("rollback", "Filter", versions[1])
        assert (done["hash"], done["was"]) == (versions[1], None)
        assert command.registry.pull("Filter")().run(1) == 3

    def test_a_hash_is_not_guessed(self, command, versions):
        """Less than 8 digits, or what may be several, or none, changes nothing."""
        other = "1" if versions[0][8] == "0" else "0"
        pointer = Names("shop.models.Filter").version(versions[0][:8] + other * 56)
        command.hook.store.pointers.swap(pointer, None, b"x")
        assert "is ambiguous" in command("rollback", "Filter", versions[0][:8], code=1)
        for begin in (versions[0][:7], "0" * 12, "good", ""):
            said = command("rollback", "Filter", begin, code=1)
            assert f"has no version {begin!r}" in said
        assert command.registry.tags("Filter") == {"latest": versions[1]}
        command("rollback", "Filter", versions[0][:9])

    def test_a_tag_does_not_decide_what_is_changed(self, command, versions):
        """Who can write to the store could have it stand for another version."""
        command("tag", "Filter", "good", versions[0])
        assert "has no version 'good'" in command("rollback", "Filter", "good", code=1)

    def test_an_unknown_class(self, command):
        """Every command that takes a name says that there is none."""
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
        """It is said which version has none, and what would have pushed it."""
        said = command("diff", "Filter", *versions, code=1)
        assert f"Filter@{versions[0][:12]} was pushed without its source" in said
        assert "offload_ship_source" in said


class TestList:
    def test_it_shows_all_of_the_store(self, command, versions):
        """With what is registered here, what is not, and what messages alone brought."""
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

    def test_names_that_a_pointer_cannot_have(self, command):
        """Lambdas, what stands within functions, and names too long for a pointer are listed
        by what they are called, with a latest and without.
        """
        inner = made("Inner")
        inner.__qualname__ = "make.<locals>.Inner"
        long = made("Long" * 40)
        command.registry.push(inner)
        command.registry.persist_class(long)
        names = [each["name"] for each in command.json("list")]
        assert names == [f"shop.models.{'Long' * 40}", "shop.models.make.<locals>.Inner"]

    def test_a_broken_pointer_hides_nothing(self, command, versions):
        """It is marked, also where it is another's that was put there."""
        one = command.registry.push(made("One"))
        command.change(Names("shop.models.One").latest, b"[]")
        pointers = command.hook.store.pointers
        command.registry.push(made("Two"))
        command.change(
            Names("shop.models.Two").latest, pointers.read(Names("shop.models.Filter").latest)
        )
        found = {each["name"]: each for each in command.json("list")}
        assert found["shop.models.Filter"]["latest"] == versions[1]
        assert found["shop.models.One"]["versions"] == [one]
        for name in ("shop.models.One", "shop.models.Two"):
            assert found[name]["latest"] is None
            assert found[name]["broken"]
        assert command.registry.full_name("Filter") == "shop.models.Filter"

    def test_a_name_does_nothing_to_a_terminal(self, command):
        """What somebody stored is printed, never obeyed; in errors, too."""
        bad = made("Bad")
        bad.__qualname__ = "Bad\x1b[2J"
        command.registry.push(bad)
        assert "shop.models.Bad\\x1b[2J" in command("list")
        assert "\x1b" not in command("pull", "Bad\x1b[2J", "--hash", "0" * 8, code=1)
