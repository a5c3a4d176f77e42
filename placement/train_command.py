"""Train a version and write it to storage: fit, choose by cross-validation, evaluate, report, publish."""

import argparse
import json
import sys

from placement.progress import Steps

HELP = "train a version and write it to storage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", metavar="FILE.csv", help="labelled candidates (default: generated ones)")
    source.add_argument("--rows", type=int, default=2000, help="candidates to generate")
    parser.add_argument(
        "--task", metavar="FILE.json", help="other fields and classes than the placement's, for --data"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated candidates")
    parser.add_argument("--storage", metavar="URI", default="models", help="directory, or s3://bucket/prefix")
    parser.add_argument("--name", default="placement", help="the model's name, and that of its output")
    parser.add_argument("--version", metavar="vN", help="the version's name (default: the next number)")
    parser.add_argument("--previous", metavar="URI", help="version that may still serve during the rollout")
    parser.add_argument("--estimator", metavar="NAME", default="auto", help="auto, or one by name")
    parser.add_argument("--json", action="store_true", help="print URI, version and metrics as JSON")


def errors() -> tuple[type[Exception], ...]:
    """What this command tells in one line."""
    from storage.bundles import StorageError
    from training.candidates import TaskError
    from training.data import DataError
    from training.selection import UnknownEstimatorError
    from training.train import TrainingError
    from transformer.bundle.format import BundleError

    return (BundleError, DataError, StorageError, TaskError, TrainingError, UnknownEstimatorError)


def run(options: argparse.Namespace) -> int:
    """Train, and print where the version is and how good it is."""
    steps = Steps()
    steps("loading scikit-learn")
    from training.candidates import PLACEMENT, Task, TaskError
    from training.data import read_csv
    from training.generator import generate
    from training.train import train

    if options.task and not options.data:
        raise TaskError("--task: needs --data; only placement candidates can be generated")
    task = Task.read(options.task) if options.task else PLACEMENT
    dataset = read_csv(options.data, task) if options.data else generate(options.rows, options.seed)
    trained = train(
        dataset,
        storage=options.storage,
        name=options.name,
        version=options.version,
        previous=options.previous,
        estimator=options.estimator,
        progress=steps,
    )
    bundle = trained.bundle
    if options.json:
        content = {"uri": trained.uri, "version": bundle.version, "metrics": bundle.metrics}
        print(json.dumps({**content, "report": trained.report}))
        return 0
    print(f"uri       {trained.uri}")
    print(f"report    {trained.report}")
    print(f"model     {bundle.model.estimator}")
    for name, value in bundle.metrics.items():
        print(f"{name:<10}{value:.4f}")
    sys.stdout.flush()
    return 0
