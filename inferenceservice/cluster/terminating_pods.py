"""Waits until the old pods of a component have ended: until then they serve, and may know other versions."""

import asyncio

from inferenceservice.cluster.api_server import ApiServerError
from inferenceservice.cluster.component_progress import visible_pods
from inferenceservice.cluster.inference_service import InferenceServiceObject
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.pods import grace_period_s, is_terminating
from inferenceservice.cluster.workloads import Object, grace_period_of
from inferenceservice.rollout_target import Progress

#: Seconds after its grace period for which a pod may still be there; then its node is lost.
LATE_S = 30.0


class TerminatingPods:
    """Waits for the terminating pods of one InferenceService.

    Parameters
    ----------
    namespace
        The namespace of the InferenceService.
    poll_s
        Seconds between two checks.
    """

    def __init__(self, namespace: Namespace, poll_s: float) -> None:
        self._namespace = namespace
        self._poll_s = poll_s

    async def wait(
        self, isvc: InferenceServiceObject, component: str, progress: Progress, *, changed: bool
    ) -> None:
        """Wait until no pod of a component is terminating.

        Parameters
        ----------
        changed
            True if this rollout has changed the component. Without the right to list pods, the wait then is
            the pods' grace period.
        """
        now = asyncio.get_running_loop().time
        start, last = now(), 0
        while (pods := await self._terminating(isvc, component)) is not None:
            if not pods:
                return
            if now() - start > max(map(grace_period_s, pods)) + LATE_S:
                names = ", ".join(pod["metadata"]["name"] for pod in pods)
                progress(f"{component}: {names} does not end, so its node may be lost; going on")
                return
            if len(pods) != last:
                last = len(pods)
                progress(f"{component}: waiting for {last} old pod{'s' if last > 1 else ''} to end")
            await asyncio.sleep(self._poll_s)
        if changed:
            await self._wait_blindly(isvc, component, progress)

    async def _terminating(self, isvc: InferenceServiceObject, component: str) -> list[Object] | None:
        """Return the terminating pods, or None without the right to list them."""
        while True:
            try:
                pods = await asyncio.to_thread(visible_pods, self._namespace, isvc.name, component)
            except ApiServerError as error:
                if not error.transient:
                    raise
                await asyncio.sleep(self._poll_s)
            else:
                return None if pods is None else [pod for pod in pods if is_terminating(pod)]

    async def _wait_blindly(self, isvc: InferenceServiceObject, component: str, progress: Progress) -> None:
        deployment = await asyncio.to_thread(self._namespace.deployment, isvc.workload(component))
        seconds = grace_period_of(deployment or {})
        progress(f"{component}: without the right to list pods, waiting {seconds} s for the old ones to end")
        await asyncio.sleep(seconds)
