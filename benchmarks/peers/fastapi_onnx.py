"""FastAPI app with ONNX Runtime in process.

uvicorn fastapi_onnx:app --host 127.0.0.1 --port PORT

The variable ``ONNX_MODEL`` names the forest, converted by `onnx_convert`; the vectorizer is in the pickle.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

vectorizer, _ = pickle.loads(Path(os.environ["MODEL"]).read_bytes())  # noqa: S301 (our own)
vectorizer.dtype = np.float32
options = onnxruntime.SessionOptions()
# Measured on two virtual cores, 1 and 64 rows: with more threads, a call takes 1.7 times the processor time,
# because they wait actively. uvicorn has a worker for each core already.
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["ONNX_MODEL"], options, providers=["CPUExecutionProvider"])
(features,) = session.get_inputs()
app = FastAPI()


class Request(BaseModel):
    """Body of a request."""

    candidates: list[dict[str, Any]]


class Prediction(BaseModel):
    """Answer for one candidate."""

    placement: bool
    placement_probability: float


class Answer(BaseModel):
    """Body of an answer."""

    predictions: list[Prediction]


@app.post("/predict")
async def predict(request: Request) -> Answer:
    """Score the candidates of one request."""
    rows = vectorizer.transform(request.candidates)
    (scores,) = session.run(["probabilities"], {features.name: rows})
    return Answer(
        predictions=[Prediction(placement=p >= 0.5, placement_probability=p) for p in scores[:, 1].tolist()]
    )
