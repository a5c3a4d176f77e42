"""Deployments and Knative revisions under an InferenceService: rollout status and history of bundles.

KServe v0.20's own status does not tell how far a change has come: its `observedGeneration` is that of a
Deployment, not of the InferenceService, and right after a change its conditions still describe the old pods.
KServe writes a component's URI into the annotation `SOURCE_URI` of its pods, so this module reads that: a
rollout is done when the pods with the new URI are ready. The same annotation in old ReplicaSets and revisions
gives the history. (An annotation of our own on the InferenceService would not work: KServe copies those into
the pods of both components, so writing one would restart all pods.)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.uris import serving_uri

SOURCE_URI = "internal.serving.kserve.io/storage-initializer-sourceuri"
#: Reason of a Deployment or revision whose progress deadline is over.
PROGRESS_DEADLINE = "ProgressDeadlineExceeded"

_REVISION = "deployment.kubernetes.io/revision"
_REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
_GENERATION = "serving.knative.dev/configurationGeneration"
#: Kubernetes' own.
_DEFAULT_GRACE_PERIOD_S = 30

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """Status of a rollout to a bundle.

    Attributes
    ----------
    text
        The step that the rollout waits for, or the failure.
    """

    text: str
    done: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Replicas:
    """Numbers of pods of a Deployment."""

    wanted: int
    updated: int
    available: int
    total: int


def replicas(deployment: Object) -> Replicas:
    """Return the numbers of pods of a Deployment."""
    status = deployment.get("status") or {}
    wanted = deployment["spec"].get("replicas", 1)
    counts = (status.get(f"{name}eplicas", 0) for name in ("updatedR", "availableR", "r"))
    return Replicas(wanted, *counts)


def grace_period_of(deployment: Object) -> int:
    """Return the seconds after which a terminating pod of a Deployment is killed."""
    template = (deployment.get("spec") or {}).get("template") or {}
    seconds = (template.get("spec") or {}).get("terminationGracePeriodSeconds")
    return _DEFAULT_GRACE_PERIOD_S if seconds is None else int(seconds)


def progressing_condition(deployment: Object) -> Object:
    """Return the condition Progressing of a Deployment, or an empty one."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == "Progressing"), {})


def deployment_status(deployment: Object, uri: str, before: Object) -> RolloutStatus:
    """Return the status of a Deployment's rollout to a bundle, by the rules of `kubectl rollout status`.

    Parameters
    ----------
    before
        The condition Progressing before the change. A Deployment that had exceeded its deadline keeps that
        condition after the change until its pods start to change.
    """
    if _template_uri(deployment) != serving_uri(uri):
        return RolloutStatus("waiting for KServe to update the Deployment")
    if (deployment.get("status") or {}).get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return RolloutStatus("waiting for the Deployment to start")
    condition, pods = progressing_condition(deployment), replicas(deployment)
    if condition.get("reason") == PROGRESS_DEADLINE and condition != before:
        return RolloutStatus(f"{PROGRESS_DEADLINE}: {condition.get('message', '')}", failed=True)
    text = f"{pods.updated} of {pods.wanted} replicas updated"
    if pods.updated < pods.wanted:
        return RolloutStatus(text)
    if pods.total > pods.updated:
        return RolloutStatus(f"{text}, {pods.total - pods.updated} old left")
    if pods.available < pods.updated:
        return RolloutStatus(f"{text}, {pods.available} available")
    return RolloutStatus(text, done=True)


def revision_status(status: Object, revision: Object | None, uri: str, percent: int) -> RolloutStatus:
    """Return the status of a Knative Service's rollout to a bundle.

    Parameters
    ----------
    status
        The component's part of the InferenceService's status.
    revision
        The newest revision.
    percent
        Share of the traffic that the bundle must get.
    """
    name = status.get("latestCreatedRevision")
    if revision is None or revision_uri(revision) != serving_uri(uri):
        return RolloutStatus("waiting for KServe to create the revision")
    if status.get("latestReadyRevision") != name:
        conditions = (revision.get("status") or {}).get("conditions") or ()
        ready: Object = next((one for one in conditions if one["type"] == "Ready"), {})
        why = ": ".join(part for part in (ready.get("reason"), ready.get("message")) if part)
        if ready.get("status") == "False" and ready.get("reason") == PROGRESS_DEADLINE:
            return RolloutStatus(f"revision {name}: {why}", failed=True)
        return RolloutStatus(f"revision {name} is not ready" + (f": {why}" if why else ""))
    share = sum(part for revision_name, part in traffic(status) if revision_name == name)
    return RolloutStatus(f"revision {name} has {share} % of the traffic", done=share == percent)


def traffic(status: Object) -> list[tuple[str, int]]:
    """Return each traffic target of a component: revision and percent. One revision may occur twice."""
    return [(one.get("revisionName", ""), one.get("percent") or 0) for one in status.get("traffic") or ()]


def stable_revision(status: Object) -> str | None:
    """Return the revision beside the canary, or without a canary the last one that got all traffic."""
    fixed = (one for one in status.get("traffic") or () if not one.get("latestRevision"))
    name = next((one.get("revisionName") for one in fixed if one.get("percent")), None)
    return name or status.get("latestRolledoutRevision")


def revision_uri(revision: Object) -> str | None:
    """Return the bundle of a Knative revision."""
    return source_uri(revision["metadata"])


def history_of_replica_sets(replica_sets: Iterable[Object], deployment: str) -> list[str]:
    """Return the bundles that a Deployment had, oldest first."""
    dated: list[tuple[int, str]] = []
    for replica_set in replica_sets:
        metadata, uri = replica_set["metadata"], _template_uri(replica_set)
        owners = {(one["kind"], one["name"]) for one in metadata.get("ownerReferences") or ()}
        if ("Deployment", deployment) not in owners or uri is None:
            continue
        annotations = metadata.get("annotations") or {}
        numbers = [annotations.get(_REVISION, ""), *annotations.get(_REVISION_HISTORY, "").split(",")]
        dated += [(int(number), uri) for number in numbers if number.isdecimal()]
    return [uri for _, uri in sorted(dated)]


def history_of_revisions(revisions: Iterable[Object]) -> list[str]:
    """Return the bundles that a Knative Service had, oldest first."""
    dated = [
        (int((one["metadata"].get("labels") or {}).get(_GENERATION, 0)), uri)
        for one in revisions
        if (uri := revision_uri(one)) is not None
    ]
    return [uri for _, uri in sorted(dated)]


def previous_uri(history: list[str], uri: str) -> str | None:
    """Return the bundle before the first use of a bundle, or None.

    This skips a version that failed or was rolled back: the history then returns to an older bundle.
    """
    if uri not in history:
        return history[-1] if history else None
    first = history.index(uri)
    return history[first - 1] if first else None


def _template_uri(workload: Object) -> str | None:
    """Return the bundle in the pod template of a Deployment or ReplicaSet."""
    return source_uri(workload["spec"]["template"].get("metadata") or {})


def source_uri(metadata: Object) -> str | None:
    """Return the bundle in the annotations of a pod or of its template, in the form of `serving_uri`."""
    found = (metadata.get("annotations") or {}).get(SOURCE_URI)
    return None if found is None else serving_uri(found)
