"""No output, log, error, or page contains a password, secret, or key."""

from __future__ import annotations

import json
import logging
import traceback
from types import SimpleNamespace

import click
import pytest
from celery import Celery
from celery.worker.control import Panel
from click.testing import CliRunner
from kombu.utils.encoding import safe_repr
from starlette.routing import Route
from starlette.testclient import TestClient

from offload import ConfigurationError, Offload, OffloadError
from offload.cli import offload as command
from offload.dashboard import dashboard
from offload.doctor import examine
from offload.hooks.control import state_of
from offload.settings import Settings

CANARY = "hunter2canary"
AT = "localhost:1"  # where nothing listens
ELSEWHERE = "192.0.2.1"  # an address of no machine, on which nothing can listen
S3 = f"s3://bucket/p?endpoint_url=http://{AT}&max_attempts=1"
SECRETS = {
    "secret": (f"{CANARY} of the references", f"{CANARY} before that"),
    "code": "signed",
    "signing_key": f"hmac:{CANARY} that signs classes",
    "verify_keys": (f"hmac:{CANARY} of somebody else",),
    "encryption_keys": (f"aes256:{CANARY}{'A' * 30}=",),
}
STORES = {
    "redis": f"redis://user:{CANARY}@{AT}/0",
    "redis option": f"redis://{AT}?password={CANARY}",
    "valkeys": f"valkeys://:{CANARY}@{AT}/0?ssl_cert_reqs=none&ssl_password={CANARY}",
    "socket": f"redis+socket:///nowhere?password={CANARY}",
    "sentinel": f"redis+sentinel://:{CANARY}@{AT}/0?sentinel_password={CANARY}",
    "cluster": f"redis+cluster://:{CANARY}@{AT}",
    "s3": S3.replace("s3://", f"s3://KEY:{CANARY}@"),
    "fsspec": f"fsspec+memory://user:{CANARY}@host/folder",
    "tiers": (f"redis://:{CANARY}@{AT}/0", S3.replace("s3://", f"s3://KEY:{CANARY}@")),
}
DIGEST = "b3:0123456789abcdef"
COMMANDS = {
    "catalog find": "--metadata stage=test",
    "catalog get": "model --output /nowhere/file",
    "catalog list": "",
    "catalog put": "model /dev/null",
    "catalog rm": "model@1 --yes",
    "catalog show": "model",
    "catalog tag": "model production",
    "catalog versions": "model",
    "check": "--timeout 0.1",
    "classes diff": "Filter first second",
    "classes list": "",
    "classes prune": "--older-than 1",
    "classes pull": "Filter",
    "classes push": "",
    "classes rollback": "Filter 12345678",
    "classes show": "Filter",
    "classes status": "",
    "classes tag": "Filter first 12345678",
    "classes verify": "",
    "dashboard": f"--host {ELSEWHERE} --token {CANARY}",
    "doctor": "--no-workers",
    "estimate": "",
    "exporter": f"--host {ELSEWHERE}",
    "gc": "",
    "get": f"{DIGEST} --output /nowhere/file",
    "inspect": DIGEST,
    "locks list": "",
    "locks release": "lock --yes",
    "ls": "",
    "memo forget": "--all --yes",
    "memo list": "",
    "purge": "queue --force",
    "reencrypt": "",
    "rm": f"--yes {DIGEST}",
    "stats": "",
    "stats --by": "store",
    "store lifecycle": "",
    "types": "",
    "nonsense": "",
}
"""Arguments for each command; ``keygen`` is there to print a key."""
PAGES = (
    "/",
    "/blobs",
    f"/blobs/{DIGEST}",
    f"/blobs/{DIGEST}/remove",
    "/catalog",
    "/class?name=Filter",
    "/classes",
    "/estimate",
    "/healthz",
    "/lookup",
    "/nonsense",
    "/object?name=model",
    "/stores",
    "/task?name=echo",
    "/tasks",
    "/values",
    "/worker?name=worker",
    "/workers",
)


class Output:
    """Collects everything that is shown."""

    def __init__(self):
        self.texts = {}

    def add(self, what, text):
        self.texts[what] = str(text)

    def raised(self, what, call):
        """Add what *call* returns, or the whole exception that it raises."""
        try:
            self.add(what, call())
        except Exception as exc:
            self.add(f"{what}, traceback", "".join(traceback.format_exception(exc)))
            self.add(f"{what}, error", f"{exc!r} {exc} {vars(exc)}")

    def check(self):
        assert [what for what, text in self.texts.items() if CANARY in text] == []


def objects_of(thing, depth=4, seen=None):
    """Yield the objects of offload that *thing* consists of."""
    seen = set() if seen is None else seen
    if id(thing) in seen or not type(thing).__module__.startswith("offload") or not depth:
        return
    seen.add(id(thing))
    yield thing
    for each in list(getattr(thing, "__dict__", {}).values()):
        yield from objects_of(each, depth - 1, seen)


def paths_of(group, above=""):
    """Yield the names of all commands, with those of their groups before them."""
    for name in group.list_commands(None):
        found = group.get_command(None, name)
        if isinstance(found, click.Group):
            yield from paths_of(found, f"{above}{name} ")
        else:
            yield above + name


def test_every_command_and_page_is_searched():
    """No command and no page is left out below."""
    assert {*paths_of(command)} - {*COMMANDS} == {"classes keygen"}
    app = Celery("pages", broker="memory://", set_as_current=False)
    Offload(app, store="memory://")
    routes = [route for route in dashboard(app).routes if isinstance(route, Route)]
    shown = {route.path.format(digest=DIGEST) for route in routes if "GET" in route.methods}
    assert shown - {page.partition("?")[0] for page in PAGES} == set()


