"""Print the InferenceService of a model, to be applied with kubectl."""

import argparse

from placement.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="URI",
        required=True,
        help="bundle to serve; a path models/NAME/vN stands for pvc://models/NAME/vN in the cluster",
    )
    parser.add_argument("--name", help="name of the InferenceService (default: that of the model)")


def _errors() -> tuple[type[Exception], ...]:
    from inferenceservice.spec import SpecError
    from transformer.bundle.format import BundleError

    return (BundleError, SpecError)


def _run(options: argparse.Namespace) -> int:
    from inferenceservice.model_spec import cluster_uri, model_name, service_name, spec_text

    name = service_name(options.name or model_name(options.model))
    print(spec_text(cluster_uri(options.model), name), end="")
    return 0


COMMAND = Command(
    name="spec",
    help="print the InferenceService of a model",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
