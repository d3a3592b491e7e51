"""Celery and kombu still have every function and attribute that the hooks use or replace."""

from __future__ import annotations

import inspect
import threading
from types import SimpleNamespace

import pytest
from celery import Celery, signature
from celery.app import trace
from celery.app.amqp import AMQP
from celery.app.task import Context, Task
from celery.apps.worker import BANNER, Worker
from celery.backends import base
from celery.backends.asynchronous import BaseResultConsumer
from celery.backends.base import Backend, KeyValueStoreBackend
from celery.backends.redis import RedisBackend
from celery.backends.rpc import RPCBackend
from celery.local import Proxy
from celery.result import AsyncResult, ResultSet
from celery.worker import state
from celery.worker.consumer import consumer
from celery.worker.request import Request
from kombu import Connection
from kombu.transport import redis

from offload.hooks import celery_internals as internals
from offload.hooks import startup


@pytest.fixture
def app():
    app = Celery("internals", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="add", shared=False)
    def add(a, b):
        return a + b

    yield app
    app.close()


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    (
        (AMQP, "as_task_v2", "task_id name args kwargs argsrepr kwargsrepr chain chord callbacks"),
        (trace, "build_tracer", "name task app"),
        (consumer.Consumer, internals.LIMIT_DELAYED, "request bucket tokens"),
        (Task, "apply_async", "args kwargs task_id producer link link_error shadow"),
        (Task, "__call__", "args kwargs"),
        (Task, "start_strategy", "app consumer"),
        (Backend, "encode_result", "result state"),
        (Backend, "meta_from_decoded", "meta"),
        (Backend, "store_result", "task_id result state traceback request"),
        (Backend, "mark_as_done", "task_id result request store_result state"),
        (Backend, "mark_as_failure", "task_id exc traceback request"),
        (Backend, "mark_as_revoked", "task_id reason request"),
        (Backend, "forget", "task_id"),
        (Backend, "on_chord_part_return", "request state result"),
        (Backend, internals.CALL_ERRBACKS, "request exc traceback"),
        (KeyValueStoreBackend, internals.RESULT_META, "result state traceback request"),
        (RPCBackend, internals.RESULT_META, "result state traceback request"),
        (BaseResultConsumer, "on_state_change", "meta message"),
        (RedisBackend, "on_chord_part_return", "request state result"),
        (RedisBackend, internals.UNPACK_PART, "tup decode"),
        (AsyncResult, internals.RAISE_PARENT_ERROR, "self"),
        (base, internals.UNPICKLE_BACKEND, "cls args kwargs"),
        (AsyncResult, internals.TAKE_META, "self meta"),
        (ResultSet, "join", "on_message on_interval"),
        (ResultSet, "join_native", "on_message on_interval"),
        (ResultSet, "join", "self timeout propagate callback"),
        (ResultSet, "join_native", "self timeout propagate callback"),
        (Celery, internals.GET_BACKEND, "self"),
    ),
    ids=lambda each: each if isinstance(each, str) and " " not in each else "",
)
def test_celery_has_what_the_hooks_replace(owner, name, parameters):
    """Every function of Celery that the hooks replace has the expected name and parameters."""
    found = inspect.signature(getattr(owner, name)).parameters
    assert {*parameters.split()} <= {*found}


def test_celery_imports_the_tracers_maker_by_name():
    """Celery's consumer imports `build_tracer` by name, where the hooks replace it, too."""
    assert {"build_tracer"} <= {*vars(consumer)}


def test_celery_keeps_tasks_and_backend_in_these_attributes(app):
    """Celery's app has its tasks before it is finalized, and its backend once it is created."""
    assert "add" not in internals.registered_tasks(app)
    assert not app.finalized
    assert app.tasks["add"] is internals.registered_tasks(app)["add"]
    assert internals.app_itself(Proxy(lambda: app)) is internals.app_itself(app) is app
    assert internals.opened_backend(app) in (None, app.backend)


