"""Ray Serve deployment with Ray Serve's batching.

python ray_serve_app.py PORT DIRECTORY
"""

import os
import pickle
import sys
import threading
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

Candidates = list[dict[str, Any]]


# More requests at a time than in a batch, or batches would never be full.
@serve.deployment(max_ongoing_requests=1024)
class Placement:
    """Scores the candidates of several requests in one batch."""

    def __init__(self) -> None:
        self.vectorizer, self.model = pickle.loads(Path(os.environ["MODEL"]).read_bytes())  # noqa: S301 (our own)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.005)  # type: ignore[untyped-decorator]
    async def score(self, requests: list[Candidates]) -> list[list[float]]:
        """Score a batch of requests."""
        candidates = [candidate for request in requests for candidate in request]
        probabilities = self.model.predict_proba(self.vectorizer.transform(candidates))[:, 1].tolist()
        ends = accumulate((len(request) for request in requests), initial=0)
        return [probabilities[start:end] for start, end in pairwise(ends)]

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answer one request."""
        probabilities = await self.score((await request.json())["candidates"])
        return {"predictions": [{"placement": p >= 0.5, "placement_probability": p} for p in probabilities]}


if __name__ == "__main__":
    port, directory = sys.argv[1:]
    ray.init(
        num_cpus=2,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=directory,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(Placement.bind(), route_prefix="/predict")  # type: ignore[attr-defined]
    threading.Event().wait()
