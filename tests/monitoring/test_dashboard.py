"""The Grafana dashboard, checked with Grafana's types and a real Prometheus, without Grafana."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations, pairwise
from math import isfinite
from pathlib import Path

import pytest
import yaml

from tests.support.processes import wait_until
from tests.support.prometheus import MONITORING, ROOT

GRAFANA = MONITORING / "grafana"
FILE = GRAFANA / "dashboards" / "offload.json"
BOARD = json.loads(FILE.read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}

# What Grafana replaces in an expression, with All selected and a range of all data.
FILLED_IN = {"$instance": ".*", "$task": ".*", "$__rate_interval": "10m", "$__range": "1h"}

EXPRESSIONS = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
} | {each["name"]: each["target"]["expr"] for each in BOARD["annotations"]["list"]}

TYPES = Path(__file__).with_name("grafana")
COMPILER = TYPES / "node_modules" / ".bin" / "tsc"
REQUIRED = {"id", "type", "title", "description", "datasource", "gridPos", "targets"}
REQUIRED |= {"fieldConfig", "options"}


def filled_in(expression):
    for name, value in FILLED_IN.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@pytest.mark.integration
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_give_numbers(live, name):
    """Prometheus accepts each expression and returns numbers once counters have risen."""
    expression = filled_in(EXPRESSIONS[name])

    def numbers():
        found = live.query(expression)
        return found and all(map(isfinite, found))

    wait_until(numbers, expression)


@pytest.mark.integration
@pytest.mark.parametrize("name", ("instance", "task"))
def test_variables_have_values(live, name):
    """The exporter's metrics fill each variable's list."""
    query = filled_in(VARIABLES[name]["query"])
    metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
    wait_until(lambda: live.query(f"count by ({label}) ({metric})"), query)


@pytest.mark.parametrize("change", (None, ('"drawStyle"', '"drawStile"'), ('"bars"', '"bar"')))
def test_follows_grafanas_types(tmp_path, change):
    """Keys and types match those that Grafana publishes, and the check finds violations."""
    if not COMPILER.exists():
        pytest.skip(f"needs npm install --no-package-lock --prefix {TYPES.relative_to(ROOT)}")
    board = FILE.read_text()
    if change:
        assert change[0] in board
        board = board.replace(*change)
    board_type = json.dumps(str(TYPES / "board"))
    (tmp_path / "check.ts").write_text(
        f"import type {{ Board }} from {board_type};\nexport const board: Board = {board};\n"
    )
    config = {"extends": str(TYPES / "tsconfig.json"), "files": ["check.ts"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [COMPILER, "--project", tmp_path], check=False, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (change is None), done.stdout


def test_first_page_is_that_of_the_web_dashboard():
    """Grafana's first rows have the headings of the web dashboard's first page, in its order, and
    panels below each; no two panels have one title.
    """
    page = ROOT / "offload" / "dashboard" / "templates" / "overview.html"
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page.read_text())
    lines = sorted(
        BOARD["panels"], key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"])
    )
    assert lines == BOARD["panels"]
    rows = [panel["title"] for panel in lines if panel["type"] == "row"]
    assert rows[: len(headings)] == headings
    assert lines[0]["type"] == "row"
    kinds = [panel["type"] == "row" for panel in lines]
    assert (True, True) not in pairwise(kinds)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_panels_are_complete():
    """Without a compiler, panels have known kinds with all fields and different ids."""
    assert {panel["type"] for panel in PANELS} <= {"stat", "timeseries", "heatmap", "table"}
    for panel in PANELS:
        assert set(panel) - {"transformations"} == REQUIRED, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(set(letters)) == len(letters)
    identifiers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_panels_do_not_overlap():
    """Panels neither overlap nor exceed the 24 columns."""

    def cells(panel):
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        columns, lines = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        return {(x, y) for x in columns for y in lines}

    for first, second in combinations(BOARD["panels"], 2):
        assert not cells(first) & cells(second), (first["title"], second["title"])


def test_provisioning_fits():
    """The provisioned data source is the dashboard's default."""
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert VARIABLES["datasource"]["current"]["value"] == source["uid"]
    assert VARIABLES["datasource"]["current"]["text"] == source["name"]
    assert VARIABLES["datasource"]["query"] == source["type"] == "prometheus"
    every = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == every["scrape_interval"]
