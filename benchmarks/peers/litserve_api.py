"""LitServe API with LitServe's batching.

python litserve_api.py PORT
"""

import os
import pickle
import sys
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import litserve

Candidates = list[dict[str, Any]]


class PlacementAPI(litserve.LitAPI):  # type: ignore[misc]  # not installed where types are checked
    """Scores the candidates of several requests in one batch."""

    def setup(self, device: str) -> None:
        """Load vectorizer and model."""
        self.vectorizer, self.model = pickle.loads(Path(os.environ["MODEL"]).read_bytes())  # noqa: S301 (our own)

    def decode_request(self, request: dict[str, Any]) -> Candidates:
        """Take the candidates of one request."""
        candidates: Candidates = request["candidates"]
        return candidates

    def predict(self, requests: list[Candidates]) -> list[list[float]]:
        """Score a batch of requests."""
        candidates = [candidate for request in requests for candidate in request]
        probabilities = self.model.predict_proba(self.vectorizer.transform(candidates))[:, 1].tolist()
        ends = accumulate((len(request) for request in requests), initial=0)
        return [probabilities[start:end] for start, end in pairwise(ends)]

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        """Make the answer to one request."""
        return {"predictions": [{"placement": p >= 0.5, "placement_probability": p} for p in output]}


if __name__ == "__main__":
    # Measured on two virtual cores: batches of 64 and 256, time-outs of 1, 5 and 20 ms, one and two workers,
    # both transports. No combination is better than this one by more than the noise.
    api = PlacementAPI(max_batch_size=64, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
