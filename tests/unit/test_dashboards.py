"""The dashboard, the alerts and docs/metrics.md speak of metrics that exist, with labels that they have."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from metamusesd.metrics import FAMILIES, PREFIX
from metamusesd.supervisor.gauges import COMPUTED
from tests.metrics_page import PAGE, ROOT, RULES, alerts, written
from tests.unit.supervisor.test_gauges import whole_family

DASHBOARD = ROOT / "etc/grafana/metamusesd.json"
RULE_TESTS = ROOT / "etc/prometheus/metamusesd.rules.test.yml"
ALL = {PREFIX + family.name: family for family in (*FAMILIES, *(each.family for each in COMPUTED))}
EVERYWHERE = {"job", "instance", "le"}
NAME = re.compile(r"\b" + PREFIX + r"[a-z0-9_]+")
PROMTOOL = shutil.which("promtool")


def family_of(name: str) -> Any:
    """Of a name as it stands in an expression."""
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    if name not in ALL and stem in ALL:
        assert ALL[stem].kind == "histogram", f"{name}: {stem} is no histogram"
        return ALL[stem]
    assert name in ALL, f"{name} is not exposed"
    assert ALL[name].kind != "histogram", f"{name} is a histogram: take its _bucket, _sum or _count"
    return ALL[name]


def check(expression: str) -> None:
    """All names of an expression exist, and so do the labels that it selects and groups by."""
    found = [family_of(name) for name in NAME.findall(expression)]
    for name, selectors in re.findall(r"(" + PREFIX + r"[a-z0-9_]+)\{([^}]*)\}", expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selectors)))
        assert labels <= set(family_of(name).labels) | EVERYWHERE, f"{name} has no {labels}"
    grouped = {word for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression) for word in group.split(",")}
    known = {label for family in found for label in family.labels} | EVERYWHERE
    assert {word.strip() for word in grouped if word.strip()} <= known, expression


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def test_the_alerts_are_about_metrics_that_exist():
    """Every name and label of every rule; each has a severity, says what it means and what to do, and only its own
    labels stand in its texts."""
    found = alerts(RULES.read_text("utf-8"))
    assert len(found) == len({alert.name for alert in found}) == RULES.read_text("utf-8").count("- alert:")
    for alert in found:
        check(alert.expr)
        assert alert.severity in ("critical", "warning"), alert.name
        assert alert.summary and alert.description.endswith(".") and alert.action, alert.name
        assert "$labels.instance" in alert.summary, alert.name


def test_a_wrong_name_or_label_would_be_found():
    """The check itself: a metric, a label, a grouping and a bare histogram that do not exist."""
    for wrong in (
        "metamusesd_no_such_total",
        'metamusesd_ready{tier="fast"}',
        "sum by (tier) (metamusesd_ready)",
        "metamusesd_ready_count",
        "rate(metamusesd_time_to_first_token_seconds[5m])",
    ):
        with pytest.raises(AssertionError):
            check(wrong)


def test_the_dashboard_shows_metrics_that_exist():
    """Every expression of every panel; each panel says what it shows, and takes the datasource that was chosen."""
    asked = 0
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            asked += 1
            check(target["expr"])
            legends = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) if "legendFormat" in target else set()
            labels = {label for name in NAME.findall(target["expr"]) for label in family_of(name).labels}
            assert legends <= labels | EVERYWHERE, panel["title"]
    assert asked > 50


def test_the_panels_lie_side_by_side():
    """No two overlap, none sticks out, no id comes twice."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))


def test_the_page_of_metrics_is_true():
    """docs/metrics.md has every metric and every alert as the code and the rules have them."""
    page = PAGE.read_text("utf-8")
    assert page == written(page), "run python -m tests.metrics_page"


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
@pytest.mark.parametrize("arguments", [("check", "rules", RULES.name), ("test", "rules", RULE_TESTS.name)])
def test_prometheus_accepts_the_rules_and_their_tests(arguments):
    """The real promtool reads the rules and finds that they fire when they should, and not when they should not."""
    done = subprocess.run([str(PROMTOOL), *arguments], cwd=RULES.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_prometheus_accepts_every_question_of_the_dashboard(tmp_path):
    """The real promtool parses each expression, once Grafana's variables are filled in."""
    asked = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    plain = [expr.replace("$__rate_interval", "5m").replace("$instance", ".*") for expr in asked]
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(plain)]
    path = tmp_path / "dashboard.yml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([str(PROMTOOL), "check", "rules", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_prometheus_accepts_the_metrics():
    """The real promtool parses and lints a page on which everything has a value. What it says against vLLM's own words
    is known."""
    done = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=whole_family().metrics(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (0, 3), done.stderr
    assert done.stdout + done.stderr == ""


def test_the_rules_are_tested():
    """Whoever adds an alert that wakes people proves that it does."""
    tested = set(re.findall(r"alertname: (\w+)", RULE_TESTS.read_text("utf-8")))
    assert tested <= {alert.name for alert in alerts(RULES.read_text("utf-8"))}
    assert {alert.name for alert in alerts(RULES.read_text("utf-8")) if alert.severity == "critical"} <= tested


def test_what_is_shipped_is_where_the_docs_say():
    """The three files that docs/metrics.md names."""
    for path in (DASHBOARD, RULES, RULE_TESTS):
        assert path.is_file()
        assert Path(path.relative_to(ROOT)).name in PAGE.read_text("utf-8")
