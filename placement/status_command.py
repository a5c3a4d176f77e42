"""Show versions, traffic, connections to the predictor and, in a cluster, the status that KServe reports.

With --url alone, show the models and versions that the service at that address reports.
With --drift, show how the candidates that were answered differ from those of the training, too.
"""

import argparse
import asyncio
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from inferenceservice.gateway import Gateway
from placement.client import ClientError, connect_rest
from placement.command import Command
from placement.status_text import status_lines
from placement.target_arguments import (
    add_target_arguments,
    connect_target,
    is_local,
    run_steps,
    target_errors,
)

if TYPE_CHECKING:
    from inferenceservice.rollout_target import RolloutTarget


def _run(options: argparse.Namespace) -> int:
    if options.url is not None and is_local(options):
        return _run_by_url(options)
    content = run_steps(lambda _: _read_status(connect_target(options), drift=options.drift))
    if options.json:
        print(json.dumps(content))
    else:
        print("\n".join(status_lines(content)))
    return 0


def _run_by_url(options: argparse.Namespace) -> int:
    """Print what the service at `--url` reports."""
    models = asyncio.run(_read_models(options))
    if options.json:
        print(json.dumps({"url": options.url, "models": models}))
        return 0
    for one in models:
        print(f"model        {one['name']}, {'ready' if one['ready'] else 'not ready'}")
        print(f"versions     {', '.join(one['versions']) or 'none'}")
    return 0


async def _read_models(options: argparse.Namespace) -> list[dict[str, Any]]:
    client = connect_rest(options.url, None, gateway=Gateway.of(options))
    try:
        return await client.status()
    finally:
        await client.close()


def _errors() -> tuple[type[Exception], ...]:
    return (ClientError, *target_errors())


async def _read_status(target: "RolloutTarget", *, drift: bool = False) -> dict[str, Any]:
    from inferenceservice.cluster.cluster_target import ClusterTarget
    from inferenceservice.local.control_client import LocalTarget

    content: dict[str, Any] = asdict(await target.state())
    content["processes"] = await target.processes() if isinstance(target, LocalTarget) else []
    texts, error = await _read_metrics(target)
    try:
        content["connections"] = _connections(texts)
        if drift:
            content["drift"] = _drift(texts)
    except ValueError as invalid:
        content["connections"] = []
        error = f"the response is not the metrics of a transformer: {invalid}"
    content["connections_unknown"] = error
    content["conditions"] = []
    if isinstance(target, ClusterTarget):
        status = asdict(await target.conditions())
        content.update(conditions=status.pop("conditions"), cluster=status)
    return content


async def _read_metrics(target: "RolloutTarget") -> tuple[list[tuple[str, str]], str | None]:
    """Read the metrics of each transformer.

    Returns
    -------
    A list of component (``transformer`` or ``canary``) and text, and why some are missing.
    """
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
    """Count the connections to the predictor over all transformers."""
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


def _drift(texts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the figures of each version, over all transformers."""
    from placement.drift import read_drift

    return [asdict(one) for one in read_drift(text for _, text in texts)]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser, reads_only=True)
    parser.add_argument(
        "--drift",
        action="store_true",
        help="compare the candidates since the start with those of the training",
    )


COMMAND = Command(
    name="status",
    help="show the versions that serve, and the traffic",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
