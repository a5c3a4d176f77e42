"""The InferenceService of a pipeline, local or in a cluster, and the version that it serves."""

from pathlib import Path

from inferenceservice.local.control_client import LocalTarget, NotRunningError
from inferenceservice.local.control_file import CONTROL_FILE
from inferenceservice.rollout_target import NoInferenceServiceError, RolloutTarget, State
from pipelines.step import PipelineError
from storage.uris import local_path


def connect(name: str, namespace: str, run: str, storage: str) -> RolloutTarget:
    """Return an InferenceService.

    Parameters
    ----------
    name
        Its name, which is the model's.
    namespace
        Its namespace in the cluster; empty for the local service.
    run
        Directory in which the local service runs.
    storage
        Storage of the versions. In the cluster, the claim of ``pvc://claim`` is mounted as ``./claim``.

    Raises
    ------
    TargetError
        If no local service is running there, or no cluster is known.
    """
    if not namespace:
        return LocalTarget(Path(run) / CONTROL_FILE)
    # The Kubernetes client takes a second to import.
    from inferenceservice.cluster.api_server import ApiServer
    from inferenceservice.cluster.cluster_target import ClusterTarget

    path = local_path(storage)
    copies = {storage: str(path)} if path is not None else {}
    return ClusterTarget(ApiServer.connect(), name, namespace=namespace, bundle_copies=copies)


async def serving_uri(name: str, namespace: str, run: str, storage: str) -> str:
    """Return the URI of the version that serves; empty if there is no InferenceService yet.

    Raises
    ------
    PipelineError
        If another model serves, or a canary or a rollout is in progress.
    TargetError
        If the InferenceService cannot be read.
    """
    try:
        target = connect(name, namespace, run, storage)
    except NotRunningError:
        return ""
    try:
        uri = stable_uri(await target.state())
    except NoInferenceServiceError:
        return ""
    await check_name(target, uri, name, namespace or run)
    return uri


async def check_name(target: RolloutTarget, uri: str, name: str, place: str) -> None:
    """Check that the version that serves is one of the pipeline's model.

    Parameters
    ----------
    place
        Namespace of the InferenceService, or directory of the local service.

    Raises
    ------
    PipelineError
        If it is another model.
    TargetError
        If its bundle cannot be read.
    """
    served = (await target.read_bundle(uri)).name
    if served != name:
        raise PipelineError(
            f"name: {served!r} serves in {place} ({uri}), expected {name!r}; name the directory of its "
            "service with run, or stop the other service to only publish a version"
        )


def stable_uri(state: State) -> str:
    """Return the URI of the only version that serves.

    Raises
    ------
    PipelineError
        If a canary or a rollout is in progress.
    """
    if state.canary is None and state.transformer_uri == state.predictor_uri:
        return state.predictor_uri
    other = state.transformer_uri if state.canary is None else state.canary.uri
    raise PipelineError(
        f"a rollout of {other} is in progress; finish it with `placement rollout {other}`, or undo it "
        "with `placement rollback`, and start the pipeline again"
    )
