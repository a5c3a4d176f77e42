"""The pipeline: which step follows which, and the parameters of a run."""

from typing import Any

from kfp import dsl, kubernetes

from pipelines import components
from pipelines.data import SEED
from pipelines.gate import DEFAULT

#: Directory in which Dockerfile.training starts a step; ``pvc://claim`` is ``./claim`` there.
WORK = "/work"
#: PersistentVolumeClaim of the versions.
CLAIM = "models"
#: Secret with keys of S3, as in inferenceservice/overlays/s3/credentials.yaml.
S3_SECRET = "placement-s3"  # noqa: S105 (a name)
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
DESCRIPTION = "Train a version, and roll it out if it passes the gate."


def make_pipeline(image: str = components.IMAGE, claim: str | None = CLAIM) -> Any:  # noqa: ANN401
    """Return the pipeline for one kind of storage.

    Parameters
    ----------
    image
        Image of all steps.
    claim
        PersistentVolumeClaim of the versions; None for S3, with the keys in the Secret `S3_SECRET`.
    """

    def step(task: Any) -> Any:  # noqa: ANN401 (Kubeflow has no types)
        # The outputs also depend on the files at the URIs and on what serves, which Kubeflow does not see.
        task.set_caching_options(enable_caching=False).set_container_image(image)
        if claim is not None:
            return kubernetes.mount_pvc(task, pvc_name=claim, mount_path=f"{WORK}/{claim}")
        return kubernetes.use_secret_as_env(task, S3_SECRET, dict(zip(_S3_KEYS, _S3_KEYS, strict=True)))

    @dsl.pipeline(name="placement", description=DESCRIPTION)
    def placement(
        data: str = "",
        task: str = "",
        rows: int = 2000,
        seed: int = SEED,
        held_out_share: float = 0.2,
        groups: list[str] = [],  # noqa: B006
        name: str = "placement",
        version: str = "",
        storage: str = f"pvc://{CLAIM}",
        estimator: str = "auto",
        threshold: str = "0.5",
        tune: int = 0,
        namespace: str = "",
        run: str = ".run",
        max_worse: dict[str, float] = dict(DEFAULT.max_worse),  # noqa: B006
        min_comparable: float = DEFAULT.min_comparable,
        max_psi: float = DEFAULT.max_psi,
        min_impact: float = DEFAULT.min_impact,
        max_accuracy_gap: float = DEFAULT.max_accuracy_gap,
    ) -> str:
        """Take labelled candidates to a version that serves; the output is its URI.

        Parameters
        ----------
        data
            URI of the labelled candidates; without it, candidates of placement are generated
        task
            URI of the task file; without it, the task is placement's
        rows
            number of candidates to generate
        seed
            seed of the generated candidates, and of tune
        held_out_share
            share of the candidates to hold out, more than 0 and less than 1
        groups
            fields whose groups the gate compares: ["gender"]
        name
            name of the model and of its InferenceService
        version
            name of the version; without it, the next number in the storage
        storage
            storage of the versions: a directory, pvc:// or s3://
        estimator
            auto or one of those of `placement train --estimator`
        threshold
            lowest probability of a positive prediction, or a rule as in `placement train --threshold`
        tune
            trials of a search for better parameters; 0 for none
        namespace
            namespace of the InferenceService; without it, the local service
        run
            directory in which the local service runs
        max_worse
            how much worse than the version that serves each metric may be
        min_comparable
            lowest share of the held-out candidates that the version that serves must accept
        max_psi
            highest stability index of a field
        min_impact
            lowest selection rate of a group divided by the highest one
        max_accuracy_gap
            highest difference between the accuracies of groups of one field
        """
        bounds = {
            "max_worse": max_worse,
            "min_comparable": min_comparable,
            "max_psi": max_psi,
            "min_impact": min_impact,
            "max_accuracy_gap": max_accuracy_gap,
        }
        checked = step(components.check_bounds(**bounds))
        target = {"name": name, "namespace": namespace, "run": run, "storage": storage}
        serving = step(components.find_serving(**target)).after(checked)
        validated = step(
            components.validate_data(
                data=data, task=task, rows=rows, seed=seed, held_out_share=held_out_share, groups=groups
            )
        )
        # One step after the other, so that a run has one order and ends with the first fault.
        parts = validated.after(serving).outputs
        trained = step(
            components.train_model(
                task=task,
                name=name,
                version=version,
                storage=storage,
                serving=serving.output,
                estimator=estimator,
                threshold=threshold,
                tune=tune,
                seed=seed,
                training=parts["training"],
            )
        ).outputs
        evaluated = step(
            components.evaluate_model(
                task=task, serving=serving.output, groups=groups, model=trained["model"], **parts
            )
        ).outputs
        gate = step(components.check_gate(summary=evaluated["summary"], **bounds))
        published = step(components.publish_model(storage=storage, **trained)).after(gate)
        with dsl.If(serving.output != "", name="there-is-a-service"):
            rolled_out = step(components.roll_out(uri=published.output, serving=serving.output, **target))
            step(
                components.check_predictions(
                    uri=published.output, task=task, held_out=parts["held_out"], **target
                )
            ).after(rolled_out)
        return published.output  # type: ignore[no-any-return]  # Kubeflow has no types

    return placement
