"""An InferenceService in a cluster, as something to roll a version out to.

The spec is patched as an operator would edit it, and each step waits until the pods serve what it asks for.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from inferenceservice.cluster import component, copies, pods
from inferenceservice.cluster import status as cluster_status
from inferenceservice.cluster.api_server import ApiServer, ApiServerError
from inferenceservice.cluster.component import Goal
from inferenceservice.cluster.inference_service import (
    PREDICTOR,
    TRANSFORMER,
    InferenceServiceObject,
    Mode,
    Wanted,
)
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.owned_spec import OwnedSpec
from inferenceservice.cluster.pods import PodMetrics
from inferenceservice.cluster.scoring import Answer, post, scored
from inferenceservice.cluster.status import ClusterStatus
from inferenceservice.cluster.workloads import Object, Step, previous
from inferenceservice.rollout_target import Canary, Progress, Scored, State, TargetError
from transformer.bundle.format import Bundle

#: Seconds until a component must serve; a Deployment itself gives up 600 s after its last progress.
TIMEOUT_S = 900.0
POLL_S = 1.0
#: Seconds until a prediction must succeed: the API server may send it to a pod that is about to go.
SCORE_TIMEOUT_S = 30.0


class ClusterTarget:
    """An InferenceService in a cluster; see `RolloutTarget`.

    An instance accompanies one rollout: it remembers what it left in the spec, and refuses to go on where
    someone else has changed that since.

    Parameters
    ----------
    api
        The cluster.
    name, namespace
        The InferenceService; without a namespace, the one of the kubeconfig's context.
    bundle_copies
        Where bundles can be read that are out of this machine's reach, by URI or by the beginning of one:
        ``{"pvc://models": "backup/models"}``.
    url
        Where to send predictions; without it they go through the API server.
    timeout_s, poll_s
        Seconds until a component must serve, and between two looks at it.
    """

    def __init__(
        self,
        api: ApiServer,
        name: str,
        *,
        namespace: str | None = None,
        bundle_copies: Mapping[str, str] | None = None,
        url: str | None = None,
        timeout_s: float = TIMEOUT_S,
        poll_s: float = POLL_S,
    ) -> None:
        self.name = name
        self.namespace = Namespace(api, namespace or api.namespace)
        self._copies = dict(bundle_copies or {})
        self._url = url
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._spec = OwnedSpec(self.namespace, name, poll_s)

    async def state(self) -> State:
        """See `RolloutTarget`."""
        return await asyncio.to_thread(self._state)

    async def read_bundle(self, uri: str) -> Bundle:
        """See `RolloutTarget`."""
        return await asyncio.to_thread(copies.fetch, uri, self._copies)

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`. Does nothing in a shared pod: `set_predictor` changes both components."""
        isvc = await self._read()
        if not isvc.collocated:
            await self._roll(replace(isvc.wanted, transformer_uri=uri), [Goal(TRANSFORMER, uri)], progress)

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        isvc = await self._read()
        await self._put_aside(isvc, uri, progress)
        wanted = replace(isvc.wanted, predictor_uri=uri, canary_percent=None)
        await self._roll(wanted, [Goal(PREDICTOR, uri)], progress)

    async def set_both(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        isvc = await self._read()
        await self._put_aside(isvc, uri, progress)
        goals = [Goal(PREDICTOR, uri)]
        if not isvc.collocated:
            goals.append(Goal(TRANSFORMER, uri))
        await self._roll(Wanted(uri, None if isvc.collocated else uri), goals, progress)

    async def check_canary(self) -> None:
        """Refuse a canary where KServe would not split the traffic, before anything is changed.

        Raises
        ------
        TargetError
            If it would not; the message says what to do instead.
        """
        _check_canary(await self._read())

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """See `RolloutTarget`."""
        isvc = await self._read()
        _check_canary(isvc)
        stable = (await self.state()).predictor_uri
        wanted = replace(isvc.wanted, predictor_uri=canary.uri, canary_percent=canary.percent)
        await self._roll(wanted, [Goal(PREDICTOR, canary.uri, canary.percent)], progress)
        rest = (await self.state()).predictor_uri
        if rest != stable:
            raise TargetError(f"KServe gives the rest of the traffic to {rest} instead of {stable}")

    async def end_canary(self, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self.set_predictor((await self.state()).predictor_uri, progress)

    async def settle(self) -> None:
        """See `RolloutTarget`."""
        await self._spec.settle()

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scored:
        """See `RolloutTarget`."""
        end = time.monotonic() + SCORE_TIMEOUT_S
        answer = await self._ask(candidates)
        while answer.status in (502, 503, 504) and time.monotonic() < end:
            await asyncio.sleep(self._poll_s)
            answer = await self._ask(candidates)
        return scored(answer, name)

    async def conditions(self) -> ClusterStatus:
        """What KServe says of the service."""
        return await asyncio.to_thread(cluster_status.read, self.namespace, self.name)

    async def metrics(self) -> PodMetrics:
        """What the transformer's pods say of themselves."""
        return await asyncio.to_thread(pods.metrics, self.namespace, await self._read())

    async def _ask(self, candidates: Sequence[dict[str, Any]]) -> Answer:
        isvc = await self._read()
        path = f"/v1/models/{isvc.model_name}:predict"
        content = {"instances": list(candidates)}
        if self._url is not None:
            return await post(self._url.rstrip("/") + path, content)
        try:
            return Answer(*await asyncio.to_thread(self.namespace.post, isvc.service, path, content))
        except ApiServerError as error:
            return Answer(503, {}, str(error).encode())

    async def _read(self) -> InferenceServiceObject:
        return await asyncio.to_thread(self._spec.read)

    async def _put_aside(self, isvc: InferenceServiceObject, uri: str, progress: Progress) -> None:
        """Bring a bundle up without traffic, where another one is a canary.

        Without a percent all traffic goes to the newest revision that is ready: the canary's, until that of
        the bundle is.
        """
        if isvc.wanted.predictor_uri != uri and isvc.stable_revision is not None:
            aside = replace(isvc.wanted, predictor_uri=uri, canary_percent=0)
            await self._roll(aside, [Goal(PREDICTOR, uri, 0)], progress)

    async def _roll(self, wanted: Wanted, goals: Sequence[Goal], progress: Progress) -> None:
        """Patch the spec once, and wait until the components serve what it asks for."""
        isvc = await self._read()
        earlier = [await asyncio.to_thread(component.before, self.namespace, isvc, goal) for goal in goals]
        await self._spec.change(wanted)
        for goal, said in zip(goals, earlier, strict=True):
            await self._wait(goal, said, progress)

    async def _wait(self, goal: Goal, earlier: Object, progress: Progress) -> None:
        step = Step("")
        try:
            async with asyncio.timeout(self._timeout_s):
                while not step.done:
                    told = step.text
                    step = await asyncio.to_thread(self._step, goal, earlier)
                    if step.text != told:
                        progress(f"{goal.component}: {step.text}")
                    if step.failed:
                        raise TargetError(
                            f"the {goal.component} does not get ready with {goal.uri}: {step.text}"
                        )
                    if not step.done:
                        await asyncio.sleep(self._poll_s)
        except TimeoutError as error:
            raise TargetError(
                f"the {goal.component} is not ready with {goal.uri} after {self._timeout_s:g} s: {step.text}"
            ) from error

    # From here on in threads: the Kubernetes client blocks.

    def _step(self, goal: Goal, earlier: Object) -> Step:
        try:
            return component.step(self.namespace, self._spec.read(), goal, earlier)
        except ApiServerError as error:
            if not error.passing:
                raise
            return Step(f"{error}; asking again")

    def _state(self) -> State:
        isvc = self._spec.read()
        wanted = isvc.wanted
        stable = self.namespace.revision_uri(isvc.stable_revision) or wanted.predictor_uri
        canary = None
        if wanted.canary_percent is not None and stable != wanted.predictor_uri:
            canary = Canary(wanted.predictor_uri, wanted.canary_percent)
        history = self.namespace.history(isvc.workload(PREDICTOR), isvc.mode)
        return State(
            wanted.transformer_uri or stable, stable, previous(history, stable), canary, isvc.collocated
        )


def _check_canary(isvc: InferenceServiceObject) -> None:
    if isvc.mode is Mode.STANDARD:
        raise TargetError(
            f"InferenceService {isvc.name} runs in Standard mode, where KServe v0.20 splits no traffic: it "
            "ignores canaryTrafficPercent, and spec.canary only starts more replicas. Roll the version out "
            "whole (`placement rollout URI`, undone by `placement rollback`), or give a second "
            "InferenceService a part of the traffic at the gateway (weights of an HTTPRoute), or use Knative "
            "mode (overlays/knative)"
        )
    if isvc.component(PREDICTOR).get("latestRolledoutRevision") is None:
        raise TargetError(
            f"InferenceService {isvc.name}: no revision of the predictor has had all the traffic yet, so "
            "KServe would give a canary all of it; wait until the service is ready"
        )
