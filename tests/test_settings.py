from __future__ import annotations

import dataclasses
import math
from datetime import timedelta
from itertools import islice
from typing import get_args

import pytest
from celery import Celery
from kombu.serialization import register, unregister
from kombu.utils.functional import fxrange

from offload import ConfigurationError, RetryPolicy, Settings, TaskOptions
from offload.settings.units import DurationText, SizeText, duration, size


def test_defaults():
    """Without settings everything has a default, and settings are immutable."""
    settings = Settings.read({}, None, {})
    assert (settings.mode, settings.store, settings.results) == ("on", None, True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.mode = "off"


@pytest.mark.parametrize(
    ("conf", "namespace"),
    (
        ({"offload_threshold": 7, "broker_url": "x"}, None),
        ({"CELERY_OFFLOAD_THRESHOLD": 7, "CELERY_BROKER_URL": "x"}, "CELERY"),
        ({"SHOP_OFFLOAD_THRESHOLD": 7}, "SHOP"),
    ),
)
def test_reading_from_celerys_settings(conf, namespace):
    """``offload_…`` keys are read, also in upper case with Celery's namespace."""
    assert Settings.read(conf, namespace, {}).threshold == 7


def test_foreign_settings_are_ignored():
    """With a namespace, upper-case names outside it are ignored."""
    assert Settings.read({"OFFLOAD_EVERYTHING": 1}, "CELERY", {}) == Settings()


def test_keywords_come_first():
    """Keyword arguments override the app's configuration; None is ignored."""
    assert Settings.read({"offload_threshold": 7}, None, {"threshold": 8}).threshold == 8
    assert Settings.read({"offload_threshold": None}, None, {}).threshold == Settings().threshold


@pytest.mark.parametrize(
    ("given", "message"),
    (
        ({"treshold": 1}, r"treshold.*did you mean 'threshold'"),
        ({"mode": "maybe"}, r"offload_mode: 'maybe'.*'on', 'observe', or 'off'"),
        ({"threshold": -1}, r"offload_threshold: -1"),
        ({"threshold": 1.5}, r"offload_threshold: 1.5"),
        ({"threshold": True}, r"offload_threshold: True"),
        ({"max_size": "2 XB"}, r"offload_max_size: '2 XB'.*'64k', '64 KiB', or '1.5MB'"),
        ({"threshold": "64q"}, r"offload_threshold: '64q'.*'64k', '64 KiB', or '1.5MB'"),
        ({"message_limit": "1q"}, r"offload_message_limit: '1q'.*'auto', 0 for no limit"),
        ({"message_limit": "1k"}, r"offload_message_limit: '1k'.*at least 4096"),
        ({"retention": "3600"}, r"offload_retention: '3600'.*'90s', '1h30m', or '7d'"),
        ({"retention": "0s"}, r"offload_retention: '0s'.*above 0"),
        ({"retention": timedelta(0)}, r"offload_retention: .*above 0"),
        ({"grace": "soon"}, r"offload_grace: 'soon'.*'90s', '1h30m', or '7d'"),
        ({"message_limit": 1000}, r"offload_message_limit: 1000.*at least 4096.*reference"),
        ({"message_limit": False}, r"offload_message_limit: False"),
        ({"retention": 0}, r"offload_retention: 0"),
        ({"retention": float("nan")}, r"offload_retention: nan"),
        ({"results": 1}, r"offload_results: 1"),
        ({"inline": "config"}, r"offload_inline: 'config'"),
        ({"inline": [1]}, r"offload_inline"),
        ({"accept": ["nonsense"]}, r"offload_accept: 'nonsense' is unknown.*There are:.* json"),
        ({"accept": ["json", "pikle"]}, r"offload_accept: 'pikle'.*did you mean 'pickle'"),
        ({"accept": "pickle"}, r"offload_accept: 'pickle' is invalid; expected a list"),
        ({"store": []}, r"offload_store"),
        ({"store": 5}, r"offload_store"),
        ({"retention": float("inf")}, r"offload_retention"),
        ({"retry": {"interval_max": float("inf")}}, r"offload_retry"),
        ({"store": ["redis://a", None]}, r"offload_store"),
        ({"store": "redis://a", "tier_sizes": 5}, r"offload_tier_sizes: \(5,\).*is one URL"),
        ({"tier_sizes": (1, 2)}, r"offload_tier_sizes: \(1, 2\).*is one URL"),
        (
            {"store": ["a", "b", "c"]},
            r"offload_tier_sizes: \(1048576,\).*expected 2 for the 3 URLs",
        ),
        (
            {"store": ["a", "b"], "tier_sizes": ()},
            r"offload_tier_sizes: \(\).*expected 1 for the 2 URLs",
        ),
        ({"store": ["a", "b"], "tier_sizes": 0}, r"offload_tier_sizes: \(0,\).*above 0"),
        ({"store": ["a", "b"], "tier_sizes": "5q"}, r"offload_tier_sizes: '5q'"),
        ({"store": ["a", "b"], "tier_sizes": [1.5]}, r"offload_tier_sizes: 1.5"),
        (
            {"store": ["a", "b", "c"], "tier_sizes": [5, 5]},
            r"offload_tier_sizes: \(5, 5\).*greater",
        ),
        ({"secret": "short"}, r"offload_secret"),
        ({"secret": ["long enough to pass", "no"]}, r"offload_secret"),
        ({"on_outage": "panic"}, r"offload_on_outage"),
        ({"compression": "gzip"}, r"offload_compression"),
        ({"prefetch": True}, r"offload_prefetch: True.*'auto', 'on', or 'off'"),
        ({"retry": 5}, r"offload_retry: 5"),
        ({"retry": {"max_retry": 5}}, r"offload_retry.*did you mean 'max_retries'"),
        ({"retry": {"max_retries": -1}}, r"offload_retry: 'max_retries': -1"),
        ({"retry": {"interval_max": "x"}}, r"offload_retry: 'interval_max': 'x'.*a number of s"),
        ({"code": "on"}, r"offload_code: 'on'.*'off', 'signed', or 'trusted'"),
        ({"code": True}, r"offload_code: True"),
        ({"code": "signed"}, r"offload_code is 'signed'.*offload_verify_keys"),
        ({"code": "signed", "verify_keys": []}, r"offload_code is 'signed'.*offload_verify_keys"),
        ({"code_allow": "shop.*"}, r"offload_code_allow: 'shop.\*' is invalid; expected a list"),
        ({"code_allow": [5]}, r"offload_code_allow"),
        ({"code_allow": [""]}, r"offload_code_allow: ''"),
        ({"code_allow": ["shop.A@"]}, r"offload_code_allow: 'shop.A@' is invalid.*at least 12"),
        ({"code_allow": ["shop.A@abc"]}, r"offload_code_allow: 'shop.A@abc'"),
        ({"code_allow": ["@" + 12 * "a"]}, r"offload_code_allow: '@aaaaaaaaaaaa'"),
        ({"code_allow": ["shop.A@" + 12 * "A"]}, r"offload_code_allow: 'shop.A@AAAAAAAAAAAA'"),
        ({"code_allow": ["a@" + 12 * "a" + "\n"]}, r"offload_code_allow"),
        ({"signing_key": b"ed25519:"}, r"offload_signing_key: ed25519:…, hmac:… or a PEM"),
        ({"verify_keys": 5}, r"offload_verify_keys: a list of keys"),
        ({"verify_keys": [None]}, r"offload_verify_keys: a list of keys"),
        ({"ship_source": "yes"}, r"offload_ship_source: 'yes'.*True or False"),
    ),
)
def test_wrong_settings_are_refused(given, message):
    """A wrong value or name raises ConfigurationError with the key and valid values."""
    with pytest.raises(ConfigurationError, match=message):
        Settings.read({}, None, given)


def test_settings_take_sizes_and_durations_as_text():
    """Sizes may be strings such as ``64 KiB``; times may be strings or timedeltas."""
    sizes = ("threshold", "max_size", "inline_limit", "memo_size", "cache_size", "message_limit")
    settings = Settings(
        **dict.fromkeys(sizes, "64 KiB"),
        store=["a", "b", "c"],
        tier_sizes=["64k", "1.5MB"],
        retention="7d",
        grace=timedelta(hours=1),
        stats_interval="0s",
        retry={"interval_start": "200ms", "interval_max": "1m"},
    )
    assert {getattr(settings, name) for name in sizes} == {65536}
    assert settings.tier_sizes == (64_000, 1_500_000)
    assert (settings.retention, settings.grace, settings.stats_interval) == (604_800, 3600, 0)
    assert (settings.retry.interval_start, settings.retry.interval_max) == (0.2, 60)


def test_options_take_sizes_and_durations_as_text():
    """Options of a task or call take the same texts as settings."""
    given = {"threshold": "64k", "retention": "1h30m", "memo": "7d", "memo_lease": "90s"}
    options = TaskOptions.read(given, "task 'job'")
    assert (options.threshold, options.retention) == (64_000, 5400)
    assert (options.memo, options.memo_lease) == (604_800, 90)
    with pytest.raises(ConfigurationError, match=r"task 'job'.*'memo': '7x'.*True, False, a num"):
        TaskOptions.read({"memo": "7x"}, "task 'job'")


def test_what_type_checkers_know_is_valid():
    """Each text in the types of sizes and durations can be read; `size` and `duration` read all."""
    assert all(size(text) > 0 for text in get_args(SizeText))
    assert all(duration(text) > 0 for text in get_args(DurationText))
    assert (size("96 KiB"), duration("36h")) == (98_304, 129_600)
    for parse, wrong in ((size, "64q"), (duration, "7")):
        with pytest.raises(ConfigurationError, match=f"{parse.__name__}: '{wrong}' is invalid"):
            parse(wrong)


@pytest.mark.parametrize(
    ("stores", "given", "sizes"),
    (
        (["a", "b"], None, (1 << 20,)),
        (["a", "b"], 5, (5,)),
        (["a", "b"], "5k", (5000,)),
        (["a", "b"], [5], (5,)),
        (["a", "b", "c"], [5, 6], (5, 6)),
        (["a"], None, (1 << 20,)),
    ),
)
def test_the_sizes_of_tiers(stores, given, sizes):
    """There is one size fewer than stores; a single one needn't be a list."""
    settings = Settings.read({"offload_store": stores, "offload_tier_sizes": given}, None, {})
    assert (settings.store, settings.tier_sizes) == (tuple(stores), sizes)


def test_a_secret_is_not_shown():
    """No repr or error contains a secret."""
    secret = "correct horse battery"
    assert secret not in repr(Settings(secret=secret))
    with pytest.raises(ConfigurationError) as caught:
        Settings(secret=(secret, "horse"))
    assert "horse" not in str(caught.value)


def test_code_is_off_unless_it_is_set():
    """By default no code is loaded or signed, and no source is sent."""
    settings = Settings()
    assert (settings.code, settings.code_allow, settings.verify_keys) == ("off", (), ())
    assert (settings.signing_key, settings.ship_source) == (None, False)


def test_settings_of_code(tmp_path):
    """They are read like others; a single key may replace a list, and text a path."""
    conf = {
        "CELERY_OFFLOAD_CODE": "signed",
        "CELERY_OFFLOAD_CODE_ALLOW": ["shop.*", "jobs.A@" + 12 * "a"],
        "CELERY_OFFLOAD_SIGNING_KEY": tmp_path / "key.pem",
        "CELERY_OFFLOAD_VERIFY_KEYS": {"key": "ed25519:…", "until": "2030-01-01"},
        "CELERY_OFFLOAD_SHIP_SOURCE": True,
    }
    settings = Settings.read(conf, "CELERY", {})
    assert (settings.code, settings.ship_source) == ("signed", True)
    assert settings.code_allow == ("shop.*", "jobs.A@aaaaaaaaaaaa")
    assert settings.signing_key == str(tmp_path / "key.pem")
    assert settings.verify_keys == ({"key": "ed25519:…", "until": "2030-01-01"},)
    assert Settings(code="signed", verify_keys="hmac:x").verify_keys == ("hmac:x",)
    assert Settings(code="signed", signing_key="hmac:x").verify_keys == ()


def test_keys_are_not_shown():
    """No repr or error contains a key, also a verification key, which may be a secret."""
    shown = repr(Settings(code="signed", signing_key="hmac:horse", verify_keys=["hmac:battery"]))
    assert "horse" not in shown
    assert "battery" not in shown
    for given in ({"signing_key": b"horse"}, {"verify_keys": ["a", b"horse"]}):
        with pytest.raises(ConfigurationError) as caught:
            Settings(**given)
        assert "horse" not in str(caught.value)


def test_an_accepted_serializer_is_one_that_kombu_knows():
    """A serializer is accepted by name, by content type, or as registered by the app."""
    register("test-custom", str, str, "application/x-test-custom")
    try:
        accept = ("pickle", "application/x-yaml", "test-custom")
        assert Settings(accept=accept).accept == accept
    finally:
        unregister("test-custom")


def test_waits_grow_by_a_fixed_step():
    """Waits grow by a step up to a maximum, like Celery's ``retry_policy``, with a random fifth."""
    policy = RetryPolicy(max_retries=9, interval_start=1, interval_step=2, interval_max=6)
    assert [policy.wait(i, lambda: 0.5) for i in range(5)] == [1, 3, 5, 6, 6]
    assert [policy.wait(i, lambda: 0.0) for i in range(2)] == pytest.approx([0.8, 2.4])
    assert [policy.wait(i, lambda: 1.0) for i in range(3)] == pytest.approx([1.2, 3.6, 6])


def test_retrying_waits_as_long_as_documented():
    """Retries take six seconds in total by default, and as long as in kombu with Celery's own
    policy.
    """

    def waits(policy):
        return [policy.wait(i, lambda: 0.5) for i in range(policy.max_retries)]

    assert sum(waits(RetryPolicy())) == pytest.approx(6.0)
    conf = Celery(set_as_current=False).conf.task_publish_retry_policy
    start, step, most = (conf[f"interval_{name}"] for name in ("start", "step", "max"))
    celery = islice(fxrange(start, most + start, step, repeatlast=True), conf["max_retries"])
    assert waits(Settings(retry=dict(conf)).retry) == pytest.approx(list(celery))


@pytest.mark.parametrize("given", (True, False))
def test_options_as_a_switch(given):
    """``offload=True`` and ``offload=False`` enable and disable a task."""
    assert TaskOptions.read(given, "task").enabled is given


def test_options_over_others():
    """Missing options are taken from those of the lower level."""
    upper = TaskOptions(threshold=0, inline=())
    lower = TaskOptions(threshold=5, inline=("a",), results=False)
    assert upper.over(lower) == TaskOptions(threshold=0, inline=(), results=False)
    assert TaskOptions.read(None, "x").over(lower) is lower


NO_TIMES = {
    **{str(given): given for given in (math.nan, math.inf, -math.inf, -1, True)},
    "1e400": 10**400,
    "-1e400": -(10**400),
    "too long to show": 10**5000,
}


@pytest.mark.parametrize("number", NO_TIMES.values(), ids=NO_TIMES)
def test_a_number_that_is_no_time_is_refused(number):
    """Any number that can't be a time is a ConfigurationError, in settings, options, and calls."""
    for name in ("retention", "memo", "memo_lease"):
        if not (name == "memo" and number is True):
            with pytest.raises(ConfigurationError, match=name):
                TaskOptions(**{name: number})
    for setting in ("retention", "grace", "stats_interval"):
        with pytest.raises(ConfigurationError, match=f"offload_{setting}"):
            Settings(**{setting: number})
    for option in ("interval_start", "interval_step", "interval_max"):
        with pytest.raises(ConfigurationError, match=option):
            Settings(retry={option: number})
