"""Alert rules, checked with promtool and on a real Prometheus with real counters."""

from __future__ import annotations

import re
import subprocess
from math import isfinite
from pathlib import Path

import pytest
import yaml

from tests.support.processes import wait_until
from tests.support.prometheus import ROOT, RULES, program

CASES = sorted(Path(__file__).with_name("rules").glob("*.test.yml"))
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
RECORDED = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
SELECTOR = re.compile(r"\b(?:up|offload[\w:]+)(?:\{[^}]*\})?")


def run(*command):
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_valid():
    """promtool accepts the file and the configuration that names it."""
    run(program("promtool"), "check", "rules", str(RULES))
    run(program("promtool"), "check", "config", str(RULES.with_name("prometheus.yml")))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.split(".")[0])
def test_alerts_fire_when_they_should(case):
    """promtool runs each case: which alerts fire, when, and with which text."""
    run(program("promtool"), "test", "rules", str(case))


def test_every_alert_has_a_case():
    """Every alert has a case that expects it."""
    text = "".join(case.read_text() for case in CASES)
    assert [name for name in ALERTS if f'alertname="{name}"' not in text] == ["OffloadStoreAway"]
    assert "alertname: OffloadStoreAway" in text  # with its full text


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_severity_and_an_action(name):
    """Every alert has severity, summary, description, and action, and nothing else."""
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert list(rule["annotations"]) == ["summary", "description", "action"]
    assert all(rule["annotations"].values())


@pytest.mark.integration
@pytest.mark.parametrize("name", RECORDED)
def test_recording_rules_have_a_value(live, name):
    """Each recording rule has a number once counters have risen."""
    wait_until(lambda: any(map(isfinite, live.query(name))), f"{name} has a value")


@pytest.mark.integration
@pytest.mark.parametrize("name", ALERTS)
def test_series_of_alerts_exist(live, name):
    """Each expression is valid, and each series in it exists."""
    expression = ALERTS[name]["expr"]
    live.query(expression)
    selectors = SELECTOR.findall(expression)
    assert selectors
    for selector in selectors:
        wait_until(lambda: live.query(selector), f"{selector} has a value")  # noqa: B023


@pytest.mark.integration
def test_alerts_fire_on_real_counters(live):
    """Alerts for errors and for single events fire at once with their text; others don't."""
    once = {
        "OffloadBlobsMissing",
        "OffloadContentAltered",
        "OffloadReferencesRefused",
        "OffloadClassesRefused",
        "OffloadCacheAltered",
        "OffloadValuesUnavailable",
        "OffloadErrorsRising",
    }
    wait_until(lambda: once <= set(live.alerts()), "the alerts fire")
    for name, alert in live.alerts().items():
        assert (alert["state"] == "firing") == (name in once), name
        for text in alert["annotations"].values():
            assert not re.search(r"<no value>|<error|\{\{", text)
    assert live.alerts()["OffloadBlobsMissing"]["annotations"]["summary"].startswith(
        "Values of shop."
    )
    unavailable = {"OffloadExporterAway", "OffloadStoreAway"}
    assert not unavailable & set(live.alerts())


def test_the_operators_page_names_every_alert():
    """The operations guide lists each alert in the column of its severity."""
    page = (ROOT / "docs" / "how-to" / "monitoring.md").read_text()
    rows = re.search(r"\| critical \| warning \|\n.*\n((?:  \|.*\n)+)", page)[1].splitlines()
    for column, severity in ((1, "critical"), (2, "warning")):
        named = re.findall(r"`(Offload\w+)`", " ".join(row.split("|")[column] for row in rows))
        rules = {name for name, rule in ALERTS.items() if rule["labels"]["severity"] == severity}
        assert sorted(named) == sorted(rules)
