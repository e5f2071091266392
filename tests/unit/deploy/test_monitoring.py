"""Dashboard, alert rules and README ask for metrics and labels that exist, in queries that Prometheus understands."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from orchestrator.service.census_gauges import census_gauges
from tests.unit.deploy.metrics import EMPTY, Metric, all_metrics

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "deploy" / "monitoring"
PACKAGES = ("agent_worker", "messaging", "orchestrator")
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

QUERIES = {
    **{f"alert {rule['alert']}": rule["expr"] for rule in RULES},
    **{
        f"panel {panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "5m")
        for panel in PANELS
        for target in panel["targets"]
    },
}
FROM_ELSEWHERE = {"process_cpu_seconds_total", "process_resident_memory_bytes"}  # the client library's
OF_THE_SCRAPE = {"instance", "job", "le"}


def selectors(node: Any) -> list[Any]:
    """Return the vector selectors of a query."""
    match node:
        case promql_parser.VectorSelector():
            return [node]
        case promql_parser.MatrixSelector():
            return [node.vector_selector]
        case promql_parser.BinaryExpr():
            return selectors(node.lhs) + selectors(node.rhs)
        case promql_parser.Call():
            return [found for argument in node.args for found in selectors(argument)]
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            return selectors(node.expr)
        case promql_parser.SubqueryExpr():
            return selectors(node.expr)
        case _:
            return []


@pytest.fixture
async def metrics() -> dict[str, Metric]:
    return await all_metrics()


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
async def test_each_query_asks_for_metrics_and_labels_that_exist(query: str, metrics: dict[str, Metric]) -> None:
    by_series = {series: metric for metric in metrics.values() for series in metric.series}
    asked = selectors(promql_parser.parse(query))
    assert asked
    labels = set(OF_THE_SCRAPE)
    for selector in asked:
        assert selector.name in by_series.keys() | FROM_ELSEWHERE, f"there is no metric {selector.name}"
        own = set(by_series[selector.name].labels) if selector.name in by_series else set()
        labels |= own
        assert {matcher.name for matcher in selector.matchers.matchers} <= own
    grouped = re.findall(r"\b(?:by|on|group_left|without) \(([^)]+)\)", query)
    assert {name.strip() for names in grouped for name in names.split(",")} <= labels


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_the_counts_of_the_database_are_never_summed_over_replicas(query: str) -> None:
    for name in (gauge.description.name for gauge in census_gauges(EMPTY, 0)):
        assert not re.search(rf"\b(sum|avg|count)\b[^()]*(\([^()]*\) )?\({name}\b", query), query


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
async def test_each_panel_names_its_series_by_labels_that_its_query_keeps(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        expression = target["expr"]
        kept = {name.strip() for names in re.findall(r"\bby \(([^)]+)\)", expression) for name in names.split(",")}
        plain = " by (" not in expression and not expression.startswith(("max(", "sum(", "min(", "histogram"))
        assert named <= (kept | ({"instance"} if plain else set())), target


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["alert"].startswith("Forkjoin")
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.fullmatch(r"\d+[sm]", rule.get("for", "0m"))
    templated = re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"]))
    kept = {name.strip() for names in re.findall(r"\bby \(([^)]+)\)", rule["expr"]) for name in names.split(",")}
    assert set(templated) <= kept | {"instance"}


def test_the_alerts_have_names_of_their_own() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


async def test_the_readme_lists_every_metric_and_no_other(metrics: dict[str, Metric]) -> None:
    text = (MONITORING / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(forkjoin_\w+)` \| (\w+) \| ([OW ]+) \| (.*?) \| (.+) \|$", text, re.MULTILINE)
    listed = {
        name: (kind, services, labels.replace("`", "").strip(), help) for name, kind, services, labels, help in rows
    }
    expected = {
        metric.name: (metric.kind, metric.services, ", ".join(metric.labels), metric.help)
        for metric in metrics.values()
    }
    assert listed == expected


async def test_the_readme_lists_every_alert() -> None:
    text = (MONITORING / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(Forkjoin\w+)`", text)) == {rule["alert"] for rule in RULES}


async def test_names_are_as_prometheus_wants_them(metrics: dict[str, Metric]) -> None:
    for metric in metrics.values():
        assert re.fullmatch(r"forkjoin_[a-z_]+[a-z]", metric.name)
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert metric.help.endswith(".")


def test_the_runbooks_say_of_each_alert_what_it_means() -> None:
    runbooks = (MONITORING.parent / "RUNBOOKS.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(Forkjoin\w+)` \| .{40,} \|$", runbooks, re.MULTILINE)
    assert sorted(told) == sorted(rule["alert"] for rule in RULES)


async def test_the_runbooks_name_metrics_and_actions_that_exist() -> None:
    runbooks = (MONITORING.parent / "RUNBOOKS.md").read_text(encoding="utf-8")
    known = set(await all_metrics())
    assert set(re.findall(r"`(forkjoin_\w+?)(?:_total)?`", runbooks)) <= known
    source = "".join(path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    for action in ("schema_newer", "broker_unreachable", "consumer_timed_out", "forged_message"):
        assert f"`{action}`" in runbooks
        assert f'action="{action}"' in source
