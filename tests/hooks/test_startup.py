"""Wrong settings are reported when an app is finalized, or Django is set up, without I/O."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import nullcontext

import pytest
from celery import Celery

from offload import ConfigurationError, Offload

NO_STORE = "no store: neither the result backend nor the broker is Redis. Set offload_store"


def lazy_app(conf, namespace=None, **settings):
    app = Celery("start", set_as_current=False)
    app.config_from_object(conf, namespace=namespace)
    Offload(app, **settings)
    assert not app.configured
    return app


class Conf:
    """A configuration like Django's settings: attributes in upper case."""

    def __init__(self, **names):
        vars(self).update(names)


@pytest.mark.parametrize(
    ("conf", "namespace", "says"),
    (
        ({"offload_treshold": 1}, None, "'offload_treshold' is unknown; did you mean 'offload_th"),
        (
            Conf(CELERY_OFFLOAD_TRESHOLD=1),
            "CELERY",
            "'CELERY_OFFLOAD_TRESHOLD' is unknown; did you mean 'CELERY_OFFLOAD_THRESHOLD'",
        ),
        (
            Conf(CELERY_OFLOAD_STORE="x"),
            "CELERY",
            "'CELERY_OFLOAD_STORE' is unknown; did you mean 'CELERY_OFFLOAD_STORE'",
        ),
        (
            Conf(OFFLOAD_STORE="x"),
            "CELERY",
            "'OFFLOAD_STORE' is unknown; did you mean 'CELERY_OFFLOAD_STORE'",
        ),
        ({"ofload_store": "x"}, None, "'ofload_store' is unknown; did you mean 'offload_store'"),
        ({"offload_threshold": "64q"}, None, "offload_threshold: '64q' is invalid"),
        ({"offload_store": "redsi://localhost"}, None, "no store handles URLs with redsi://"),
        ({"offload_store": ["redis://a", "b"]}, None, "has no scheme: write it as redis://"),
        ({"broker_url": "amqp://localhost"}, None, NO_STORE),
        ({"broker_url": "sqs://", "result_backend": "db+sqlite://"}, None, NO_STORE),
        ({"broker_url": "amqp://", "result_backend": "rpc://"}, None, NO_STORE),
    ),
)
def test_finalizing_an_app_reports_wrong_settings(conf, namespace, says, monkeypatch):
    """A wrong name or value, a wrong URL, or no store at all is reported when the app is finalized,
    and nothing is connected.
    """
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it connects"))
    app = lazy_app(conf, namespace)
    with pytest.raises(ConfigurationError) as caught:
        _ = app.tasks
    assert says in str(caught.value)
    assert "finalize" not in vars(app)  # looking up a task costs no more than without offload


@pytest.mark.parametrize(
    "conf",
    (
        {"broker_url": "redis://localhost"},
        {"broker_url": "amqp://localhost", "result_backend": "redis://localhost"},
        {"broker_url": "amqp://localhost", "result_backend": "shop.backends:Own"},
        {"broker_url": "sentinel://localhost"},
        {"broker_url": "memory://"},
        {"broker_url": "amqp://localhost", "task_always_eager": True},
        {"broker_url": "amqp://localhost", "offload_mode": "observe"},
        {"broker_url": "amqp://localhost", "offload_store": "s3://bucket"},
        {"broker_url": "amqp://localhost", "upload_store": "x", "offset": 1},
    ),
)
def test_what_may_work_is_accepted(conf):
    """An app that may have a store, needs none, or is under test is finalized as usual."""
    given = {"store": "file:///srv/offload"} if "upload_store" in conf else {}
    assert "offload.gc" in lazy_app(conf, **given).tasks


@pytest.mark.parametrize("wrong_first", (False, True))
def test_a_finalized_app_may_be_configured_further(wrong_first):
    """Settings that follow the check, before the first publish, are in force."""
    broker = "amqp://localhost" if wrong_first else "memory://"
    app = lazy_app({"broker_url": broker})
    with pytest.raises(ConfigurationError) if wrong_first else nullcontext():
        app.finalize()
    app.conf.update(broker_url="memory://", offload_threshold="1 KiB")
    assert app._offload.settings.threshold == 1024


def test_an_app_that_is_finalized_already():
    """If the app is finalized, Offload reports at once that there is no store."""
    app = Celery("start", broker="amqp://localhost", set_as_current=False)
    app.finalize()
    with pytest.raises(ConfigurationError, match=NO_STORE):
        Offload(app)


def test_an_app_that_is_never_finalized():
    """An app that only sends tasks by name learns from its first message, however small."""
    app = lazy_app({"broker_url": "amqp://localhost"})
    with pytest.raises(ConfigurationError, match=NO_STORE):
        app.send_task("any", (1,))
    assert not app.finalized


def test_a_missing_driver_is_reported(monkeypatch):
    """Without boto3, an S3 store is refused at once, with the command that installs it."""
    monkeypatch.delitem(sys.modules, "offload.stores.s3.client", raising=False)
    monkeypatch.setattr("offload.stores.open.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    with pytest.raises(ConfigurationError, match=r'pip install "offload\[s3\]"'):
        _ = lazy_app({"offload_store": "s3://bucket/prefix"}).tasks


TYPO = "setting 'CELERY_OFFLOAD_TRESHOLD' is unknown; did you mean 'CELERY_OFFLOAD_THRESHOLD'?"
DJANGO = """
import django
from celery import Celery
from offload import ConfigurationError, Offload

app = Celery("site")
app.config_from_object("django.conf:settings", namespace="CELERY")
Offload(app)
assert not app.configured
"""
SETUP = """
import django
try:
    django.setup()
except Exception as error:
    print(type(error).__name__, error)
else:
    import site_app
    print("fine", site_app.app.configured, site_app.app.finalized)
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "says"),
    (
        (
            "CELERY_OFFLOAD_TRESHOLD",
            f"ConfigurationError {TYPO}\n",
        ),
        ("CELERY_OFFLOAD_THRESHOLD", "fine False False\n"),
    ),
)
def test_setting_up_django_reports_wrong_settings(tmp_path, name, says):
    """`django.setup` reports a wrong setting of the project's app, whose configuration stays lazy.

    As Celery recommends, the project's package imports the app, so Offload comes before settings.
    """
    (tmp_path / "site_app.py").write_text(DJANGO)
    package = tmp_path / "site_project"
    package.mkdir()
    (package / "__init__.py").write_text("from site_app import app\n")
    (package / "settings.py").write_text(f"INSTALLED_APPS = []\n{name} = 5\n")
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "site_project.settings"}
    done = subprocess.run(
        [sys.executable, "-c", SETUP], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == (says, 0), done.stderr
