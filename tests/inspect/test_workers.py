"""Workers report their settings, and configuration drift is found."""

from __future__ import annotations

import base64
import json
import signal
from contextlib import ExitStack

import pytest
from celery import Celery
from kombu import pidbox

from offload import Offload
from offload.inspect import workers
from offload.inspect.config_drift import config_drift
from offload.inspect.workers import ask_workers, this_process
from tests.integration.features import create
from tests.support import forkserver
from tests.support.processes import environment, worker
from tests.support.servers import free_port, redis_server

FEATURES = "tests.integration.features"
OTHER = {"secret": "another secret than all", "max_size": 5000, "accept": ["pickle"]}


@pytest.fixture(scope="module")
def broker():
    with redis_server("redis-server") as server:
        yield server


def make_config(broker, store, **settings):
    return {
        "broker": f"redis://{broker.host}:{broker.port}/0",
        "backend": f"redis://{broker.host}:{broker.port}/1",
        "offload": {"store": store, "cache": "off", "threshold": 1000, **settings},
    }


@pytest.fixture(scope="class")
def three(broker, redis, tmp_path_factory):
    """Start two workers of one app with different settings, and one without the library."""
    folder = tmp_path_factory.mktemp("three")
    config = make_config(broker, redis.url, secret="what all of them share")
    with ExitStack() as stack:
        for name, app, more in (
            ("alike", FEATURES, {"threshold": 2000}),
            ("other", FEATURES, OTHER),
            ("plain", "tests.inspect.plain_app", {}),
        ):
            its = {**config, "offload": {**config["offload"], **more}}
            started = worker(
                folder, its, pool="solo", concurrency=1, app=app, name=name, fork=app == FEATURES
            )
            stack.enter_context(started)
        yield config


def by_begin(asked):
    return {each.name.partition("-")[0]: each for each in asked.workers}


@pytest.mark.server
@pytest.mark.integration
@pytest.mark.timeout(120)
class TestThreeWorkers:
    def test_each_worker_reports_its_settings(self, three):
        """Workers with the library report their settings, others its absence, none a secret."""
        app = create(three)
        found = by_begin(ask_workers(app, timeout=5))
        app.close()
        assert {name: each.state for name, each in found.items()} == {
            "alike": "connected",
            "other": "connected",
            "plain": "without",
        }
        assert found["alike"].store == three["offload"]["store"]
        assert found["alike"].settings["threshold"] == 2000
        assert found["alike"].app == "features"
        assert found["alike"].reply["queues"] == ["features"]
        assert found["alike"].pid
        assert found["alike"].version
        assert not any("secret than all" in json.dumps(each.reply) for each in found.values())

    def test_drift_is_reported(self, three):
        """Each difference has a remedy; allowed ones, such as the threshold, aren't reported."""
        app = create(three)
        found = list(config_drift(this_process(app.offload._runtime), ask_workers(app, timeout=5)))
        app.close()
        report = {each.what: each for each in found}
        assert all(each.remedy for each in found if each.level != "ok")
        refused = next(what for what in report if "are refused by other-" in what)
        assert report[refused].level == "error"
        assert refused.startswith("references signed by this process, alike-")
        assert "set the same offload_secret" in report[refused].remedy
        assert any("offload_max_size differs: 2147483648 in this proc" in what for what in report)
        assert any("the list of accepted serializers differs" in what for what in report)
        [plain] = [what for what in report if "offload is missing" in what]
        assert plain.startswith("plain-")
        assert not any("threshold" in what for what in report)

    def test_doctor_reports_drift_and_exits_with_1(self, three):
        """doctor reports drift as findings about workers, which can be skipped."""

        def doctor(*words, code):
            command = ["-A", FEATURES, "offload", "doctor", "--json", *words]
            done = forkserver.run(command, env=environment(three), timeout=60)
            assert done.returncode == code, done.stdout + done.stderr
            found = json.loads(done.stdout)["findings"]
            return [each for each in found if each["subject"] == "workers"]

        assert doctor("--no-workers", code=0) == []
        levels = {each["level"] for each in doctor("--timeout", "5", code=1)}
        assert {"error", "warning"} <= levels


