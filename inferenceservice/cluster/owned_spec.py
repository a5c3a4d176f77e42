"""The spec of an InferenceService as one rollout leaves it: what others change is never overwritten."""

import asyncio
import threading
import time

from inferenceservice.cluster.api_server import ApiServerError
from inferenceservice.cluster.inference_service import InferenceServiceObject, Wanted
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.rollout_target import TargetError

#: Attempts to patch an object that its controller is writing to at the same time.
_PATCHES = 10


class OwnedSpec:
    """Reads and patches one InferenceService, as long as nobody else changes what a rollout changes.

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
        #: What may be found in the spec: what was there, or what was put there.
        self._known: tuple[Wanted, ...] = ()
        # A patch goes on in its thread when the rollout is interrupted; what follows waits for it.
        self._one_at_a_time = threading.Lock()
        self._patching: asyncio.Task[None] | None = None

    async def change(self, wanted: Wanted) -> None:
        """Patch the spec. A patch that has begun is finished even if this is cancelled; see `settle`.

        Raises
        ------
        TargetError
            If someone else has changed it, or it cannot be patched.
        """
        self._patching = asyncio.create_task(asyncio.to_thread(self._patch, wanted))
        await asyncio.shield(self._patching)

    async def settle(self) -> None:
        """Wait until no patch is under way."""
        if self._patching is not None:
            await asyncio.wait([self._patching])

    def read(self) -> InferenceServiceObject:
        """The InferenceService. Blocks: call it in a thread.

        Raises
        ------
        TargetError
            If someone else has changed its spec.
        """
        with self._one_at_a_time:
            return self._unchanged()

    def _unchanged(self) -> InferenceServiceObject:
        isvc = self._namespace.inference_service(self._name)
        if not self._known:
            self._known = (isvc.wanted,)
        if isvc.wanted not in self._known:
            raise TargetError(
                f"someone else has changed the InferenceService {self._name} meanwhile "
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
                    changed = self._namespace.patch_inference_service(self._name, operations)
                except ApiServerError as error:
                    if error.status != 409 and not error.passing:
                        raise
                    last = error
                    time.sleep(self._pause_s)
                else:
                    self._known = (changed.wanted,)
                    return
        raise TargetError(f"the InferenceService {self._name} could not be changed: {last}") from last
