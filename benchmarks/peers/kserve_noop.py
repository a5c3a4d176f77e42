"""KServe model that does nothing, to measure KServe's SDK alone.

python kserve_noop.py --model_name placement --http_port PORT
"""

import argparse
from typing import Any

import kserve
from kserve.model_server import parser as sdk_arguments


class Noop(kserve.Model):  # type: ignore[misc]  # the SDK has no types
    """Answers every candidate with the same prediction."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    def predict(
        self,
        payload: dict[str, Any],
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Answer in the same form as the other systems."""
        prediction = {"placement": True, "placement_probability": 0.75}
        return {"predictions": [prediction for _ in payload["instances"]]}


if __name__ == "__main__":
    options = argparse.ArgumentParser(parents=[sdk_arguments]).parse_args()
    kserve.ModelServer().start([Noop(options.model_name)])
