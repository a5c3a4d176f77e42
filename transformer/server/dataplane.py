"""KServe's data plane, with this project's errors and without loading of models by request."""

from collections.abc import Callable, Mapping
from typing import Any

from kserve.errors import ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from transformer.errors import NotImplementedHere, UnknownModel
from transformer.protocols import cloud_event
from transformer.server.handler import Handler

NO_LOADING = "models are not loaded by request; set the InferenceService's storageUri"


def _never() -> bool:
    return False


class TransformerDataPlane(DataPlane):  # type: ignore[misc]
    """Finds the handler of a model, and reads and writes CloudEvents.

    Attributes
    ----------
    stopping
        Returns True while the server is shutting down.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (KServe's own)
        super().__init__(*args, **kwargs)
        self.stopping: Callable[[], bool] = _never

    @property
    def handler(self) -> Handler:
        """The handler of the only model."""
        (model,) = self.model_registry.get_models().values()
        handler: Handler = model.handler
        return handler

    def handler_of(self, model_name: str) -> Handler:
        """Return the handler of a model.

        Raises
        ------
        UnknownModel
            If the model is not served here.
        """
        handler: Handler = self.get_model_from_registry(model_name).handler
        return handler

    def get_model_from_registry(self, name: str) -> Any:  # noqa: ANN401 (KServe's own)
        """Return the model of this name.

        Raises
        ------
        UnknownModel
            If the model is not served here. KServe's own error would log the caller's name at any length.
        """
        try:
            return super().get_model_from_registry(name)
        except ModelNotFound as error:
            raise UnknownModel(name, self.model_registry.get_models()) from error

    def decode(self, body: bytes, headers: Mapping[str, str]) -> tuple[object, dict[str, Any]]:
        """Return the payload of a V1 request, and the attributes of the CloudEvent around it.

        Raises
        ------
        InvalidRequest, TooLarge
            See `transformer.protocols.cloud_event.unwrap`.
        """
        return cloud_event.unwrap(body, headers)

    def encode(
        self,
        model_name: str,
        response: Any,  # noqa: ANN401
        headers: Mapping[str, str],
        req_attributes: dict[str, Any],
    ) -> Any:  # noqa: ANN401 (KServe's own)
        """Return body and headers of a V1 response: a CloudEvent to a request that is one by its headers."""
        if cloud_event.is_structured(headers):
            headers = {"content-type": cloud_event.MEDIA_TYPE}
        # With CE_MERGE, KServe replaces the time, which is optional.
        return super().encode(model_name, response, headers, {"time": None, **req_attributes})

    async def ready(self) -> bool:
        """Return True if a prediction would succeed and the server is not shutting down."""
        return not self.stopping() and self.handler.ready()

    def metadata(self) -> dict[str, Any]:
        """Return name, version and V2 protocol extensions of the server."""
        return {**super().metadata(), "extensions": ["binary_tensor_data"]}


class FixedRepository(ModelRepositoryExtension):  # type: ignore[misc]
    """Refuses to load and unload models by request: the InferenceService's spec says what is served."""

    async def load(self, model_name: str) -> None:
        """Refuse."""
        self._refuse()

    async def unload(self, model_name: str) -> None:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> None:
        raise NotImplementedHere(NO_LOADING)
