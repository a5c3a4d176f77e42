"""The transformer of KServe's documentation, for the control experiment.

    python documented_transformer.py BUNDLE_DIRECTORY --model_name … --predictor_host … --http_port …

It encodes with one version's DictVectorizer, whatever version the predictor has.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import kserve
from kserve.model_server import parser as sdk_arguments

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.sklearn_reference import vectorizer_of
from transformer.bundle.format import load_bundle


class DocumentedTransformer(kserve.Model):  # type: ignore[misc]
    """Encodes candidates; the SDK's `predict` calls the predictor."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name)
        self._vectorizer = vectorizer_of(load_bundle(directory))
        self.ready = True

    def preprocess(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        return {"instances": self._vectorizer.transform(payload["instances"]).tolist()}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(parents=[sdk_arguments])
    arguments.add_argument("directory", type=Path)
    options = arguments.parse_args()
    kserve.ModelServer(enable_grpc=False).start(
        [DocumentedTransformer(options.model_name, options.directory)]
    )