@pytest.mark.parametrize("given", ("keyword", "conf", "options", "backend"))
@pytest.mark.parametrize("form", STORES)
def test_no_output_contains_a_password(form, given, caplog):
    """Reports, configuration, errors with their causes, logs, commands, pages, and reprs contain no
    password, for every form of a store URL, wherever it is configured.
    """
    caplog.set_level(logging.DEBUG)
    app = Celery("canary", broker="memory://", set_as_current=False)
    options = {"retry": {"max_retries": 0}, "cache": "off"}
    if given == "conf":
        secrets = {f"offload_{name}": value for name, value in SECRETS.items()}
        app.conf.update(offload_store=STORES[form], **secrets)
    elif given == "keyword":
        options.update(SECRETS, store=STORES[form])
    elif form != "redis":
        pytest.skip("one form is enough")
    elif given == "options":
        app.conf.offload_store = f"redis://{AT}/0"
        app.conf.offload_store_options = {"password": CANARY}
    else:
        app.conf.result_backend = STORES[form]
    hook = Offload(app, **options)

    @app.task(name="echo", shared=False)
    def echo(value):
        return value

    output = Output()
    big = "x" * 100_000
    state = SimpleNamespace(app=app)
    output.add("report", app.bugreport())
    output.add("configuration", app.conf.humanize(with_defaults=True))
    for name in ("conf", "offload", "report"):
        answer = Panel.data[name](state, **({"with_defaults": True} if name == "conf" else {}))
        output.add(f"inspect {name}", json.dumps(answer, default=safe_repr))
    output.raised("state", lambda: state_of(hook._runtime))
    output.raised("put", lambda: hook.put(big))
    output.raised("delay", lambda: echo.delay(big))
    output.raised("open", lambda: hook._runtime.content.open("offload:1?x=1&m=" + "0" * 32))
    output.raised("examine", lambda: list(examine(hook._runtime)))
    output.raised("pin", lambda: hook.pinned("name"))
    output.raised("classes", lambda: hook.classes.listing())
    for thing in (hook, hook.settings, *objects_of(hook.store), *objects_of(hook.classes)):
        output.add(f"repr of {type(thing).__name__}", f"{thing!r} {thing}")
    for name, arguments in COMMANDS.items():
        for more in ("", "--json"):
            words = f"{name} {arguments} {more}"
            done = CliRunner().invoke(command, words.split(), obj=state)
            output.add(f"celery offload {words}", f"{done.output} {done.exception!r}")
    client = TestClient(dashboard(app), base_url="http://localhost", raise_server_exceptions=False)
    for path in PAGES:
        output.raised(f"page {path}", lambda path=path: client.get(path).text)
    for record in caplog.records:  # drivers' own debug logs are not ours
        if record.name.startswith("offload") or record.levelno > logging.DEBUG:
            output.add(f"log {record.name}", record.getMessage())
    output.check()


@pytest.mark.parametrize(
    "store",
    (
        5,
        [f"redis://:{CANARY}@{AT}", None],
        f"redis://:12?{CANARY}@host",
        f"redis://:{CANARY}?b@host",
        f"redis://:{CANARY}/b@host",
        f"redis://:{CANARY}#b@host",
        f"redis://:b#{CANARY}@host",
        f"redis://:b/{CANARY}@host",
        f"nonsense://:{CANARY}@host",
        f"redis://:{CANARY}@host/?nonsense=1",
        f"redis://:{CANARY}@host:port",
        f"redis://:{CANARY}@host/database",
        f"redis://host?db={CANARY}@1",
        f"s3://KEY:{CANARY}@",
        f"s3://bucket?endpoint_url=u:{CANARY}@host",
        f"fsspec+nonsense://user:{CANARY}@host/",
        f":{CANARY}@host",
        f"redis:{CANARY}@host",
    ),
)
def test_a_wrong_store_is_refused_without_its_password(store):
    """An invalid store URL is refused without its password, also if part of it is parsed as
    something else.
    """
    output = Output()
    app = Celery("canary", broker="memory://", set_as_current=False)
    app.conf.offload_store = store
    with pytest.raises(ConfigurationError) as caught:
        Offload(app)._runtime.check_start()
    output.add("error", "".join(traceback.format_exception(caught.value)))
    output.add("report", app.bugreport())
    output.add(
        "doctor", CliRunner().invoke(command, ["doctor"], obj=SimpleNamespace(app=app)).output
    )
    output.check()


@pytest.mark.parametrize(
    "wrong",
    (
        {"secret": "canary2"},
        {"secret": ["long enough to be a secret", "canary2"]},
        {"signing_key": b"canary2"},
        {"signing_key": "canary2"},
        {"signing_key": "ed25519:canary2"},
        {"signing_key": "hmac:canary2"},
        {"verify_keys": ["ed25519:canary2"]},
        {"verify_keys": [{"key": "hmac:canary2", "until": "never"}]},
        {"store_options": {"password": "canary2", "nonsense": 1}},
        {"store_options": ["canary2"]},
    ),
)
def test_a_wrong_secret_is_refused_without_being_shown(wrong):
    """A secret that is too short or unreadable isn't logged either."""
    app = Celery("canary", broker="memory://", set_as_current=False)
    with pytest.raises((ConfigurationError, OffloadError)) as caught:
        Offload(app, **{"store": f"redis://{AT}", "code": "signed", **wrong})._runtime.check_start()
    assert "canary2" not in "".join(traceback.format_exception(caught.value))


def test_settings_with_secrets_are_not_shown():
    """Fields that may hold a secret are missing from the repr, from which workers answer."""
    shown = repr(Settings(store=STORES["redis"], **SECRETS))
    assert CANARY not in shown
