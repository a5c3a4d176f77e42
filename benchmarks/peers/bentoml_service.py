"""BentoML service with adaptive batching.

bentoml serve bentoml_service:Placement --host 127.0.0.1 --port PORT
"""

import os
import pickle
from pathlib import Path
from typing import Any

import bentoml


@bentoml.service(logging={"access": {"enabled": False}})
class Placement:
    """Scores the candidates of several requests in one batch."""

    def __init__(self) -> None:
        self.vectorizer, self.model = pickle.loads(Path(os.environ["MODEL"]).read_bytes())  # noqa: S301 (our own)

    @bentoml.api(batchable=True, max_batch_size=1024, max_latency_ms=60_000)  # type: ignore[untyped-decorator]
    def predict(self, candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Score a batch of candidates."""
        probabilities = self.model.predict_proba(self.vectorizer.transform(candidates))[:, 1]
        return [{"placement": p >= 0.5, "placement_probability": p} for p in probabilities.tolist()]
