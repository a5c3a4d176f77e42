"""What serves now: versions, traffic, connections to the predictor and, in a cluster, conditions."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from placement.target import add_target_arguments, errors, target_of, work

__all__ = ["HELP", "add_arguments", "errors", "run"]

HELP = "show what serves now"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    add_target_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print it."""
    content = work(options, lambda _: _status(options))
    if options.json:
        print(json.dumps(content))
        return 0
    print(f"transformer  {content['transformer_uri']}")
    print(f"predictor    {content['predictor_uri']}")
    if content["canary"]:
        print(f"canary       {content['canary']['uri']}, {content['canary']['percent']} % of the traffic")
    if content["previous_uri"]:
        print(f"previous     {content['previous_uri']}")
    for one in content["connections"]:
        whose = " (canary)" if one["component"] == "canary" else ""
        print(f"connections  {one['count']} {one['state']} {one['version']}".rstrip() + whose)
    for one in content["conditions"]:
        print(f"condition    {one['type']} {one['status']} {one.get('message') or ''}".rstrip())
    return 0


async def _status(options: argparse.Namespace) -> dict[str, Any]:
    from inferenceservice.cluster.target import ClusterTarget
    from inferenceservice.local.control import LocalTarget

    target = target_of(options)
    content: dict[str, Any] = asdict(await target.state())
    content["connections"] = []
    content["conditions"] = []
    if isinstance(target, LocalTarget):
        content["connections"] = _connections(await target.metrics())
    elif isinstance(target, ClusterTarget):
        status = asdict(await target.conditions())
        content.update(conditions=status.pop("conditions"), cluster=status)
    return content


def _connections(metrics: dict[str, str]) -> list[dict[str, Any]]:
    """Connections to the predictor, from the metrics of each transformer."""
    from prometheus_client.parser import text_string_to_metric_families

    return [
        {"component": component, **sample.labels, "count": int(sample.value)}
        for component, text in metrics.items()
        for family in text_string_to_metric_families(text)
        if family.name == "transformer_predictor_connections"
        for sample in family.samples
        if sample.value
    ]
