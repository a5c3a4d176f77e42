"""What serves now: versions, traffic, connections to the predictor and, in a cluster, what KServe says."""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from placement.status_text import lines
from placement.target_arguments import add_target_arguments, errors, target_of, work

if TYPE_CHECKING:
    from inferenceservice.rollout_target import RolloutTarget

__all__ = ["HELP", "add_arguments", "errors", "run"]

HELP = "show what serves now"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    add_target_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print it."""
    content = work(options, lambda _: _status(target_of(options)))
    if options.json:
        print(json.dumps(content))
    else:
        print("\n".join(lines(content)))
    return 0


async def _status(target: "RolloutTarget") -> dict[str, Any]:
    from inferenceservice.cluster.cluster_target import ClusterTarget

    content: dict[str, Any] = asdict(await target.state())
    texts, unknown = await _metrics(target)
    try:
        content["connections"] = _connections(texts)
    except ValueError as error:
        content["connections"], unknown = [], f"what answers is not the transformer: {error}"
    content["connections_unknown"] = unknown
    content["conditions"] = []
    if isinstance(target, ClusterTarget):
        status = asdict(await target.conditions())
        content.update(conditions=status.pop("conditions"), cluster=status)
    return content


async def _metrics(target: "RolloutTarget") -> tuple[list[tuple[str, str]], str | None]:
    """Metrics of each transformer with what it is, and why some are missing."""
    from inferenceservice.cluster.cluster_target import ClusterTarget
    from inferenceservice.local.control_client import LocalTarget
    from inferenceservice.rollout_target import TargetError

    try:
        if isinstance(target, LocalTarget):
            return list((await target.metrics()).items()), None
        if isinstance(target, ClusterTarget):
            pods = await target.metrics()
            return [("transformer", text) for text in pods.texts.values()], pods.error
    except TargetError as error:
        return [], str(error)
    return [], None


def _connections(texts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Connections to the predictor, summed over the transformers."""
    from prometheus_client.parser import text_string_to_metric_families

    counts: Counter[tuple[str, str, str]] = Counter()
    for component, text in texts:
        for family in text_string_to_metric_families(text):
            if family.name != "transformer_predictor_connections":
                continue
            for sample in family.samples:
                counts[component, sample.labels["state"], sample.labels["version"]] += int(sample.value)
    return [
        {"component": component, "version": version, "state": state, "count": count}
        for (component, state, version), count in counts.items()
        if count
    ]
