"""The overlay `monitoring`: its objects are valid, and its rules compute the figures that the docs define."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.support.cluster.manifests import of_kind, service, transformer_container
from tests.support.custom_resources import spec_schema
from tests.support.monitoring_overlay import OVERLAY, debian_program, panels, rules, write_rules

FILES = {"PodMonitor": "podmonitors.crd.yaml", "PrometheusRule": "prometheusrules.crd.yaml"}
TARGET = 'namespace="models", inferenceservice="placement"'


@pytest.mark.parametrize("kind", FILES)
def test_the_operators_schema_knows_every_field(kind):
    schema = spec_schema(FILES[kind])
    (manifest,) = of_kind("monitoring", kind)
    schema.validate(manifest["spec"])
    with pytest.raises(jsonschema_rs.ValidationError):
        schema.validate({**manifest["spec"], "misspelt": "x"})


def test_the_pods_are_those_of_the_transformer_and_their_port_exists():
    (monitor,) = of_kind("monitoring", "PodMonitor")
    manifest = service("monitoring")
    assert monitor["spec"]["selector"]["matchLabels"] == {
        "serving.kserve.io/inferenceservice": manifest["metadata"]["name"],
        "component": "transformer",
    }
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in transformer_container(manifest)["ports"]}


def test_the_configuration_without_the_operator_scrapes_the_same_pods(tmp_path):
    content = yaml.safe_load((OVERLAY / "prometheus.yaml").read_text())
    (job,) = content["scrape_configs"]
    (monitor,) = of_kind("monitoring", "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert job["metrics_path"] == endpoint["path"]
    kept = {one["regex"] for one in job["relabel_configs"] if one.get("action") == "keep"}
    assert kept == {".+;transformer", endpoint["port"]}
    promtool = debian_program("promtool")
    # Debian's Prometheus knows no Kubernetes.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(content))
    write_rules(tmp_path).rename(tmp_path / "placement.rules.yaml")
    command = [promtool, "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_has_the_sidecars_label_and_the_files_content():
    (config,) = of_kind("monitoring", "ConfigMap")
    assert config["metadata"]["labels"] == {"grafana_dashboard": "1"}
    (content,) = config["data"].values()
    assert json.loads(content) == json.loads((OVERLAY / "dashboard.json").read_text())


def test_the_panels_do_not_overlap():
    dashboard = json.loads((OVERLAY / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len(panels()) == len([one for one in dashboard["panels"] if one["type"] != "row"])


def test_every_alert_says_what_happened_and_how_severe_it_is():
    alerts = [rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) >= 9
    for alert in alerts:
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert alert["annotations"].keys() == {"summary", "description"}


VERSION = 'version="v1"'
GENDER = f'{VERSION}, field="gender"'
TRAINING = {"F": 0.4, "M": 0.6, "other": 0.0}


def grows(name: str, labels: str, total: float, minutes: int = 120) -> dict[str, str]:
    """Return a counter that grows by `total` over two hours, then stays."""
    # Rounded down: if the last value were smaller than the one before, the counter would count as restarted.
    each = math.floor(total / minutes * 1e9) / 1e9
    return {"series": f"{name}{{{TARGET}, {labels}}}", "values": f"0+{each:.9f}x{minutes} {total}x30"}


def stays(name: str, labels: str, value: float, minutes: int = 150) -> dict[str, str]:
    """Return a series with one value."""
    return {"series": f"{name}{{{TARGET}, {labels}}}", "values": f"{value}x{minutes}"}


def check(
    tmp_path: Path,
    series: list[dict[str, str]],
    values: dict[str, float | None],
    alerts: dict[str, str] | None = None,
    minute: int = 145,
) -> None:
    """Evaluate the rules over series, and compare values and firing alerts with those expected.

    Parameters
    ----------
    values
        Value of each expression, None if it has none.
    alerts
        The alerts that fire, and the field or version that they name.
    """
    tests: list[dict[str, Any]] = []
    for expression, value in values.items():
        near = f"abs(({expression}) - {value}) < bool 0.001" if value is not None else expression
        expected = [] if value is None else [{"labels": "{}", "value": 1}]
        tests.append({"expr": f"max({near})", "eval_time": f"{minute}m", "exp_samples": expected})
    firing = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(alerts or {})]
    expression = 'max by (alertname) (ALERTS{alertstate="firing"})'
    tests.append({"expr": expression, "eval_time": f"{minute}m", "exp_samples": firing})
    for name, label in (alerts or {}).items():
        expression = f'max(ALERTS{{alertname="{name}", alertstate="firing", {label}}})'
        tests.append(
            {"expr": expression, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": 1}]}
        )
    content = {
        "rule_files": [str(write_rules(tmp_path))],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}],
    }
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [debian_program("promtool"), "test", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_valid(tmp_path):
    command = [debian_program("promtool"), "check", "rules", "--lint=all", str(write_rules(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def psi(counts: dict[str, float]) -> float:
    """Return the population stability index, by its definition in docs/monitoring.md."""
    total = sum(counts.values())
    pairs = [(max(counts[one] / total, 1e-4), max(TRAINING[one], 1e-4)) for one in TRAINING]
    return sum((now - before) * math.log(now / before) for now, before in pairs)


@pytest.mark.parametrize(
    ("counts", "drifted"),
    [
        ({"F": 400, "M": 600, "other": 0}, False),
        ({"F": 800, "M": 200, "other": 0}, True),
        ({"F": 320, "M": 80, "other": 0}, False),
        ({"F": 350, "M": 550, "other": 100}, True),
    ],
    ids=["the same", "shifted", "shifted, too few", "unknown category"],
)
def test_the_psi_adds_up_all_pods_and_alerts_from_a_minimum_count(counts, drifted, tmp_path):
    series = [
        grows("transformer_candidate_values_total", f'pod="{pod}", {GENDER}, bin="{bin_}"', count * part)
        for bin_, count in counts.items()
        for pod, part in (("a", 0.25), ("b", 0.75))
    ]
    series += [
        stays("transformer_training_share", f'pod="{pod}", {GENDER}, bin="{bin_}"', share)
        for bin_, share in TRAINING.items()
        for pod in "ab"
    ]
    total = sum(counts.values())
    series.append(grows("transformer_decisions_total", f'{VERSION}, decision="positive"', total))
    alerts = {"CandidatesDrifted": 'field="gender"'} if drifted else {}
    assert drifted == (psi(counts) > 0.25 and total >= 500)
    check(tmp_path, series, {"field:transformer_candidate_psi:increase1d": psi(counts)}, alerts)


@pytest.mark.parametrize(("low", "distance"), [(300, 0.0), (550, 0.25)])
def test_the_distance_of_scores_is_that_of_the_cumulative_shares(low, distance, tmp_path):
    series = [
        grows("transformer_candidate_score_bucket", f'{VERSION}, le="0.5"', low),
        grows("transformer_candidate_score_bucket", f'{VERSION}, le="1.0"', 1000),
        grows("transformer_candidate_score_bucket", f'{VERSION}, le="+Inf"', 1000),
        grows("transformer_candidate_score_count", VERSION, 1000),
        stays("transformer_training_score_share", f'{VERSION}, score="0.5"', 0.3),
        stays("transformer_training_score_share", f'{VERSION}, score="1.0"', 1),
        grows("transformer_decisions_total", f'{VERSION}, decision="positive"', 1000),
    ]
    alerts = {"ScoresDrifted": VERSION} if distance else {}
    name = "version:transformer_candidate_score_distance:increase1d"
    check(tmp_path, series, {name: distance}, alerts)


@pytest.mark.parametrize(
    ("women", "men", "impact"),
    [((200, 300), (400, 100), 0.5), ((390, 110), (400, 100), 0.975), ((20, 70), (400, 100), None)],
    ids=["less often", "about as often", "small group"],
)
def test_groups_are_compared_by_their_selection_rates(women, men, impact, tmp_path):
    series = [
        grows(
            "transformer_group_decisions_total",
            f'{GENDER}, group="{group}", decision="{decision}"',
            count,
        )
        for group, counts in (("F", women), ("M", men))
        for decision, count in zip(("positive", "negative"), counts, strict=True)
    ]
    positive, negative = women[0] + men[0], women[1] + men[1]
    series.append(grows("transformer_decisions_total", f'{VERSION}, decision="positive"', positive))
    series.append(grows("transformer_decisions_total", f'{VERSION}, decision="negative"', negative))
    rate = "group:transformer_selection_rate:increase1d"
    # A group is compared with others, and equals itself if it is the only one that is large enough.
    values = {
        f'{rate}{{group="F"}}': women[0] / sum(women),
        "version:transformer_selection_rate:increase1d": positive / (positive + negative),
        "field:transformer_disparate_impact:increase1d": 1 if impact is None else impact,
    }
    alerts = {"GroupSelectedLess": 'field="gender"'} if impact == 0.5 else {}
    check(tmp_path, series, values, alerts)


def requests(status: str, version: str, each_minute: float) -> dict[str, str]:
    labels = f'protocol="v1", verb="predict", status="{status}", version="{version}"'
    return {"series": f"transformer_requests_total{{{TARGET}, {labels}}}", "values": f"0+{each_minute}x150"}


def connections(state: str, version: str, count: float) -> dict[str, str]:
    return stays("transformer_predictor_connections", f'state="{state}", version="{version}"', count)


USABLE = connections("usable", "v1", 4)
SERVICE_ALERTS: dict[str, tuple[list[dict[str, str]], dict[str, str]]] = {
    "healthy": ([requests("200", "v1", 100), requests("400", "", 50), USABLE], {}),
    "no requests": ([USABLE], {}),
    "errors": (
        [requests("200", "v1", 97), requests("503", "", 3), USABLE],
        {"TransformerErrors": 'severity="critical"'},
    ),
    "only errors": ([requests("503", "", 3), USABLE], {"TransformerErrors": 'severity="critical"'}),
    "slow": (
        [
            grows("transformer_request_seconds_bucket", 'le="0.5"', 900, 149),
            grows("transformer_request_seconds_bucket", 'le="1"', 1000, 149),
            grows("transformer_request_seconds_bucket", 'le="+Inf"', 1000, 149),
            USABLE,
        ],
        {"TransformerSlow": 'severity="warning"'},
    ),
    "no connection": (
        [connections("usable", "v1", 0), connections("waiting", "", 4)],
        {"TransformerWithoutPredictor": 'severity="critical"'},
    ),
    "never a connection": (
        [connections("verifying", "", 4)],
        {"TransformerWithoutPredictor": 'severity="critical"'},
    ),
    "unverified": (
        [connections("usable", "unverified", 1), USABLE],
        {"TransformerServesUnverifiedModel": 'severity="critical"'},
    ),
    "two versions": (
        [requests("200", "v1", 100), requests("200", "v2", 1), USABLE],
        {"TransformerServesTwoVersions": 'severity="warning"'},
    ),
    "no retries left": (
        [grows("transformer_predictor_retries_denied_total", 'reason="dropped"', 149, 149), USABLE],
        {"TransformerRetryBudgetSpent": 'severity="warning"'},
    ),
}


@pytest.mark.parametrize("case", SERVICE_ALERTS)
def test_an_alert_fires_when_the_service_needs_help(case, tmp_path):
    series, alerts = SERVICE_ALERTS[case]
    check(tmp_path, series, {}, alerts)
