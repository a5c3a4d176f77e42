"""Fakes of KServe v0.20, Deployments and Knative, as far as a rollout depends on them.

They have the same oddities: KServe's `observedGeneration` is a Deployment's, its conditions are late, and it
copies annotations into the pods of both components. A failed Deployment still says so for a while after the
next change. Without a percent, a Knative Service sends all traffic to the newest ready revision.
"""

import asyncio
import contextlib
import copy
import itertools
from collections.abc import Coroutine
from typing import Any

from inferenceservice.cluster.workloads import SOURCE_URI

Json = dict[str, Any]

#: Pods of each Deployment.
REPLICAS = 2
#: Seconds to wait for a reader before the next step.
UNSEEN_S = 2


def condition(kind: str, status: str, reason: str = "", message: str = "", time: int = 0) -> Json:
    """Return a condition as Kubernetes writes it."""
    stamp = f"2026-01-01T00:{time // 60:02}:{time % 60:02}Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastUpdateTime": stamp}


class Controllers:
    """Creates and updates the workloads of an InferenceService.

    Attributes
    ----------
    failing
        Bundles, or (component, bundle), whose pods never become ready.
    stuck
        Bundles whose pods do not become ready as long as they are here.
    grace_period_s
        Grace period of pods.
    reconciles
        True if KServe's controller works.
    pods
        Bundles of the pods that get requests, in Standard mode.
    watched
        True if each step waits until a client has read the one before.
    shares
        Each division of the predictor's traffic so far, in Knative mode: percent by bundle.
    """

    def __init__(self, manifest: Json) -> None:
        self.isvc = copy.deepcopy(manifest)
        self.isvc["metadata"] |= {"generation": 1, "resourceVersion": "1", "namespace": "scoring"}
        self.isvc["status"] = {"components": {}, "conditions": [condition("Ready", "Unknown")]}
        self.name: str = self.isvc["metadata"]["name"]
        self.failing: set[str | tuple[str, str]] = set()
        self.stuck: set[str] = set()
        self.grace_period_s = 60
        self.reconciles = True
        self.deployments: dict[str, Json] = {}
        self.replica_sets: list[Json] = []
        self.pods: dict[str, list[str]] = {}
        self.revisions: dict[str, Json] = {}
        self.traffic: dict[str, list[Json]] = {}
        self.shares: list[dict[str, int]] = []
        self.watched = False
        self._numbers = itertools.count(2)
        self._looks: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def collocated(self) -> bool:
        return "transformer" not in self.isvc["spec"]

    @property
    def knative(self) -> bool:
        mode: str = self.isvc["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]
        return mode == "Knative"

    def uri(self, component: str) -> str:
        """Return the URI in the spec."""
        if component == "predictor":
            uri: str = self.isvc["spec"]["predictor"]["model"]["storageUri"]
            return uri
        env = self.isvc["spec"]["transformer"]["containers"][0]["env"]
        return str(next(one["value"] for one in env if one["name"] == "STORAGE_URI"))

    def touch(self) -> None:
        """Change the object's resourceVersion only."""
        self.isvc["metadata"]["resourceVersion"] = str(next(self._numbers))

    async def settled(self) -> None:
        """Wait until all changes are finished."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def looked_at(self, name: str) -> None:
        """Record that a client has read a Deployment or a revision."""
        for component, event in self._looks.items():
            if name.startswith(f"{self.name}-{component}"):
                event.set()

    async def _step(self, component: str) -> None:
        """Wait until a client has read the current step."""
        event = self._looks.setdefault(component, asyncio.Event())
        event.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), UNSEEN_S if self.watched else 0.001)

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def revision_uri(self, name: str) -> str:
        uri: str = self.revisions[name]["metadata"]["annotations"][SOURCE_URI]
        return uri

    def reconcile(self) -> None:
        """Update the workloads if the spec has changed."""
        if not self.reconciles:
            return
        for component in ("predictor",) if self.collocated else ("predictor", "transformer"):
            template = {**self.isvc["metadata"].get("annotations", {}), SOURCE_URI: self.uri(component)}
            if self.knative:
                self._reconcile_revisions(component, template)
            else:
                self._reconcile_deployment(component, template)

    def _report(self, component: str, ready: Json, observed: int) -> None:
        """Write KServe's status."""
        kind = f"{component.capitalize()}Ready"
        conditions = [one for one in self.isvc["status"]["conditions"] if one["type"] not in (kind, "Ready")]
        overall = {**ready, "type": "Ready"}
        self.isvc["status"] |= {
            "conditions": [*conditions, {**ready, "type": kind}, overall],
            "observedGeneration": observed,
            "deploymentMode": "Knative" if self.knative else "Standard",
        }
        self.touch()

    def _start(self, component: str, work: Coroutine[Any, Any, None]) -> None:
        if (running := self._tasks.get(component)) is not None:
            running.cancel()
        task = asyncio.create_task(work)
        self._tasks[component] = task
        task.add_done_callback(
            lambda done: self._tasks.pop(component) if self._tasks.get(component) is done else None
        )

    def _reconcile_deployment(self, component: str, template: Json) -> None:
        name = f"{self.name}-{component}"
        deployment = self.deployments.get(name)
        if deployment is None:
            deployment = {
                "metadata": {"name": name, "generation": 0},
                "spec": {"replicas": REPLICAS, "template": {}},
                "status": {},
            }
            self.deployments[name] = deployment
        wanted = {
            "metadata": {"annotations": template},
            "spec": {"terminationGracePeriodSeconds": self.grace_period_s},
        }
        if deployment["spec"]["template"] == wanted:
            return
        deployment["spec"]["template"] = wanted
        deployment["metadata"]["generation"] += 1
        self._start(component, self._roll(component, deployment))

    async def _roll(self, component: str, deployment: Json) -> None:
        status = deployment["status"]
        uri = deployment["spec"]["template"]["metadata"]["annotations"][SOURCE_URI]
        await self._step(component)
        self._number_replica_set(deployment)
        status |= {"observedGeneration": deployment["metadata"]["generation"]}
        # The condition stays as it is until the pods change.
        status |= {"updatedReplicas": 0, "replicas": REPLICAS, "availableReplicas": REPLICAS}
        await self._step(component)
        old = self.pods.get(component, [])
        for updated in range(1, REPLICAS + 1):
            status |= {"updatedReplicas": updated, "replicas": REPLICAS + 1}
            self._progress(component, deployment, "True", "ReplicaSetUpdated")
            await self._step(component)
            if self._fails(component, uri):
                await self._step(component)
                said = f'ReplicaSet "{component}-1" has timed out progressing.'
                self._progress(component, deployment, "False", "ProgressDeadlineExceeded", said)
                return
            while uri in self.stuck:
                await asyncio.sleep(0.001)
            self.pods[component] = [uri] * updated + old[updated:]
            await self._step(component)
        status |= {"replicas": REPLICAS, "availableReplicas": REPLICAS}
        self._progress(component, deployment, "True", "NewReplicaSetAvailable")

    def _progress(self, component: str, deployment: Json, value: str, reason: str, said: str = "") -> None:
        status = deployment["status"]
        new = condition("Progressing", value, reason, said, next(self._numbers))
        status["conditions"] = [new]
        self._report(component, {**new, "type": ""}, status["observedGeneration"])

    def _fails(self, component: str, uri: str) -> bool:
        return uri in self.failing or (component, uri) in self.failing

    def _number_replica_set(self, deployment: Json) -> None:
        """Create a ReplicaSet for a Deployment's pods, or reuse the old one of the same pods."""
        owner = {"kind": "Deployment", "name": deployment["metadata"]["name"]}
        template = copy.deepcopy(deployment["spec"]["template"])
        own = [one for one in self.replica_sets if one["metadata"]["ownerReferences"] == [owner]]
        numbers = [int(one["metadata"]["annotations"]["deployment.kubernetes.io/revision"]) for one in own]
        number = str(max(numbers, default=0) + 1)
        for one in own:
            if one["spec"]["template"] == template:
                annotations = one["metadata"]["annotations"]
                before = annotations.get("deployment.kubernetes.io/revision-history", "")
                was = annotations["deployment.kubernetes.io/revision"]
                annotations["deployment.kubernetes.io/revision-history"] = f"{before},{was}".strip(",")
                annotations["deployment.kubernetes.io/revision"] = number
                return
        self.replica_sets.append(
            {
                "metadata": {
                    "labels": {"app": f"isvc.{owner['name']}"},
                    "annotations": {"deployment.kubernetes.io/revision": number},
                    "ownerReferences": [owner],
                },
                "spec": {"template": template},
            }
        )

    def _reconcile_revisions(self, component: str, template: Json) -> None:
        name = f"{self.name}-{component}"
        own = [one for one in self.revisions.values() if one["metadata"]["service"] == name]
        if not own or own[-1]["metadata"]["annotations"] != template:
            number = len(own) + 1
            revision = f"{name}-{number:05}"
            labels = {
                "serving.knative.dev/configuration": name,
                "serving.knative.dev/configurationGeneration": str(number),
            }
            metadata = {"name": revision, "service": name, "annotations": template, "labels": labels}
            self.revisions[revision] = {"metadata": metadata, "status": {}}
        self._start(component, self._bring_up(component))

    async def _bring_up(self, component: str) -> None:
        name = f"{self.name}-{component}"
        own = [one for one in self.revisions.values() if one["metadata"]["service"] == name]
        newest = own[-1]
        await self._step(component)
        status = self.isvc["status"]["components"].setdefault(component, {})
        for one in own:
            one["status"].setdefault("conditions", [condition("Ready", "Unknown", "Deploying")])
        self._route(component, own)
        await self._step(component)
        if self._fails(component, newest["metadata"]["annotations"][SOURCE_URI]):
            said = "Container failed"
            newest["status"]["conditions"] = [condition("Ready", "False", "ProgressDeadlineExceeded", said)]
            self._report(component, condition("", "False", "RevisionFailed", said), 1)
            return
        newest["status"]["conditions"] = [condition("Ready", "True")]
        # KServe sees the status of a Knative Service some time after its traffic has changed.
        self._route(component, own)
        status["latestReadyRevision"] = newest["metadata"]["name"]

    def _route(self, component: str, own: list[Json]) -> None:
        """Divide the traffic as KServe's `createKnativeService` and `PropagateStatus` do."""
        status = self.isvc["status"]["components"][component]
        ready = [one["metadata"]["name"] for one in own if one["status"]["conditions"][0]["status"] == "True"]
        status["latestCreatedRevision"] = created = own[-1]["metadata"]["name"]
        if ready:
            latest = status["latestReadyRevision"] = ready[-1]
            percent = self.isvc["spec"][component].get("canaryTrafficPercent")
            stable = status.get("latestRolledoutRevision")
            divided = percent is not None and stable is not None
            share = percent if divided else 100
            parts = [{"revisionName": latest, "latestRevision": True, "percent": share}]
            if share < 100:
                parts.append(
                    {
                        "revisionName": stable,
                        "latestRevision": False,
                        "percent": 100 - share,
                        "tag": "prev",
                    }
                )
            status["traffic"] = self.traffic[component] = parts
            if share == 100 and stable != latest:
                status["previousRolledoutRevision"], status["latestRolledoutRevision"] = stable, latest
        ready_now = "True" if ready and ready[-1] == created else "Unknown"
        self._report(component, condition("", ready_now), 1)
        if component == "predictor" and ready:
            shares: dict[str, int] = {}
            for part in self.traffic[component]:
                uri = self.revision_uri(part["revisionName"])
                shares[uri] = shares.get(uri, 0) + part["percent"]
            self.shares.append(shares)
