"""The spec of an InferenceService during a rollout: changes by other clients are never overwritten."""

import asyncio
import threading
import time
from dataclasses import replace

from inferenceservice.cluster.api_server import ApiServerError
from inferenceservice.cluster.inference_service import DesiredState, InferenceServiceObject
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.rollout_target import ForeignChange, TargetError

#: Attempts to patch an object that its controller is writing to at the same time.
_MAX_ATTEMPTS = 10


class OwnedSpec:
    """Reads and patches one InferenceService, and stops when another client changes the same fields.

    Parameters
    ----------
    namespace, name
        The InferenceService.
    pause_s
        Seconds between two attempts to patch it.
    """

    def __init__(self, namespace: Namespace, name: str, pause_s: float) -> None:
        self._namespace = namespace
        self._name = name
        self._pause_s = pause_s
        #: States that the spec may have: the one before the rollout, or those that the rollout wrote.
        self._expected: tuple[DesiredState, ...] = ()
        # An interrupted rollout leaves a patch running in its thread; the next call waits for that.
        self._one_at_a_time = threading.Lock()
        self._patching: asyncio.Task[None] | None = None

    async def change(self, desired: DesiredState) -> None:
        """Patch the spec. Cancelling does not stop a patch that has begun; see `wait_for_patch`.

        Raises
        ------
        ForeignChange
            If another client has changed the spec.
        TargetError
            If it cannot be patched.
        """
        self._patching = asyncio.create_task(asyncio.to_thread(self._patch, desired))
        await asyncio.shield(self._patching)

    async def wait_for_patch(self) -> None:
        """Wait until no patch is running."""
        if self._patching is not None:
            await asyncio.wait([self._patching])

    def read(self) -> InferenceServiceObject:
        """Read the InferenceService. Blocks: call it in a thread.

        Raises
        ------
        ForeignChange
            If another client has changed its spec.
        """
        with self._one_at_a_time:
            return self._read_unchanged()

    def _read_unchanged(self) -> InferenceServiceObject:
        isvc = self._namespace.inference_service(self._name)
        if not self._expected:
            self._expected = (isvc.desired,)
        if isvc.desired not in self._expected:
            raise ForeignChange(
                f"another client changed the InferenceService {self._name} during the rollout: "
                f"{self._expected[-1].difference(isvc.desired)}; that change is in place and was not "
                "overwritten; see `placement status`"
            )
        return isvc

    def _patch(self, desired: DesiredState) -> None:
        """Change the spec unless another client has changed it; changes of the status are no conflict."""
        with self._one_at_a_time:
            for _ in range(_MAX_ATTEMPTS):
                isvc = self._read_unchanged()
                if isvc.desired == desired:
                    self._expected = (desired,)
                    return
                # If the answer is lost, the patch may or may not have been applied. Plain Deployments are
                # patched one after the other.
                half = replace(isvc.desired, predictor_uri=desired.predictor_uri)
                self._expected = (isvc.desired, half, desired)
                try:
                    changed = self._namespace.change(isvc, desired)
                except ApiServerError as error:
                    if error.status != 409 and not error.transient:
                        raise
                    last = error
                    time.sleep(self._pause_s)
                else:
                    self._expected = (changed.desired,)
                    return
        raise TargetError(
            f"the InferenceService {self._name} could not be changed: {last}; try again"
        ) from last