@pytest.mark.server
@pytest.mark.integration
@pytest.mark.timeout(120)
def test_a_store_is_known_by_its_key(broker, redis, tmp_path):
    """A store under two names is one store, even before the worker used it; two stores are an
    error, whether a secret or the store's key signs.
    """
    config = make_config(broker, redis.url)
    same = redis.url.replace("127.0.0.1", "localhost")
    assert same != redis.url
    secret = "a secret that this process alone has"
    its = {**config, "offload": {**config["offload"], "store": same}}
    with worker(tmp_path, its, pool="solo", concurrency=1, app=FEATURES):

        def compared(**settings):
            app = create({**config, "offload": {**config["offload"], **settings}})
            asked = ask_workers(app, timeout=5)
            app.close()
            return list(config_drift(this_process(app.offload._runtime), asked))

        assert [each.what for each in compared()] == ["1 worker and this process agree"]
        elsewhere = f"redis://{redis.host}:{redis.port}/5"
        [differs] = compared(store=elsewhere)
        assert differs.level == "error"
        assert f"different stores: {elsewhere} in this process; {same} in worker-" in differs.what
        both = compared(store=elsewhere, secret=secret)
        assert [each.level for each in both] == ["error", "error"]


# -- without answers


def make_app(broker, **conf):
    app = Celery("nobody", broker=broker, set_as_current=False)
    app.conf.update(conf)
    return app


def test_brokers_without_remote_control():
    """An unsupported broker is reported at once, without waiting."""
    assert "this process's memory" in ask_workers(make_app("memory://"), timeout=60).note
    off = make_app("redis://localhost:1", worker_enable_remote_control=False)
    assert "worker_enable_remote_control is off" in ask_workers(off, timeout=60).note


def test_a_broker_without_fanout(monkeypatch):
    """A broker without fanout, such as Amazon SQS, is reported."""
    from kombu.transport.redis import Transport

    direct = Transport.implements.extend(exchange_type=frozenset({"direct"}))
    monkeypatch.setattr(Transport, "implements", direct)
    note = ask_workers(make_app("redis://localhost:1"), timeout=60).note
    assert note == "a redis broker doesn't support remote control"


def test_an_unavailable_broker():
    """An unavailable broker is tried once and reported with its driver's message."""
    port = free_port()
    asked = ask_workers(make_app(f"redis://localhost:{port}"), timeout=60)
    assert asked.workers == ()
    assert "can't query the broker" in asked.note
    assert "OperationalError" in asked.note


@pytest.mark.server
def test_a_broker_that_hangs(monkeypatch):
    """A hanging broker is waited for until the timeout."""
    monkeypatch.setattr(workers, "_CONNECT_TIMEOUT", 0.3)
    with redis_server() as server:
        server.process.send_signal(signal.SIGSTOP)
        asked = ask_workers(make_app(server.url), timeout=60)
        server.process.send_signal(signal.SIGCONT)
    assert "can't query the broker" in asked.note
    assert "Timeout" in asked.note


@pytest.mark.server
def test_a_broker_that_becomes_unavailable(monkeypatch):
    """A query that was started isn't retried forever."""
    real = pidbox.maybe_declare

    def declare(*args):
        real(*args)
        server.stop()

    monkeypatch.setattr(pidbox, "maybe_declare", declare)
    with redis_server() as server:
        asked = ask_workers(make_app(server.url), timeout=60)
    assert "can't query the broker" in asked.note


def test_an_unknown_broker():
    """A broker with an unknown transport is reported."""
    assert "can't query" in ask_workers(make_app("nowhere://"), timeout=60).note


@pytest.mark.server
def test_no_worker_answers(broker):
    """Without answers, a note is returned within the timeout."""
    asked = ask_workers(make_app(broker.url), timeout=0.1)
    assert asked.workers == ()
    assert asked.note == "no worker replied within 0.1 s"
    app = make_app(broker.url)
    hook = Offload(app, store="memory://")
    [only] = config_drift(this_process(hook._runtime), asked)
    assert only.level == "info"


# -- hostile answers


class Crowd:
    """Workers that answer whatever a test wants."""

    def __init__(self, monkeypatch, pings, answers):
        self.asked = []

        def ask(_self, command, *, timeout, workers=None):
            self.asked.append((command, workers))
            return pings if command == "ping" else answers

        monkeypatch.setattr(workers.Remote, "ask", ask)
        monkeypatch.setattr(workers, "_reason_not_askable", lambda app: "")
        app = make_app("memory://")
        self.asked_workers = {each.name: each for each in ask_workers(app).workers}


