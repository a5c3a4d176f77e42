"""Rollout target for an InferenceService in a cluster.

Each step patches the spec as an operator would edit it, and waits until the pods serve the new bundle.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from inferenceservice.cluster import bundle_copies as copies
from inferenceservice.cluster.api_server import ApiServer, ApiServerError
from inferenceservice.cluster.component_progress import (
    ComponentProgress,
    ComponentRollout,
    component_progress,
    condition_before,
)
from inferenceservice.cluster.inference_service import (
    PREDICTOR,
    TRANSFORMER,
    DesiredState,
    InferenceServiceObject,
    Mode,
)
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.owned_spec import OwnedSpec
from inferenceservice.cluster.pod_metrics import PodMetrics, read_metrics
from inferenceservice.cluster.pods import ProblemTimer
from inferenceservice.cluster.prediction import Response, post, read_scores
from inferenceservice.cluster.status import ClusterStatus, read_status
from inferenceservice.cluster.terminating_pods import TerminatingPods
from inferenceservice.cluster.workloads import Object, RolloutStatus, previous_uri
from inferenceservice.gateway import DIRECT, Gateway
from inferenceservice.rollout_target import Canary, Progress, Scores, State, TargetError
from transformer.bundle.format import Bundle

#: Seconds until a component must serve. A Deployment's own progress deadline is 600 s.
TIMEOUT_S = 900.0
POLL_S = 1.0
#: Seconds for retries of a prediction: the API server may send it to a pod that is terminating.
SCORE_TIMEOUT_S = 30.0


class ClusterTarget:
    """An InferenceService in a cluster; see `RolloutTarget`.

    An instance is for one rollout: it remembers the spec that it wrote, and stops if another client changes
    that spec.

    Parameters
    ----------
    api
        The cluster.
    name, namespace
        The InferenceService; the default namespace is that of the kubeconfig's context.
    bundle_copies
        Copies of bundles that this machine cannot read, by URI or by a prefix of URIs:
        ``{"pvc://models": "backup/models"}``.
    url
        Address for predictions; by default they go through the API server.
    gateway
        Headers and certificates for the address.
    timeout_s, poll_s
        Seconds until a component must serve, and between two checks.
    """

    def __init__(
        self,
        api: ApiServer,
        name: str,
        *,
        namespace: str | None = None,
        bundle_copies: Mapping[str, str] | None = None,
        url: str | None = None,
        gateway: Gateway = DIRECT,
        timeout_s: float = TIMEOUT_S,
        poll_s: float = POLL_S,
    ) -> None:
        self.name = name
        self.namespace = Namespace(api, namespace or api.namespace)
        self._copies = dict(bundle_copies or {})
        self._url = url
        self._gateway = gateway
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._spec = OwnedSpec(self.namespace, name, poll_s)
        self._terminating_pods = TerminatingPods(self.namespace, poll_s)
        #: Components that have got another bundle, and whose old pods were not waited for yet.
        self._changed: set[str] = set()

    @contextlib.asynccontextmanager
    async def exclusive(self, change: str) -> AsyncIterator[None]:
        """See `RolloutTarget`. Reserves nothing.

        Equal changes of two clients are one change to Kubernetes, and a different change of another client
        ends the rollout; see `OwnedSpec`.
        """
        yield

    async def state(self) -> State:
        """See `RolloutTarget`."""
        return await asyncio.to_thread(self._state)

    async def read_bundle(self, uri: str) -> Bundle:
        """See `RolloutTarget`."""
        return await copies.read_bundle(uri, self._copies)

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`. Does nothing if both share a pod: `set_predictor` changes both then."""
        isvc = await self._read()
        if not isvc.collocated:
            desired = replace(isvc.desired, transformer_uri=uri)
            await self._apply(desired, [ComponentRollout(TRANSFORMER, uri)], progress)

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        isvc = await self._read()
        await self._start_without_traffic(isvc, uri, progress)
        desired = replace(isvc.desired, predictor_uri=uri, canary_percent=None)
        await self._apply(desired, [ComponentRollout(PREDICTOR, uri)], progress)

    async def set_both(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        isvc = await self._read()
        await self._start_without_traffic(isvc, uri, progress)
        rollouts = [ComponentRollout(PREDICTOR, uri)]
        if not isvc.collocated:
            rollouts.append(ComponentRollout(TRANSFORMER, uri))
        await self._apply(DesiredState(uri, None if isvc.collocated else uri), rollouts, progress)

    async def require_canary_support(self) -> None:
        """Raise TargetError if KServe would not split the traffic; the message says what to do instead."""
        _require_canary_support(await self._read())

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """See `RolloutTarget`."""
        isvc = await self._read()
        _require_canary_support(isvc)
        stable = (await self.state()).predictor_uri
        desired = replace(isvc.desired, predictor_uri=canary.uri, canary_percent=canary.percent)
        await self._apply(desired, [ComponentRollout(PREDICTOR, canary.uri, canary.percent)], progress)
        rest = (await self.state()).predictor_uri
        if rest != stable:
            raise TargetError(f"KServe sends the rest of the traffic to {rest} instead of {stable}")

    async def end_canary(self, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self.set_predictor((await self.state()).predictor_uri, progress)

    async def wait_until_idle(self) -> None:
        """See `RolloutTarget`."""
        await self._spec.wait_for_patch()

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scores:
        """See `RolloutTarget`."""
        end = time.monotonic() + SCORE_TIMEOUT_S
        response = await self._predict(candidates)
        while response.status in (502, 503, 504) and time.monotonic() < end:
            await asyncio.sleep(self._poll_s)
            response = await self._predict(candidates)
        return read_scores(response, name)

    async def conditions(self) -> ClusterStatus:
        """Read the status that KServe reports."""
        return await asyncio.to_thread(read_status, self.namespace, self.name)

    async def metrics(self) -> PodMetrics:
        """Read the metrics of the transformer's pods."""
        return await asyncio.to_thread(read_metrics, self.namespace, await self._read())

    async def _predict(self, candidates: Sequence[dict[str, Any]]) -> Response:
        isvc = await self._read()
        path = f"/v1/models/{isvc.model_name}:predict"
        content = {"instances": list(candidates)}
        if self._url is not None:
            return await post(self._url.rstrip("/") + path, content, self._gateway)
        try:
            response = await asyncio.to_thread(self.namespace.post, isvc.entry_service, path, content)
            return Response(*response)
        except ApiServerError as error:
            return Response(503, {}, str(error).encode())

    async def _read(self) -> InferenceServiceObject:
        return await asyncio.to_thread(self._spec.read)

    async def _start_without_traffic(
        self, isvc: InferenceServiceObject, uri: str, progress: Progress
    ) -> None:
        """Start a bundle with 0 % of the traffic if another bundle is the canary.

        Without a percent, Knative sends all traffic to the newest ready revision, which is the canary's until
        the bundle's own revision is ready.
        """
        if isvc.desired.predictor_uri != uri and isvc.stable_revision is not None:
            desired = replace(isvc.desired, predictor_uri=uri, canary_percent=0)
            await self._apply(desired, [ComponentRollout(PREDICTOR, uri, 0)], progress)

    async def _apply(
        self, desired: DesiredState, rollouts: Sequence[ComponentRollout], progress: Progress
    ) -> None:
        """Patch the spec once, and wait until the components serve their new bundles."""
        isvc = await self._read()
        await self._wait_for_old_pods(isvc, rollouts, progress)
        conditions = [
            await asyncio.to_thread(condition_before, self.namespace, isvc, rollout) for rollout in rollouts
        ]
        await self._spec.change(desired)
        for rollout, before in zip(rollouts, conditions, strict=True):
            await self._wait_until_done(rollout, before, progress)
            self._changed.add(rollout.component)

    async def _wait_for_old_pods(
        self, isvc: InferenceServiceObject, rollouts: Sequence[ComponentRollout], progress: Progress
    ) -> None:
        """Wait until terminating pods of the other component have ended, which may not know a new bundle."""
        changing = {one.component for one in rollouts}
        for component in (TRANSFORMER, PREDICTOR):
            if component not in changing and isvc.mode is Mode.STANDARD and not isvc.collocated:
                changed = component in self._changed
                await self._terminating_pods.wait(isvc, component, progress, changed=changed)
                self._changed.discard(component)

    async def _wait_until_done(self, rollout: ComponentRollout, before: Object, progress: Progress) -> None:
        status = RolloutStatus("")
        timer = ProblemTimer()
        try:
            async with asyncio.timeout(self._timeout_s):
                while not status.done:
                    last_text = status.text
                    status, problems = await asyncio.to_thread(self._component_progress, rollout, before)
                    if status.text != last_text:
                        progress(f"{rollout.component}: {status.text}")
                    lasting = timer.lasting(problems)
                    if status.failed or lasting:
                        text = "; ".join(one.text for one in lasting) or status.text
                        raise TargetError(
                            f"the {rollout.component} does not become ready with {rollout.uri}: {text}"
                        )
                    if not status.done:
                        await asyncio.sleep(self._poll_s)
        except TimeoutError as error:
            raise TargetError(
                f"the {rollout.component} is not ready with {rollout.uri} after {self._timeout_s:g} s: "
                f"{status.text}"
            ) from error

    # The methods below run in threads, because the Kubernetes client blocks.

    def _component_progress(self, rollout: ComponentRollout, before: Object) -> ComponentProgress:
        try:
            return component_progress(self.namespace, self._spec.read(), rollout, before)
        except ApiServerError as error:
            if not error.transient:
                raise
            return ComponentProgress(RolloutStatus(f"{error}; retrying"))

    def _state(self) -> State:
        isvc = self._spec.read()
        desired = isvc.desired
        stable = self.namespace.revision_uri(isvc.stable_revision) or desired.predictor_uri
        canary = None
        if desired.canary_percent is not None and stable != desired.predictor_uri:
            canary = Canary(desired.predictor_uri, desired.canary_percent)
        history = self.namespace.history(isvc.workload(PREDICTOR), isvc.mode)
        return State(
            desired.transformer_uri or stable, stable, previous_uri(history, stable), canary, isvc.collocated
        )


def _require_canary_support(isvc: InferenceServiceObject) -> None:
    if isvc.mode is Mode.STANDARD:
        raise TargetError(
            f"InferenceService {isvc.name} runs in Standard mode, where KServe v0.20 does not split traffic: "
            "it ignores canaryTrafficPercent, and spec.canary only starts more replicas. Use Knative mode "
            "(overlays/knative), or roll the version out without a canary (`placement rollout URI`; "
            "`placement rollback` undoes it), or send a share of the traffic to a second InferenceService at "
            "the gateway (weights of an HTTPRoute)"
        )
    if isvc.component_status(PREDICTOR).get("latestRolledoutRevision") is None:
        raise TargetError(
            f"InferenceService {isvc.name}: no revision of the predictor has had all traffic yet, so KServe "
            "would send all traffic to the canary; wait until the service is ready"
        )
