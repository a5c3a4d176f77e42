"""List the versions of a model in storage: their metrics, and where they serve."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from placement.command import Command
from placement.status_text import table_lines
from placement.target_arguments import (
    DEFAULT_NAME,
    add_target_arguments,
    connect_target,
    run_steps,
    target_errors,
)
from training.metric_names import METRICS, metric_text

if TYPE_CHECKING:
    from inferenceservice.rollout_target import State
    from transformer.bundle.format import Bundle

#: Maximum metrics that the table shows.
_MAX_METRICS = 6


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storage", metavar="URI", default="models", help="directory or s3://bucket/prefix")
    add_target_arguments(
        parser,
        name_help="name of the model and of its InferenceService (default: those that serve on this machine, "
        f"or {DEFAULT_NAME})",
        reads_only=True,
    )


def _errors() -> tuple[type[Exception], ...]:
    from storage.errors import StorageError
    from transformer.bundle.format import BundleError

    return (BundleError, StorageError, *target_errors())


def _run(options: argparse.Namespace) -> int:
    from storage.bundles import local_models, read_bundle, versions
    from storage.errors import StorageError
    from storage.uris import version_uri

    served, reason = run_steps(lambda _: _served(options))
    model = options.name or next((bundle.name for bundle in served.values()), DEFAULT_NAME)
    names = versions(options.storage, model)
    if not names:
        others = local_models(options.storage)
        raise StorageError(
            f"{options.storage}/{model}: no version here; name another model with --name"
            + (f": {', '.join(others)}" if others else "")
        )
    content = []
    for name in names:
        uri = version_uri(options.storage, model, name)
        bundle = read_bundle(uri)
        content.append(_describe(uri, bundle, [role for role, one in served.items() if _equal(one, bundle)]))
    if options.json:
        print(json.dumps(content))
        return 0
    print("\n".join(line.rstrip() for line in table_lines(list(_rows(content)))))
    if reason:
        print(f"\nwhat serves is unknown: {reason}")
    return 0


async def _served(options: argparse.Namespace) -> tuple[dict[str, "Bundle"], str]:
    """Return the bundle of each role in the InferenceService, and why they are unknown."""
    from inferenceservice.rollout_target import TargetError

    try:
        target = connect_target(options)
        roles = _roles(await target.state())
        return {role: await target.read_bundle(uri) for role, uri in roles.items()}, ""
    except TargetError as error:
        return {}, str(error)


def _roles(state: "State") -> dict[str, str]:
    if state.transformer_uri == state.predictor_uri:
        roles = {"serves": state.predictor_uri}
    else:
        roles = {"transformer": state.transformer_uri, "predictor": state.predictor_uri}
    if state.canary is not None:
        roles[f"canary, {state.canary.percent} %"] = state.canary.uri
    return roles


def _equal(one: "Bundle", other: "Bundle") -> bool:
    return (one.name, one.version, one.model.sha256) == (other.name, other.version, other.model.sha256)


def _describe(uri: str, bundle: "Bundle", roles: list[str]) -> dict[str, Any]:
    return {
        "version": bundle.version,
        "uri": uri,
        "created": bundle.created.isoformat(),
        "rows": bundle.training_data.rows if bundle.training_data else None,
        "estimator": bundle.model.estimator,
        "tuned": bundle.recipe.tuned.model_dump() if bundle.recipe and bundle.recipe.tuned else None,
        "threshold": bundle.threshold,
        "metrics": bundle.metrics,
        "serves": roles,
    }


def _rows(content: list[dict[str, Any]]) -> Iterator[list[str]]:
    used = [name for name in METRICS if any(name in one["metrics"] for one in content)][:_MAX_METRICS]
    tuned = ["tuned"] if any(one["tuned"] for one in content) else []
    yield ["version", "created", "rows", *used, "threshold", *tuned, ""]
    for one in content:
        metrics = (one["metrics"].get(name) for name in used)
        yield [
            one["version"],
            one["created"][:16].replace("T", " "),
            "" if one["rows"] is None else f"{one['rows']:,}",
            *("" if value is None else metric_text(value) for value in metrics),
            "" if one["threshold"] is None else f"{one['threshold']:g}",
            *(_tuned(one["tuned"]) for _ in tuned),
            ", ".join(one["serves"]),
        ]


def _tuned(search: dict[str, Any] | None) -> str:
    if search is None:
        return ""
    parameters = [f"{name}={value:.4g}" for name, value in search["parameters"].items()]
    return " ".join([search["estimator"], *parameters])


COMMAND = Command(
    name="versions",
    help="list the versions of a model, their metrics, and what serves",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