def test_invalid_answers(monkeypatch):
    """Each invalid answer is reported and treated as data only."""
    answers = {
        "list": [1, 2],
        "none": {},
        "key": {"error": "KeyError('offload')"},
        "error": {"error": "RuntimeError('boom')"},
        "odd": {"version": ["<b>"], "settings": 5, "cache": [], "pid": "7"},
    }
    found = Crowd(monkeypatch, dict.fromkeys([*answers, "mute"]), answers).asked_workers
    assert {name: each.state for name, each in found.items()} == {
        "list": "unreadable",
        "none": "without",
        "key": "without",
        "error": "unreadable",
        "odd": "connected",
        "mute": "silent",
    }
    assert "boom" in found["error"].reason
    odd = found["odd"]
    assert (odd.version, odd.pid, odd.settings, odd.cache) == ("", None, {}, {})
    hook = Offload(make_app("memory://"), store="memory://")
    assert list(
        config_drift(this_process(hook._runtime), workers.Workers(0.0, tuple(found.values())))
    )


def test_an_answer_is_cut_to_size(monkeypatch):
    """Long texts, many items, and deep nesting in an answer are cut."""
    deep = "end"
    for _ in range(100):
        deep = {"more": [deep, object()]}
    answer = {
        "deep": deep,
        "odd": "\ud800",
        "long": "x" * 10**6,
        "many": list(range(10**5)),
        "big": 10**400,
    }
    [found] = Crowd(monkeypatch, {"w": None}, {"w": answer}).asked_workers.values()
    assert found.state == "connected"
    assert len(json.dumps(found.reply, ensure_ascii=False).encode()) < 50_000


class Endless:
    """A mailbox with endless answers."""

    def __init__(self):
        self.taken = 0

    def multi_call(self, _command, *, timeout, limit, callback):
        while True:
            self.taken += 1
            callback({f"worker{self.taken}": {}, 5: "five", "x" * 300: "long", "\ud800": "odd"})


def test_endless_answers_are_cut_off(monkeypatch):
    """Endless answers are cut off by time, and their number is limited."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(workers.time, "monotonic", lambda: float(next(ticks)))
    mailbox = Endless()
    found = workers.Remote(mailbox).ask("ping", timeout=100.0)
    assert len(found) == workers.MOST
    assert all(name.startswith("worker") for name in found)
    assert mailbox.taken <= 1002


def test_another_app_on_the_broker_is_no_error(monkeypatch):
    """Another app on the same broker, which remote control reaches, needn't agree."""
    hook = Offload(Celery("mine", broker="memory://", set_as_current=False), store="memory://")
    own = this_process(hook._runtime)
    report = {**own.reply, "app": "theirs", "references": {"own": True, "keys": ["a"]}}
    report["queues"] = ["theirs"]
    asked = workers.Workers(0.0, (workers.Worker("w@h", "connected", report),))
    [only] = config_drift(own, asked)
    assert only.level == "info"
    assert "w@h belongs to another app, 'theirs', and differs from this process" in only.what
    report["queues"] = ["theirs", "celery"]
    asked = workers.Workers(0.0, (workers.Worker("w@h", "connected", report),))
    assert "error" in {each.level for each in config_drift(own, asked)}  # it executes our tasks


@pytest.mark.parametrize(
    ("change", "level", "message"),
    (
        ({"wire": 99}, "error", "older versions refuse"),
        ({"version": "99"}, "info", "the version of offload differs"),
        ({"store": "redis://elsewhere/0"}, "warning", "offload_store differs"),
        (
            {"references": {"own": False, "keys": ["a"], "store": "a"}},
            "error",
            "offload_store names different stores: memory://",
        ),
        (
            {"serializer": "yaml"},
            "error",
            "in yaml (task_serializer) by w aren't accepted by this",
        ),
        ({"packages": []}, "info", "the packages for numpy"),
        (
            {"references": {"own": True, "keys": ["a"]}},
            "error",
            "store's key by this process",
        ),
    ),
)
def test_each_difference(change, level, message):
    """Each difference is one finding with its level and text."""
    hook = Offload(make_app("memory://"), store="memory://")
    own = this_process(hook._runtime)
    other = workers.Worker("w", "connected", {**own.reply, **change})
    [only] = config_drift(own, workers.Workers(0.0, (other,)))
    assert only.level == level
    assert message in only.what