def test_celery_keeps_the_decoded_body_of_a_request(app):
    """A request in Celery's main process has its decoded body and knows whether it was revoked."""
    message = SimpleNamespace(
        headers={"task": "add", "id": "1", "lang": "py", "reply_to": None},
        properties={"correlation_id": "1", "reply_to": None, "delivery_info": {}},
        delivery_info={},
        payload=((1, 2), {}, {"callbacks": None, "errbacks": None, "chain": None}),
        body=b"",
        content_type="application/json",
        content_encoding="utf-8",
    )
    request = Request(message, app=app, decoded=False, task=app.tasks["add"])
    assert internals.body_of_request(request)[0] == (1, 2)
    assert internals.is_revoked(request) is False
    made = internals.context_maker(Request)(request)
    assert made.args == (1, 2)
    assert {"revoked", "should_stop", "should_terminate"} <= {*vars(state)}


def test_celery_has_signatures_as_dicts_with_these_keys():
    """Celery's signatures are dicts with keys that distinguish them from data."""
    assert {"task", "args", "kwargs", "options", "subtask_type", "immutable"} <= {*signature("t")}


def test_celery_keeps_parents_and_metadata_on_a_result(app):
    """Celery's result objects keep their parents and the metadata that they fetched."""
    first = AsyncResult("1", app=app)
    last = AsyncResult("2", app=app, parent=first)
    assert internals.parents_of(last) == [first]
    assert internals.known_meta(first) is None
    app.backend.store_result("1", 5, "SUCCESS")
    assert first.state == "SUCCESS"
    assert internals.known_meta(first)["result"] == 5


def test_kombu_computes_a_channels_parameters_before_it_connects():
    """kombu computes host, port, database, password, and transport options without connecting."""
    options = {"socket_timeout": 3, "socket_connect_timeout": 4}
    with Connection("redis://:pass@host.invalid:1234/7", transport_options=options) as connection:
        found = internals.channel_params(connection, connection.transport)
    named = ("host", "port", "db", "password", "socket_timeout", "socket_connect_timeout")
    assert [found[name] for name in named] == ["host.invalid", 1234, 7, "pass", 3, 4]


@pytest.mark.parametrize(
    ("kind", "expected"), ((redis.Channel, False), (redis.SentinelChannel, True))
)
def test_kombu_has_a_pool_managed_by_sentinels_for_sentinels_only(kind, expected):
    """A method distinguishes kombu's channel class for Sentinel from its channel for Redis."""
    assert internals.uses_sentinel(kind) is expected


def test_a_workers_banner_names_the_result_backend():
    """Celery's banner has the line under which offload's stands; its text comes from
    ``startup_info``.
    """
    assert f"\n{startup._ABOVE}     {{results}}\n" in BANNER
    assert "BANNER.format" in inspect.getsource(Worker.startup_info)


def test_a_thread_acts_for_a_task(app):
    """What a thread publishes while it acts for a task has that task as its parent."""
    request = Context(id="parent", called_directly=False)
    assert internals.worker_task() is None
    with internals.executing(app.tasks["add"], request):
        assert internals.worker_task() is app.tasks["add"]
        assert app.current_worker_task.request.id == "parent"
    assert internals.worker_task() is None


def test_a_thread_has_a_current_app(app):
    """A process of a pool has set the worker's app as the current one of its thread."""
    before = internals.app_of_thread()
    app.set_current()
    try:
        assert internals.app_of_thread() is app
    finally:
        before.set_current()


def test_a_thread_uses_a_given_backend(app):
    """A thread that was given a backend and a queue of replies uses them; others don't."""
    own, queue = app.backend, app.thread_oid
    other = type(own)(app=app, url="memory://")

    def use():
        internals.use_backend(app, other, "replies")
        found.append((app.backend, app.thread_oid))

    found = []
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [(other, "replies")]
    assert (app.backend, app.thread_oid) == (own, queue)
