"""Print a spec for `kubectl apply -f -`: of a model, with another bundle, or for a cluster without KServe."""

import argparse
from pathlib import Path
from typing import Any

from placement.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        help="spec, or kustomize directory (needs kubectl); default: the model's own, or "
        "inferenceservice/placement.yaml",
    )
    parser.add_argument(
        "--model",
        metavar="URI",
        help="bundle to serve; a path models/NAME/vN stands for pvc://models/NAME/vN in the cluster",
    )
    parser.add_argument(
        "--name", help="without -f: name of the InferenceService (default: that of the model)"
    )
    parser.add_argument(
        "--plain", action="store_true", help="Deployments and Services, for a cluster without KServe"
    )


def _errors() -> tuple[type[Exception], ...]:
    from inferenceservice.spec import SpecError
    from transformer.bundle.format import BundleError

    return (BundleError, SpecError)


def _run(options: argparse.Namespace) -> int:
    import yaml

    from inferenceservice import spec
    from inferenceservice.model_spec import (
        CHECKOUT_SPEC,
        cluster_uri,
        model_name,
        service_name,
        spec_text,
    )
    from inferenceservice.plain import render

    if options.model is not None and options.file is None:
        name = service_name(options.name or model_name(options.model))
        text = spec_text(cluster_uri(options.model), name)
        if not options.plain:
            print(text, end="")
            return 0
        objects = list(yaml.safe_load_all(text))
    else:
        file = options.file or CHECKOUT_SPEC
        objects = spec.documents(file)
        spec.service_of(objects, file)
        if options.model is not None:
            _set_bundle(objects, cluster_uri(options.model))

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, _: object) -> bool:
            return True

    print(
        yaml.dump_all(render(objects) if options.plain else objects, Dumper=Dumper, sort_keys=False), end=""
    )
    return 0


def _set_bundle(objects: list[dict[str, Any]], uri: str) -> None:
    for service in (one["spec"] for one in objects if one["kind"] == "InferenceService"):
        service["predictor"]["model"]["storageUri"] = uri
        for container in service.get("transformer", {}).get("containers", ()):
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