def test_a_worker_of_an_older_offload():
    """Settings that an older worker doesn't report aren't compared."""
    hook = Offload(make_app("memory://"), store="memory://")
    own = this_process(hook._runtime)
    known = {name: own.reply[name] for name in ("version", "pid", "store", "counters", "app")}
    old = workers.Worker("old", "connected", known)
    [ok] = config_drift(own, workers.Workers(0.0, (old,)))
    assert ok.level == "ok"


def test_short_references_need_readers():
    """If a process writes short references, each worker that can't read them is an error."""
    own = this_process(Offload(make_app("memory://"), store="memory://")._runtime)
    writing = {**own.reply, "settings": {**own.reply["settings"], "short_refs": True}}
    older = {name: found for name, found in own.reply.items() if name != "note"}

    def found(mine, theirs):
        worker = workers.Worker("w", "connected", theirs)
        here = workers.Worker("here", "connected", mine)
        return [each.what for each in config_drift(here, workers.Workers(0.0, (worker,)))]

    [error] = found(writing, older)
    assert "messages of here have short references" in error
    assert "which w with an older offload can't read" in error
    for mine, theirs in ((own.reply, older), (writing, own.reply), (own.reply, writing)):
        assert found(mine, theirs) == ["1 worker and this process agree"]


def code(**changed):
    signed = {"code": "signed", "code_allow": [], "verify_keys": ["k"], "signing_key": "k"}
    return {**signed, **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    (
        ({"verify_keys": ["l"], "signing_key": "l"}, "with key l, aren't loaded by here"),
        ({"code": "off"}, "offload_code differs"),
        ({"code_allow": ["a.*"]}, "offload_code_allow differs"),
        ({"verify_keys": ["k", "l"]}, "offload_verify_keys differs"),
    ),
)
def test_policies_for_classes(changed, message):
    """All processes that load code must know the signers and have the same policy."""
    hook = Offload(make_app("memory://"), store="memory://")
    report = this_process(hook._runtime).reply

    def one(name, **changed):
        settings = {**report["settings"], **code(**changed)}
        return workers.Worker(name, "connected", {**report, "settings": settings})

    found = config_drift(one("here"), workers.Workers(0.0, (one("w", **changed),)))
    assert any(message in each.what for each in found)


def test_a_secret_that_is_being_rotated():
    """A process that signs with the old secret and accepts the new one agrees with the reverse."""
    old, new = "the older of the secrets", "the newer of the secrets"
    hooks = [
        Offload(make_app("memory://"), store="memory://", secret=secret)
        for secret in ((old, new), (new, old), (old,))
    ]
    first, second, third = (
        workers.Worker(str(i), "connected", this_process(hook._runtime).reply)
        for i, hook in enumerate(hooks)
    )
    [ok] = config_drift(first, workers.Workers(0.0, (second,)))
    assert ok.level == "ok"
    [error] = config_drift(second, workers.Workers(0.0, (third,)))
    assert error.what.startswith("references signed by 1 are refused by 2")


def test_encryption_keys_that_are_being_rotated():
    """Processes that know each other's key agree; one that doesn't is an error, also one that signs
    with the store's key.
    """
    old, new = (f"aes256:{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))
    first, second, third, none = (
        workers.Worker(
            str(i),
            "connected",
            this_process(
                Offload(make_app("memory://"), store="memory://", encryption_keys=keys)._runtime
            ).reply,
        )
        for i, keys in enumerate(((old, new), (new, old), (old,), ()))
    )
    assert "aes256" not in json.dumps(first.reply)

    def found(mine, theirs):
        return [each.what for each in config_drift(mine, workers.Workers(0.0, (theirs,)))]

    assert found(first, second) == ["1 worker and this process agree"]
    [error] = found(second, third)
    assert error.startswith("references signed by 1 are refused by 2: their offload_secret, or")
    assert any("with the store's key by 3" in what for what in found(second, none))
