"""Configuration errors are raised at start-up and name the setting."""

from __future__ import annotations

import pytest
from celery import Celery
from faults import BIG
from kombu.exceptions import OperationalError

from offload import Offload
from offload.errors import ConfigurationError
from tests.support.processes import wait_until

WRONG = [  # keyword arguments of Offload, and what the error must contain
    ({"treshold": 1}, "Offload(treshold=…)", "did you mean 'threshold'"),
    ({"anything": 1}, "Offload(anything=…)", "max_size"),
    ({"threshold": -1}, "offload_threshold", "-1"),
    ({"threshold": "32q"}, "offload_threshold", "a number of bytes"),
    ({"threshold": True}, "offload_threshold", "True"),
    ({"threshold": 1.5}, "offload_threshold", "1.5"),
    ({"max_size": -5}, "offload_max_size", "-5"),
    ({"inline_limit": "1.5"}, "offload_inline_limit", "'1.5'"),
    ({"memo_size": "big"}, "offload_memo_size", "'big'"),
    ({"mode": "of"}, "offload_mode", "expected 'on', 'observe', or 'off'"),
    ({"on_outage": "ignore"}, "offload_on_outage", "expected 'raise' or 'inline'"),
    ({"compression": "gzip"}, "offload_compression", "expected 'auto', 'zstd', or 'none'"),
    ({"results": "yes"}, "offload_results", "True or False"),
    ({"retention": 0}, "offload_retention", "above 0"),
    ({"retention": float("nan")}, "offload_retention", "nan"),
    ({"inline": "frame"}, "offload_inline", "a list of names"),
    ({"accept": "pickle"}, "offload_accept", "a list of names"),
    ({"retry": {"max_retry": 1}}, "offload_retry", "did you mean 'max_retries'"),
    ({"retry": {"max_retries": -1}}, "offload_retry", "max_retries"),
    ({"retry": 5}, "offload_retry", "retry_policy"),
    ({"secret": "short"}, "offload_secret", "at least 16 characters"),
    ({"store": 5}, "offload_store", "a URL or a list of URLs"),
    ({"store": []}, "offload_store", "a URL or a list of URLs"),
]
IDS = [next(iter(given.items())).__repr__()[:40] for given, *_ in WRONG]


@pytest.mark.parametrize(("given", "key", "says"), WRONG, ids=IDS)
def test_wrong_settings_by_keyword(given, key, says):
    """Offload refuses a wrong or unknown setting by name and lists the valid ones; it shows no
    secret.
    """
    with pytest.raises(ConfigurationError) as error:
        Offload(Celery("wrong"), **given)
    assert key in str(error.value)
    assert says in str(error.value)
    assert "'short'" not in str(error.value)


@pytest.mark.parametrize(("given", "key", "says"), WRONG[1:], ids=IDS[1:])
def test_wrong_settings_in_the_configuration(given, key, says):
    """A wrong setting in app.conf is refused at the first publishing, before anything is sent."""
    app = Celery("wrong", broker="memory://")
    Offload(app)
    app.conf.update({f"offload_{name}": value for name, value in given.items()})
    with pytest.raises(ConfigurationError) as error:
        app.send_task("any", ("small",))
    (name,) = given
    assert f"offload_{name}" in str(error.value)


def test_an_existing_configuration_is_checked_at_once():
    """If the app is configured already, Offload refuses a wrong setting at once."""
    app = Celery("wrong", broker="memory://")
    app.conf.offload_threshold = -1
    _ = app.conf.broker_url
    with pytest.raises(ConfigurationError, match="offload_threshold"):
        Offload(app)


