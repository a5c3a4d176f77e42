"""The steps as Kubeflow components: artifacts and parameters around the functions of this package.

Kubeflow copies the source of each function into the compiled pipeline, so a function imports what it uses.
"""

from functools import partial

from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

#: Image of the steps, from Dockerfile.training.
IMAGE = "placement-training:0.1.0"

_component = partial(dsl.component, base_image=IMAGE, install_kfp_package=False)


@_component
def check_bounds(
    max_worse: dict[str, float],
    min_comparable: float,
    max_psi: float,
    min_impact: float,
    max_accuracy_gap: float,
) -> None:
    """Check the bounds of the gate before anything is trained."""
    from pipelines.gate import Bounds
    from pipelines.step import step

    with step("check-bounds"):
        Bounds(max_worse, min_comparable, max_psi, min_impact, max_accuracy_gap)


@_component
def find_serving(name: str, namespace: str, run: str, storage: str) -> str:
    """Find the version that serves; the output is its URI, empty if there is no InferenceService yet."""
    import asyncio

    from pipelines.step import step
    from pipelines.target import serving_uri

    with step("find-serving") as say:
        uri = asyncio.run(serving_uri(name, namespace, run, storage))
        say(
            f"{uri} serves" if uri else f"no {name} in {namespace or run}: the version will not be rolled out"
        )
    return uri


@_component
def validate_data(
    data: str,
    task: str,
    rows: int,
    seed: int,
    held_out_share: float,
    groups: list[str],
    training: Output[Dataset],
    held_out: Output[Dataset],
) -> None:
    """Check every value of the labelled candidates, and split them."""
    from pipelines.data import read_task, validate
    from pipelines.held_out import write
    from pipelines.step import step

    with step("validate-data") as say:
        parts = validate(data, read_task(task), rows=rows, seed=seed, share=held_out_share, groups=groups)
        for artifact, part in zip((training, held_out), parts, strict=True):
            write(part, artifact.path)
            artifact.metadata.update(source=part.source, rows=len(part.labels), passed_over=part.passed_over)
            say(f"{part.source}: {len(part.labels):,} {part.task.row_names}")
        if parts[0].passed_over:
            say(f"passed over: {parts[0].passed_over}")


@_component
def train_model(
    task: str,
    name: str,
    version: str,
    storage: str,
    serving: str,
    estimator: str,
    threshold: str,
    tune: int,
    seed: int,
    training: Input[Dataset],
    model: Output[Model],
    report: Output[HTML],
) -> None:
    """Choose an estimator by cross-validation, fit it, and write its version into the artifact."""
    from pipelines.data import read_task
    from pipelines.held_out import read
    from pipelines.step import step
    from pipelines.train import train_version

    with step("train-model") as say:
        trained = train_version(
            read(training.path, read_task(task), training.metadata["source"]),
            model.path,
            report.path,
            name=name,
            version=version,
            storage=storage,
            previous=serving,
            estimator=estimator,
            threshold=threshold,
            tune=tune,
            seed=seed,
        )
        bundle = trained.bundle
        for text in (f"{bundle.version}: {trained.chosen}", *trained.notes):
            say(text)
    model.metadata.update(
        framework="scikit-learn",
        estimator=bundle.model.estimator,
        sha256=bundle.model.sha256,
        version=bundle.version,
        bundle=f"{bundle.name}/{bundle.version}",
    )


@_component
def evaluate_model(
    task: str,
    serving: str,
    groups: list[str],
    training: Input[Dataset],
    held_out: Input[Dataset],
    model: Input[Model],
    summary: Output[Artifact],
    metrics: Output[Metrics],
    classification: Output[ClassificationMetrics],
) -> None:
    """Evaluate the version on the held-out candidates, beside the version that serves."""
    from pathlib import Path

    from pipelines.data import read_task
    from pipelines.evaluation import evaluate, roc
    from pipelines.held_out import read
    from pipelines.step import step

    with step("evaluate-model") as say:
        definition = read_task(task)
        evaluation, found = evaluate(
            f"{model.path}/{model.metadata['bundle']}",
            read(training.path, definition, training.metadata["source"]),
            read(held_out.path, definition, held_out.metadata["source"]),
            serving,
            groups,
        )
        say(found.text())
    Path(summary.path).write_text(found.model_dump_json(indent=2))
    for key, value in found.metrics.items():
        metrics.log_metric(key, value)
    if evaluation.target.classes:
        names = list(evaluation.target.class_names)
        if definition.kind == "binary":
            names = [definition.negative_name, definition.positive_name]
        classification.log_confusion_matrix(names, evaluation.confusion.tolist())
    curve = roc(evaluation)
    if curve is not None:
        classification.log_roc_curve(curve.false_rates, curve.true_rates, curve.thresholds)


@_component
def check_gate(
    max_worse: dict[str, float],
    min_comparable: float,
    max_psi: float,
    min_impact: float,
    max_accuracy_gap: float,
    summary: Input[Artifact],
) -> None:
    """Fail if the version is worse than the one that serves, its data have drifted, or it is unfair."""
    from pipelines.gate import Bounds, reasons
    from pipelines.step import PipelineError, step
    from pipelines.summary import Summary

    with step("check-gate") as say:
        bounds = Bounds(max_worse, min_comparable, max_psi, min_impact, max_accuracy_gap)
        found = Summary.read(summary.path)
        broken = reasons(found, bounds)
        if broken:
            raise PipelineError("\n".join(f"{found.version} must not serve: {reason}" for reason in broken))
        say(f"{found.version} may serve")


@_component
def publish_model(storage: str, model: Input[Model], report: Input[HTML]) -> str:
    """Copy the version and its report to the storage; the output is the version's URI."""
    from pipelines.publish import publish_version
    from pipelines.step import step

    with step("publish-model") as say:
        uri = publish_version(f"{model.path}/{model.metadata['bundle']}", report.path, storage)
        say(f"published {uri}")
    return uri


@_component
def roll_out(uri: str, serving: str, name: str, namespace: str, run: str, storage: str) -> str:
    """Roll the version out if the one it was compared with still serves; the output is its name."""
    import asyncio

    from inferenceservice.rollout import rollout
    from pipelines.step import step
    from pipelines.target import connect

    with step("roll-out") as say:
        target = connect(name, namespace, run, storage)
        version = asyncio.run(rollout(target, uri, print, replaces=serving))
        say(f"{version} serves")
    return version


@_component
def check_predictions(
    uri: str, task: str, name: str, namespace: str, run: str, storage: str, held_out: Input[Dataset]
) -> None:
    """Ask the InferenceService for predictions, and compare them with the version's own."""
    import asyncio

    from pipelines.answers import check_answers
    from pipelines.data import read_task
    from pipelines.held_out import read
    from pipelines.step import step
    from pipelines.target import connect

    with step("check-predictions") as say:
        candidates = read(held_out.path, read_task(task), held_out.metadata["source"]).candidates
        target = connect(name, namespace, run, storage)
        answered = asyncio.run(check_answers(target, uri, candidates))
        say(f"{answered} predictions for held-out candidates are those of the evaluation")
