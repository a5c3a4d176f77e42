"""Serve one scikit-learn model like the image kserve/sklearnserver or kserve/predictiveserver, v0.20.

It has the same arguments (`--model_name`, `--model_dir` and those of KServe's SDK), the same variable
`PREDICT_PROBA`, and the same responses over V1, V2 and gRPC. Of predictiveserver's frameworks it has only
sklearn. One difference is intended: a directory without a model file is an error here, while the images start
a server that never becomes ready.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

import joblib
import kserve
from kserve.errors import InferenceError
from kserve.logging import configure_logging
from kserve.model_server import parser as sdk_arguments
from kserve.utils.utils import get_predict_input, get_predict_response

MODEL_SUFFIXES = (".joblib", ".pkl", ".pickle")

logger = logging.getLogger(__name__)


class ModelFileError(RuntimeError):
    """The model directory does not hold exactly one model file."""


class SKLearnModel(kserve.Model):  # type: ignore[misc]  # the SDK has no types
    """A fitted estimator, served over KServe's protocols.

    Parameters
    ----------
    name
        Name in the endpoints.
    model_dir
        Local directory with exactly one ``*.joblib``, ``*.pkl`` or ``*.pickle`` file.
    """

    def __init__(self, name: str, model_dir: Path) -> None:
        super().__init__(name)
        self.model_dir = model_dir
        self.ready = False

    def load(self) -> bool:
        """Load the model file.

        Raises
        ------
        ModelFileError
            If the directory does not hold exactly one.
        """
        self.estimator = joblib.load(model_file(self.model_dir))
        self.ready = True
        return self.ready

    def predict(
        self,
        payload: Any,  # noqa: ANN401 (a V1 dict or an InferRequest of the SDK)
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:  # noqa: ANN401
        """Return classes, or probabilities if `PREDICT_PROBA` is true and the estimator has them.

        Raises
        ------
        InferenceError
            If the estimator raises any error. The SDK answers 500, or INVALID_ARGUMENT over gRPC.
        """
        try:
            rows = get_predict_input(payload)
            wants_probabilities = os.environ.get("PREDICT_PROBA", "false").lower() == "true"
            if wants_probabilities and hasattr(self.estimator, "predict_proba"):
                result = self.estimator.predict_proba(rows)
            else:
                result = self.estimator.predict(rows)
            return get_predict_response(payload, result, self.name)
        except Exception as error:
            raise InferenceError(str(error)) from error


def model_file(model_dir: Path) -> Path:
    """Return the one model file of a directory."""
    if not model_dir.is_dir():
        raise ModelFileError(f"--model_dir must be a directory on this machine, got {model_dir}")
    found = sorted(path for path in model_dir.iterdir() if path.is_file() and path.suffix in MODEL_SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ModelFileError(
            f"{model_dir} must hold exactly one model file (*{', *'.join(MODEL_SUFFIXES)}), found {names}"
        )
    return found[0]


def main(argv: list[str] | None = None) -> int:
    """Load the model, and serve it until a signal ends the process."""
    arguments = argparse.ArgumentParser(prog="sklearnserver", parents=[sdk_arguments], description=__doc__)
    arguments.add_argument(
        "--model_dir", required=True, type=Path, help="local directory with one model file"
    )
    arguments.add_argument(
        "--framework", default="sklearn", choices=["sklearn"], help="the model's framework (predictiveserver)"
    )
    settings, _ = arguments.parse_known_args(argv)
    if settings.configure_logging:
        configure_logging(settings.log_config_file)
    model = SKLearnModel(settings.model_name, settings.model_dir)
    try:
        model.load()
    except ModelFileError as error:
        sys.stderr.write(f"sklearnserver: {error}\n")
        return 1
    kserve.ModelServer().start([model])
    return 0


if __name__ == "__main__":
    sys.exit(main())
