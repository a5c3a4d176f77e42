"""The adapter to `kserve.Model`: KServe's server on one side, the scorer on the other."""

from collections.abc import Mapping
from typing import Any

import kserve
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from transformer.batching.scorer import Scorer
from transformer.bundle.prediction import Request
from transformer.errors import NotImplementedHere
from transformer.headers import forwarded
from transformer.protocols import grpc_messages, openapi, v1, v2
from transformer.server.byte_budget import ByteBudget

#: Response header and gRPC metadata that name the version which gave the answer.
VERSION_HEADER = "x-model-version"
#: Error for a request that names a version.
VERSION_REFUSAL = "model_version: cannot be asked for; each answer names the one that gave it"


class TransformerModel(kserve.Model):  # type: ignore[misc]
    """The transformer under the name that it is served by.

    Parameters
    ----------
    name
        Name in the protocols' paths and messages.
    scorer
        What answers.
    max_candidates
        Candidates that one request may carry.
    room
        For the requests that are being answered.
    """

    def __init__(self, name: str, scorer: Scorer, max_candidates: int, room: ByteBudget) -> None:
        super().__init__(name, return_response_headers=True)
        self.scorer = scorer
        self.room = room
        self._max_candidates = max_candidates
        self._fields = scorer.fields
        self._outputs = scorer.bundle.name
        self.ready = True

    def decode_v1(self, payload: object) -> v1.V1Request:
        """Read a V1 request; see `transformer.protocols.v1.decode`."""
        return v1.decode(payload, self._outputs, self._max_candidates)

    def decode_v2(self, body: bytes, json_length: str | None) -> v2.V2Request:
        """Read a V2 REST request; see `transformer.protocols.v2.decode`."""
        return v2.decode(
            body,
            json_length,
            model_name=self.name,
            output_name=self._outputs,
            fields=self._fields,
            max_candidates=self._max_candidates,
        )

    def decode_message(self, message: pb.ModelInferRequest) -> v2.V2Request:
        """Read a V2 gRPC request; see `transformer.protocols.grpc_messages.decode`."""
        if message.model_version:
            raise NotImplementedHere(VERSION_REFUSAL)
        return grpc_messages.decode(
            message, output_name=self._outputs, fields=self._fields, max_candidates=self._max_candidates
        )

    async def preprocess(self, payload: object, headers: Mapping[str, str] | None = None) -> Request:
        """The decoded request: V2 comes decoded by its own endpoints, V1 as KServe leaves it."""
        if isinstance(payload, v2.V2Request):
            return payload
        return self.decode_v1(payload)

    def validate(self, payload: Request) -> Request:
        """Nothing: KServe would check the payload for the predictor's protocol, which is not the caller's."""
        return payload

    async def predict(
        self,
        payload: Request,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:  # noqa: ANN401 (each protocol has its own type of answer)
        """The answer in the caller's protocol; its version is added to `response_headers`."""
        prediction = await self.scorer.predict(payload.candidates, forwarded(headers or {}))
        if response_headers is not None:
            response_headers[VERSION_HEADER] = prediction.version
        return payload.answer(prediction)

    async def postprocess(
        self,
        result: Any,  # noqa: ANN401
        headers: Mapping[str, str] | None = None,
        response_headers: Mapping[str, str] | None = None,
    ) -> Any:  # noqa: ANN401
        """Nothing: the request has already put the answer into its caller's protocol."""
        return result

    async def explain(self, payload: Request, headers: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401
        """Not offered.

        Raises
        ------
        NotImplementedHere
            Always.
        """
        raise NotImplementedHere("explanations are not implemented; ask for a prediction with :predict")

    async def healthy(self) -> bool:
        """Whether a prediction would succeed: a verified connection to a predictor is there."""
        self.scorer.start()
        return self.scorer.ready

    def load(self) -> bool:
        """KServe asks for this when the model is not ready; what was read at the start is all there is."""
        return bool(self.ready)

    def openapi(self) -> dict[str, Any]:
        """The REST side's description; see `transformer.protocols.openapi.describe`."""
        bundle = self.scorer.bundle
        return openapi.describe(
            self.name,
            self._outputs,
            bundle.version,
            bundle.signature,
            max_candidates=self._max_candidates,
            unknown_category=self.scorer.unknown_category,
        )

    def get_input_types(self) -> list[dict[str, Any]]:
        """The raw fields as tensors of the model metadata endpoint."""
        return v2.input_metadata(self.scorer.bundle.signature)

    def get_output_types(self) -> list[dict[str, Any]]:
        """The outputs of the model metadata endpoint."""
        return v2.output_metadata(self._outputs)
