"""KServe's data plane, with this project's errors and without loading of models by request."""

from collections.abc import Callable, Mapping
from typing import Any

from kserve.errors import InvalidInput, ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from transformer.errors import InvalidRequest, NotImplementedHere, UnknownModel, printable
from transformer.protocols.json_body import check_values
from transformer.server.handler import Handler

#: Maximum characters of KServe's own error text, which may repeat the caller's words.
_MAX_DETAIL = 120

NO_LOADING = "models are not loaded by request; set the InferenceService's storageUri"


def _never() -> bool:
    return False


class TransformerDataPlane(DataPlane):  # type: ignore[misc]
    """Finds the handler of a model, and decodes CloudEvents as KServe does.

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

    def decode(self, body: object, headers: Mapping[str, str], *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        """Return the payload and the CloudEvent attributes of a V1 request.

        Raises
        ------
        TooLarge
            See `transformer.protocols.json_body.check_values`.
        InvalidRequest
            Where KServe raises `InvalidInput`, which its handler would log with the request's content, and
            where it fails on an invalid CloudEvent.
        """
        if isinstance(body, bytes):
            check_values(body)
        # With this header, KServe parses an event before `decode_cloudevent` sees it, and then fails.
        headers = {name: value for name, value in headers.items() if name.lower() != "ce-contenttype"}
        try:
            return super().decode(body, headers, *args, **kwargs)
        except InvalidInput as error:
            text = str(error).replace("Unrecognized request format", "is not JSON")
            raise InvalidRequest(f"body: {printable(text, _MAX_DETAIL)}") from error
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise InvalidRequest("body: is not a CloudEvent with JSON data") from error

    def decode_cloudevent(self, body: object) -> Any:  # noqa: ANN401
        """Return the payload and the attributes of a possible CloudEvent.

        Raises
        ------
        TooLarge
            See `transformer.protocols.json_body.check_values`. Base64 data is only checked here.
        """
        data = getattr(body, "data", None)
        if isinstance(data, bytes):
            check_values(data)
        return super().decode_cloudevent(body)

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
