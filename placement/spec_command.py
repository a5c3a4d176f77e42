"""Print a spec for `kubectl apply -f -`, with another bundle or for a cluster without KServe."""

import argparse
from pathlib import Path
from typing import Any

from placement.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        default=Path("inferenceservice/placement.yaml"),
        help="spec, or kustomize directory (needs kubectl)",
    )
    parser.add_argument("--model", metavar="URI", help="bundle to serve instead of the spec's storageUri")
    parser.add_argument(
        "--plain", action="store_true", help="Deployments and Services, for a cluster without KServe"
    )


def _errors() -> tuple[type[Exception], ...]:
    from inferenceservice.spec import SpecError

    return (SpecError,)


def _run(options: argparse.Namespace) -> int:
    import yaml

    from inferenceservice import spec
    from inferenceservice.plain import render
    from storage.bundles import serving_uri

    objects = spec.documents(options.file)
    spec.service_of(objects, options.file)
    if options.model:
        for one in objects:
            if one["kind"] == "InferenceService":
                _set_bundle(one["spec"], serving_uri(options.model))
    objects = render(objects) if options.plain else objects

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, _: object) -> bool:
            return True

    print(yaml.dump_all(objects, Dumper=Dumper, sort_keys=False), end="")
    return 0


def _set_bundle(spec: dict[str, Any], uri: str) -> None:
    spec["predictor"]["model"]["storageUri"] = uri
    for container in spec.get("transformer", {}).get("containers", ()):
        for variable in container.get("env", ()):
            if variable["name"] == "STORAGE_URI":
                variable["value"] = uri


COMMAND = Command(
    name="spec",
    help="print a spec, for a cluster with or without KServe",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
