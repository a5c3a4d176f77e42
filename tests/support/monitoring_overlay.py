"""The overlay `monitoring`: its rules as Prometheus reads them, and the queries of its dashboard."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cluster.manifests import OVERLAYS

OVERLAY = OVERLAYS / "monitoring"
#: Values of the dashboard's variables.
VARIABLES = {"$namespace": ".*", "$inferenceservice": "placement", "$version": ".*", "$__rate_interval": "5m"}


def debian_program(name: str) -> str:
    """Return the path of a program of Debian's packages `prometheus` and `prometheus-alertmanager`."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (Debian: apt-get install prometheus prometheus-alertmanager)")
    return found


def rules() -> dict[str, Any]:
    """Return the content of a Prometheus rule file."""
    content: dict[str, Any] = yaml.safe_load((OVERLAY / "rules.yaml").read_text())["spec"]
    return content


def write_rules(directory: Path, *, immediately: bool = False) -> Path:
    """Write the rule file; `immediately` evaluates all rules each second, and alerts without a pause."""
    content = rules()
    if immediately:
        for group in content["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule.pop("for", None)
    path = directory / "rules.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def panels(field: str = "gender") -> dict[str, list[str]]:
    """Return the queries of each panel of the dashboard, as Grafana sends them when a field is chosen."""
    dashboard = json.loads((OVERLAY / "dashboard.json").read_text())
    return {
        panel["title"]: [_filled_in(target["expr"], field) for target in panel["targets"]]
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    }


def _filled_in(query: str, field: str) -> str:
    for name, value in {**VARIABLES, "$field": field}.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query
