"""What KServe v0.20 runs a component on, and how far a change of it has come: Deployments, Knative revisions.

KServe's own status does not say that. Its `observedGeneration` is a Deployment's, not the
InferenceService's, and right after a change its conditions are still those of the old pods. So the change is
looked for where it ends: KServe writes a component's URI into its pods' annotation `SOURCE_URI`. The same
annotation in old ReplicaSets and revisions tells which versions were served before. (An annotation of our own
could not: KServe copies the InferenceService's annotations into the pods of both components, so that writing
one replaces them all.)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SOURCE_URI = "internal.serving.kserve.io/storage-initializer-sourceuri"
#: Why a Deployment or a revision has given up.
DEADLINE = "ProgressDeadlineExceeded"

_REVISION = "deployment.kubernetes.io/revision"
_REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
_GENERATION = "serving.knative.dev/configurationGeneration"

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """How far a change has come.

    Attributes
    ----------
    text
        What is waited for, or what failed.
    """

    text: str
    done: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Replicas:
    """Pods of a Deployment."""

    wanted: int
    updated: int
    available: int
    total: int


def replicas(deployment: Object) -> Replicas:
    """How many pods a Deployment has."""
    status = deployment.get("status") or {}
    wanted = deployment["spec"].get("replicas", 1)
    counts = (status.get(f"{name}eplicas", 0) for name in ("updatedR", "availableR", "r"))
    return Replicas(wanted, *counts)


def progressing(deployment: Object) -> Object:
    """A Deployment's condition Progressing, empty without one."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == "Progressing"), {})


def deployment_step(deployment: Object, uri: str, before: Object) -> Step:
    """How far a Deployment is on its way to a bundle, as `kubectl rollout status` judges it.

    Parameters
    ----------
    before
        Its condition Progressing before the change. A Deployment that had given up then says so for a while
        after the change, too, until its pods move.
    """
    if _template_uri(deployment) != uri:
        return Step("waiting for KServe to update the Deployment")
    if (deployment.get("status") or {}).get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return Step("waiting for the Deployment to start")
    condition, pods = progressing(deployment), replicas(deployment)
    if condition.get("reason") == DEADLINE and condition != before:
        return Step(f"{DEADLINE}: {condition.get('message', '')}", failed=True)
    text = f"{pods.updated} of {pods.wanted} replicas updated"
    if pods.updated < pods.wanted:
        return Step(text)
    if pods.total > pods.updated:
        return Step(f"{text}, {pods.total - pods.updated} old left")
    if pods.available < pods.updated:
        return Step(f"{text}, {pods.available} available")
    return Step(text, done=True)


def revision_step(status: Object, revision: Object | None, uri: str, percent: int) -> Step:
    """How far a Knative Service is on its way to a bundle.

    Parameters
    ----------
    status
        The component's part of the InferenceService's status.
    revision
        The revision that was created last.
    percent
        Traffic that it is to get.
    """
    name = status.get("latestCreatedRevision")
    if revision is None or revision_uri(revision) != uri:
        return Step("waiting for KServe to create the revision")
    if status.get("latestReadyRevision") != name:
        conditions = (revision.get("status") or {}).get("conditions") or ()
        ready: Object = next((one for one in conditions if one["type"] == "Ready"), {})
        why = ": ".join(part for part in (ready.get("reason"), ready.get("message")) if part)
        if ready.get("status") == "False" and ready.get("reason") == DEADLINE:
            return Step(f"revision {name}: {why}", failed=True)
        return Step(f"revision {name} is not ready" + (f": {why}" if why else ""))
    share = sum(part for revision_name, part in traffic(status) if revision_name == name)
    return Step(f"revision {name} has {share} % of the traffic", done=share == percent)


def traffic(status: Object) -> list[tuple[str, int]]:
    """Revisions of a component and the percent that each gets; two parts of one revision stay two."""
    return [(one.get("revisionName", ""), one.get("percent") or 0) for one in status.get("traffic") or ()]


def stable_revision(status: Object) -> str | None:
    """The revision that gets what a canary does not, or else the last one that got all."""
    fixed = (one for one in status.get("traffic") or () if not one.get("latestRevision"))
    name = next((one.get("revisionName") for one in fixed if one.get("percent")), None)
    return name or status.get("latestRolledoutRevision")


def revision_uri(revision: Object) -> str | None:
    """Bundle of a Knative revision."""
    found: str | None = (revision["metadata"].get("annotations") or {}).get(SOURCE_URI)
    return found


def history_of_replica_sets(replica_sets: Iterable[Object], deployment: str) -> list[str]:
    """Bundles that a Deployment was given, oldest first."""
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
    """Bundles that a Knative Service was given, oldest first."""
    dated = [
        (int((one["metadata"].get("labels") or {}).get(_GENERATION, 0)), uri)
        for one in revisions
        if (uri := revision_uri(one)) is not None
    ]
    return [uri for _, uri in sorted(dated)]


def previous(history: list[str], uri: str) -> str | None:
    """The bundle that was there before a bundle came for the first time.

    A version that was left for an older one, because it failed or was rolled back, is nothing to go back to.
    """
    if uri not in history:
        return history[-1] if history else None
    first = history.index(uri)
    return history[first - 1] if first else None


def _template_uri(workload: Object) -> str | None:
    """Bundle of a Deployment's or a ReplicaSet's pods."""
    metadata = workload["spec"]["template"].get("metadata") or {}
    found: str | None = (metadata.get("annotations") or {}).get(SOURCE_URI)
    return found
