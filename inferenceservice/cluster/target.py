"""An InferenceService in a cluster, as something to roll a version out to.

The spec is patched as an operator would edit it, and each step waits until the pods serve what it asks for.
"""

import asyncio
import dataclasses
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from inferenceservice.cluster import status as cluster_status
from inferenceservice.cluster.api_server import ApiServer, ApiServerError
from inferenceservice.cluster.custom_object import PREDICTOR, TRANSFORMER, CustomObject, Mode, Wanted
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.scoring import Answer, post, scored
from inferenceservice.cluster.status import ClusterStatus
from inferenceservice.cluster.workloads import (
    Object,
    Step,
    deployment_step,
    previous,
    progressing,
    revision_step,
)
from inferenceservice.rollout import Canary, Progress, Scored, State, TargetError
from storage import bundles
from transformer.bundle import Bundle, BundleError

#: Seconds until a component must serve; a Deployment itself gives up 600 s after its last progress.
TIMEOUT_S = 900.0
POLL_S = 1.0
#: Seconds until a prediction must succeed: the API server may send it to a pod that is about to go.
SCORE_TIMEOUT_S = 30.0
#: Attempts to patch an object that its controller is writing to at the same time.
_PATCHES = 10


class ClusterTarget:
    """An InferenceService in a cluster; see `rollout.Target`.

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
        #: What may be found in the spec: what was there, or what was put there.
        self._known: tuple[Wanted, ...] = ()
        # A patch goes on in its thread when the rollout is interrupted; what follows waits for it.
        self._one_at_a_time = threading.Lock()

    async def state(self) -> State:
        """See `rollout.Target`."""
        return await asyncio.to_thread(self._state)

    async def read_bundle(self, uri: str) -> Bundle:
        """See `rollout.Target`."""
        source = _copy_of(uri, self._copies)
        with tempfile.TemporaryDirectory(prefix="bundle-") as directory:
            try:
                return await asyncio.to_thread(bundles.fetch, source, directory)
            except (bundles.StorageError, BundleError) as error:
                raise TargetError(str(error)) from error

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """See `rollout.Target`. Nothing where it shares the predictor's pod: `set_predictor` changes both."""
        isvc = await asyncio.to_thread(self._read)
        if not isvc.collocated:
            wanted = dataclasses.replace(isvc.wanted, transformer_uri=uri)
            await self._roll(TRANSFORMER, uri, wanted, progress)

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """See `rollout.Target`."""
        isvc = await asyncio.to_thread(self._read)
        wanted = dataclasses.replace(isvc.wanted, predictor_uri=uri, canary_percent=None)
        if isvc.wanted.predictor_uri != uri and isvc.stable_revision is not None:
            # Without a percent all traffic goes to the newest revision that is ready: the canary's, until the
            # one that is made here is.
            aside = dataclasses.replace(wanted, canary_percent=0)
            await self._roll(PREDICTOR, uri, aside, progress, share=0)
        await self._roll(PREDICTOR, uri, wanted, progress)

    async def check_canary(self) -> None:
        """Refuse a canary where KServe would not split the traffic, before anything is changed.

        Raises
        ------
        TargetError
            If it would not; the message says what to do instead.
        """
        _check_canary(await asyncio.to_thread(self._read))

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """See `rollout.Target`."""
        isvc = await asyncio.to_thread(self._read)
        _check_canary(isvc)
        stable = (await self.state()).predictor_uri
        wanted = dataclasses.replace(isvc.wanted, predictor_uri=canary.uri, canary_percent=canary.percent)
        await self._roll(PREDICTOR, canary.uri, wanted, progress, share=canary.percent)
        rest = (await self.state()).predictor_uri
        if rest != stable:
            raise TargetError(f"KServe gives the rest of the traffic to {rest} instead of {stable}")

    async def end_canary(self, progress: Progress) -> None:
        """See `rollout.Target`."""
        await self.set_predictor((await self.state()).predictor_uri, progress)

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scored:
        """See `rollout.Target`."""
        end = time.monotonic() + SCORE_TIMEOUT_S
        answer = await self._ask(candidates)
        while answer.status in (502, 503, 504) and time.monotonic() < end:
            await asyncio.sleep(self._poll_s)
            answer = await self._ask(candidates)
        return scored(answer, name)

    async def conditions(self) -> ClusterStatus:
        """What KServe says of the service."""
        return await asyncio.to_thread(cluster_status.read, self.namespace, self.name)

    async def _ask(self, candidates: Sequence[dict[str, Any]]) -> Answer:
        isvc = await asyncio.to_thread(self._read)
        path = f"/v1/models/{isvc.model_name}:predict"
        content = {"instances": list(candidates)}
        if self._url is not None:
            return await post(self._url.rstrip("/") + path, content)
        try:
            return Answer(*await asyncio.to_thread(self.namespace.post, isvc.service, path, content))
        except ApiServerError as error:
            return Answer(503, {}, str(error).encode())

    async def _roll(
        self, component: str, uri: str, wanted: Wanted, progress: Progress, *, share: int = 100
    ) -> None:
        """Patch the spec, and wait until a component serves a bundle, to a share of the traffic (percent)."""
        before = await asyncio.to_thread(self._progressing, component)
        await asyncio.to_thread(self._patch, wanted)
        step = Step("")
        try:
            async with asyncio.timeout(self._timeout_s):
                while not step.done:
                    told = step.text
                    step = await asyncio.to_thread(self._step, component, uri, share, before)
                    if step.text != told:
                        progress(f"{component}: {step.text}")
                    if step.failed:
                        raise TargetError(f"the {component} does not get ready with {uri}: {step.text}")
                    if not step.done:
                        await asyncio.sleep(self._poll_s)
        except TimeoutError as error:
            raise TargetError(
                f"the {component} is not ready with {uri} after {self._timeout_s:g} s: {step.text}"
            ) from error

    # From here on in threads: the Kubernetes client blocks.

    def _read(self) -> CustomObject:
        with self._one_at_a_time:
            return self._unchanged()

    def _unchanged(self) -> CustomObject:
        """The InferenceService, if it is still as it was left."""
        isvc = self.namespace.inference_service(self.name)
        if not self._known:
            self._known = (isvc.wanted,)
        if isvc.wanted not in self._known:
            raise TargetError(
                f"someone else has changed the InferenceService {self.name} meanwhile "
                f"({self._known[-1].difference(isvc.wanted)}); nothing of that was overwritten"
            )
        return isvc

    def _patch(self, wanted: Wanted) -> None:
        """Change the spec, unless someone else has since it was read; the status may change as it likes."""
        with self._one_at_a_time:
            for _ in range(_PATCHES):
                isvc = self._unchanged()
                operations = isvc.patch(wanted)
                if not operations:
                    self._known = (wanted,)
                    return
                # Without an answer it is not known whether the patch came through.
                self._known = (isvc.wanted, wanted)
                try:
                    changed = self.namespace.patch_inference_service(self.name, operations)
                except ApiServerError as error:
                    if error.status != 409 and not error.passing:
                        raise
                    last = error
                    time.sleep(self._poll_s)
                else:
                    self._known = (changed.wanted,)
                    return
        raise TargetError(f"the InferenceService {self.name} could not be changed: {last}") from last

    def _state(self) -> State:
        isvc = self._read()
        wanted = isvc.wanted
        stable = self.namespace.revision_uri(isvc.stable_revision) or wanted.predictor_uri
        canary = None
        if wanted.canary_percent is not None and stable != wanted.predictor_uri:
            canary = Canary(wanted.predictor_uri, wanted.canary_percent)
        history = self.namespace.history(isvc.workload(PREDICTOR), isvc.mode)
        return State(
            wanted.transformer_uri or stable, stable, previous(history, stable), canary, isvc.collocated
        )

    def _progressing(self, component: str) -> Object:
        isvc = self._read()
        if isvc.mode is Mode.KNATIVE:
            return {}
        return progressing(self.namespace.deployment(isvc.workload(component)) or {})

    def _step(self, component: str, uri: str, share: int, before: Object) -> Step:
        """How far a component is, with KServe's reasons where it is not ready."""
        try:
            isvc = self._read()
            step = self._workload_step(isvc, component, uri, share, before)
        except ApiServerError as error:
            if not error.passing:
                raise
            return Step(f"{error}; asking again")
        ready = isvc.ready(component)
        notes = [] if ready.status == "True" else [str(ready)]
        if component == PREDICTOR and (failure := isvc.model_failure()) is not None:
            notes.append(failure)
        done = step.done and ready.status == "True"
        return Step("; ".join([step.text, *notes]), done, step.failed)

    def _workload_step(
        self, isvc: CustomObject, component: str, uri: str, share: int, before: Object
    ) -> Step:
        if isvc.mode is Mode.STANDARD:
            deployment = self.namespace.deployment(isvc.workload(component))
            if deployment is None:
                return Step("waiting for KServe to create the Deployment")
            return deployment_step(deployment, uri, before)
        status = isvc.component(component)
        revision = self.namespace.revision(status.get("latestCreatedRevision"))
        return revision_step(status, revision, uri, share)


def _copy_of(uri: str, copies: Mapping[str, str]) -> str:
    """Where this machine can read a bundle.

    Raises
    ------
    TargetError
        If it cannot.
    """
    for start in sorted(copies, key=len, reverse=True):
        rest = uri.removeprefix(start.rstrip("/"))
        if rest != uri and rest[:1] in ("", "/"):
            return copies[start].rstrip("/") + rest
    scheme, separator, path = uri.partition("://")
    if not separator or scheme == "file":
        raise TargetError(f"{uri}: a cluster cannot read it; give the URI of its storage, as s3:// or pvc://")
    if scheme != "s3":
        raise TargetError(
            f"{uri}: {scheme}:// cannot be read from here; name a copy of the bundle, for example "
            f"--bundle {scheme}://{path.split('/')[0]}=DIRECTORY"
        )
    return uri


def _check_canary(isvc: CustomObject) -> None:
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
