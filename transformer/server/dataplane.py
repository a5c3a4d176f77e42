"""KServe's data plane, with errors of ours and without what a served version must not allow."""

from collections.abc import Callable, Mapping
from typing import Any

from kserve.errors import InvalidInput, ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from transformer.errors import InvalidRequest, NotImplementedHere, UnknownModel, printable
from transformer.protocols.json_body import check_values

#: Longest part of KServe's own words, which may repeat the caller's.
_LONGEST = 120


def _never() -> bool:
    return False


class TransformerDataPlane(DataPlane):  # type: ignore[misc]
    """Decodes V1 requests and CloudEvents as KServe does.

    Attributes
    ----------
    stopping
        Tells whether the server is being stopped.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (KServe's own)
        super().__init__(*args, **kwargs)
        self.stopping: Callable[[], bool] = _never

    def decode(self, body: object, headers: Mapping[str, str], *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        """Payload and CloudEvent attributes of a request.

        Raises
        ------
        TooLarge
            See `transformer.protocols.v1.check_values`.
        InvalidRequest
            Where KServe raises `InvalidInput`, which its handler would log with the request's content, and
            where it stumbles over a CloudEvent that is none.
        """
        if isinstance(body, bytes):
            check_values(body)
        # With this one KServe would parse an event before `decode_cloudevent` sees it, and then fail.
        headers = {name: value for name, value in headers.items() if name.lower() != "ce-contenttype"}
        try:
            return super().decode(body, headers, *args, **kwargs)
        except InvalidInput as error:
            text = str(error).replace("Unrecognized request format", "is not JSON")
            raise InvalidRequest(f"body: {printable(text, _LONGEST)}") from error
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise InvalidRequest("body: is not a CloudEvent with JSON data") from error

    def decode_cloudevent(self, body: object) -> Any:  # noqa: ANN401
        """Payload and attributes of what may be a CloudEvent.

        Raises
        ------
        TooLarge
            See `transformer.protocols.v1.check_values`; its data may have come in base64, which hides them.
        """
        data = getattr(body, "data", None)
        if isinstance(data, bytes):
            check_values(data)
        return super().decode_cloudevent(body)

    def get_model_from_registry(self, name: str) -> Any:  # noqa: ANN401 (KServe's own)
        """The model of this name.

        Raises
        ------
        UnknownModel
            If there is none. KServe's own error would go into the log as long as the name is.
        """
        try:
            return super().get_model_from_registry(name)
        except ModelNotFound as error:
            raise UnknownModel(name) from error

    async def ready(self) -> bool:
        """Whether the server can answer: each of its models has a verified connection to a predictor."""
        return not self.stopping() and all(
            [await model.healthy() for model in self.model_registry.get_models().values()]
        )

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """Whether a model can answer.

        With `disable_predictor_health_check` KServe's own handlers ask it before a prediction: then it is
        enough that the model is known. A request may wait for a predictor that is being replaced.
        """
        model = self.get_model_from_registry(model_name)
        return disable_predictor_health_check or await model.healthy()

    def metadata(self) -> dict[str, Any]:
        """Name, version and V2 protocol extensions of the server."""
        return {**super().metadata(), "extensions": ["binary_tensor_data"]}


class FixedRepository(ModelRepositoryExtension):  # type: ignore[misc]
    """No loading and unloading by callers: what is served follows from the InferenceService's spec alone."""

    async def load(self, model_name: str) -> None:
        """Refuse."""
        self._refuse()

    async def unload(self, model_name: str) -> None:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> None:
        raise NotImplementedHere("models are not loaded by request; set the InferenceService's storageUri")
