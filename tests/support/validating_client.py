"""A client of `placement predict` that sends nothing."""

import asyncio
from collections.abc import Sequence
from typing import Any

from placement.client import Answer, Candidate, Refused, tensors, to_json
from transformer.bundle.candidates import Candidates
from transformer.bundle.signature import Signature
from transformer.bundle.validation import validate
from transformer.errors import ServiceError
from transformer.protocols import v1, v2


class ValidatingClient:
    """A client that decodes and validates candidates in this process instead of sending them."""

    def __init__(self, protocol: str, signature: Signature) -> None:
        self._protocol = protocol
        self._signature = signature
        self.asked = 0

    async def fields(self) -> dict[str, str]:
        return self._signature.datatypes

    async def predict(self, candidates: Sequence[Candidate]) -> Answer:
        await asyncio.sleep(0)
        self.asked += len(candidates)
        try:
            validate(self._decoded(candidates), self._signature)
        except ServiceError as error:
            raise Refused(str(error)) from error
        prediction = {"placement": True, "placement_probability": 0.5}
        return Answer([prediction] * len(candidates), "v1")

    async def close(self) -> None:
        pass

    def _decoded(self, candidates: Sequence[Candidate]) -> Candidates:
        if self._protocol == "v1":
            return v1.decode(to_json({"instances": candidates}), "placement", 10_000).candidates
        inputs = tensors(candidates, self._signature.datatypes)
        if self._protocol == "grpc":
            objects = [to_json(candidate).decode() for candidate in candidates]
            inputs = [
                {"name": "candidates", "datatype": "BYTES", "shape": [len(objects)], "data": objects},
            ]
        body = to_json({"inputs": inputs})
        named: dict[str, Any] = {
            "model_name": "placement",
            "output_name": "placement",
            "fields": self._signature.names,
        }
        return v2.decode(body, None, **named, max_candidates=10_000).candidates
