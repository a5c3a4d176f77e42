"""Custom transformer as KServe documents it: it encodes, and the SDK calls the predictor.

python kserve_transformer.py --model_name placement --predictor_host HOST:PORT --http_port PORT
"""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import kserve
from kserve.model_server import parser as sdk_arguments


class Transformer(kserve.Model):  # type: ignore[misc]  # the SDK has no types
    """Encodes candidates for the predictor, without a check of the predictor's version."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.vectorizer, _ = pickle.loads(Path(os.environ["MODEL"]).read_bytes())  # noqa: S301 (our own)
        self.ready = True

    def preprocess(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Encode candidates as the rows of a V1 request."""
        return {"instances": self.vectorizer.transform(payload["instances"]).tolist()}

    def postprocess(
        self,
        result: dict[str, Any],
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Turn probabilities into predictions."""
        return {
            "predictions": [
                {"placement": positive >= 0.5, "placement_probability": positive}
                for _, positive in result["predictions"]
            ]
        }


if __name__ == "__main__":
    options = argparse.ArgumentParser(parents=[sdk_arguments]).parse_args()
    kserve.ModelServer().start([Transformer(options.model_name)])
