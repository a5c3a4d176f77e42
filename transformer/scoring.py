"""The way of one request, without a protocol: validate, encode, call the predictor, decide."""

from collections.abc import Mapping

import numpy as np

from transformer.bundle import Bundle
from transformer.encoder import Encoder
from transformer.prediction import Prediction
from transformer.predictor_client import PredictorAddress, PredictorClient, connect
from transformer.validation import Candidates, UnknownCategory, validate


class Scorer:
    """Scores candidates with one bundle's encoding and the predictor's model.

    Parameters
    ----------
    bundle
        The version to encode for.
    address
        The predictor. It is connected at the first request, inside the event loop that serves it.
    timeout_s
        Seconds that the predictor has for one request.
    unknown_category
        Whether a value that the signature does not list is an error or encoded as none.
    """

    def __init__(
        self,
        bundle: Bundle,
        address: PredictorAddress,
        *,
        timeout_s: float,
        unknown_category: UnknownCategory = "refuse",
    ) -> None:
        self.bundle = bundle
        self._address = address
        self._timeout_s = timeout_s
        self._unknown_category = unknown_category
        self._encoder = Encoder(bundle.vectorizer, bundle.signature)
        self._client: PredictorClient | None = None

    async def predict(self, candidates: Candidates, headers: Mapping[str, str]) -> Prediction:
        """Score the candidates of one request; `headers` go along to the predictor.

        Raises
        ------
        ServiceError
            Of the class that says why there is no prediction.
        """
        valid = validate(candidates, self.bundle.signature, self._unknown_category)
        matrix = self._encoder.encode(valid)
        if self._client is None:
            self._client = connect(self._address)
        probabilities = await self._client.predict_proba(
            matrix,
            self.bundle.vectorizer.feature_names,
            len(self.bundle.classes),
            timeout_s=self._timeout_s,
            headers=headers,
        )
        positive = np.ascontiguousarray(probabilities[:, self.bundle.positive_column])
        return Prediction(self.bundle.version, positive, positive >= self.bundle.threshold)

    async def close(self) -> None:
        """Close the connections to the predictor."""
        if self._client is not None:
            await self._client.close()
            self._client = None