@pytest.mark.parametrize(
    ("options", "says"),
    (
        ({"treshold": 1}, "task 'job': option 'treshold' is unknown; did you mean 'threshold'"),
        ({"inline": ["fram"]}, "'fram' is unknown; did you mean 'frame'"),
        ({"inline": ["other"]}, "There are: config, frame"),
        ({"inline": "frame"}, "a list of names"),
        ({"threshold": "1q"}, "option 'threshold': '1q' is invalid; expected a number of bytes"),
        ({"results": "no"}, "option 'results': 'no' is invalid; expected True or False"),
        ({"retention": -1}, "seconds, above 0"),
        (["inline"], "expected a dict of options, True, or False"),
    ),
)
@pytest.mark.parametrize("where", ("task", "call"))
def test_wrong_options_of_a_task_or_call(options, says, where):
    """`.delay()` refuses an unknown or wrong option of a task or call, or an inline name that isn't
    a parameter; the error names it and lists the valid ones.
    """
    app = Celery("wrong", broker="memory://")
    Offload(app, store="memory://start")
    given = {"offload": options}

    @app.task(name="job", shared=False, **(given if where == "task" else {}))
    def job(frame, config=None): ...

    with pytest.raises(ConfigurationError) as error:
        job.apply_async(("small",), **(given if where == "call" else {}))
    assert says.replace("task 'job': ", "" if where == "call" else "task 'job': ") in str(
        error.value
    )
    assert "job" in str(error.value)


@pytest.mark.parametrize(
    ("store", "says"),
    (
        ("nosuch://host", "known: file://"),
        ("just-a-name", "no scheme"),
        ("redis://host:port/0", "isn't a port number"),
        ("redis://host/db", "'db' isn't a database number"),
        ("redis://host/0?timeout=1", "unknown option 'timeout'; known:"),
    ),
)
def test_an_invalid_store_url(store, says):
    """An invalid store URL raises an error at the first large value and lists the valid schemes."""
    app = Celery("wrong", broker="memory://")
    Offload(app, store=store)
    with pytest.raises(ConfigurationError) as error:
        app.send_task("any", (BIG,))
    assert says in str(error.value)


def test_no_store_at_all():
    """If neither result backend nor broker is Redis, the error says what to set."""
    app = Celery("wrong", broker="memory://", backend="cache+memory://")
    Offload(app)
    with pytest.raises(ConfigurationError, match="Set offload_store"):
        app.send_task("any", (BIG,))


def test_the_other_message_protocol():
    """Celery's message protocol 1 is refused at the first large value."""
    app = Celery("wrong", broker="memory://")
    app.conf.task_protocol = 1
    Offload(app)
    with pytest.raises(ConfigurationError, match="task_protocol is 1"):
        app.send_task("any", (BIG,))


def test_a_second_one():
    """A second Offload for an app is refused; connecting the first again is not."""
    app = Celery("wrong")
    one = Offload(app)
    one.init_app(app)
    with pytest.raises(ConfigurationError, match="already has an Offload"):
        Offload(app)


WORKERS = {
    "setting": ({}, {"offload_treshold": 5}, "offload_treshold"),
    "value": ({}, {"offload_mode": "sometimes"}, "expected 'on', 'observe', or 'off'"),
    "task": (
        {},
        {"task_annotations": {"size": {"offload": {"inline": ["no"]}}}},
        "'no' is unknown",
    ),
    "store": ({"store": "nosuch://host"}, {}, "known: file://"),
}


@pytest.mark.server
@pytest.mark.integration
@pytest.mark.parametrize("pool", ("solo", "prefork"))
@pytest.mark.parametrize("what", WORKERS)
def test_a_worker_refuses_to_start(setup, what, pool):
    """With a wrong setting, task option, or store URL, a worker exits at once with an error code,
    and its log says why.
    """
    given, conf, says = WORKERS[what]
    worker = setup.worker("-P", pool, "-c", "1", conf=conf, wait=False, **given)
    wait_until(lambda: worker.ended, "the worker has exited", 30)
    assert worker.popen.returncode != 0
    assert says in worker.log()
    assert "ConfigurationError" in worker.log()


def test_other_errors_of_celery_are_unchanged():
    """Without a broker, publishing fails as in plain Celery."""
    app = Celery("wrong", broker="redis://127.0.0.1:1/0", backend="disabled")
    app.conf.task_publish_retry = False
    app.conf.broker_transport_options = {"retry_on_timeout": False}
    Offload(app, store="memory://start")
    with pytest.raises(OperationalError) as error:
        app.send_task("any", (BIG,))
    assert type(error.value) is OperationalError
