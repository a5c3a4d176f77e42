"""FastAPI app with the model in process.

uvicorn fastapi_app:app --host 127.0.0.1 --port PORT
"""

import os
import pickle
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

vectorizer, model = pickle.loads(Path(os.environ["MODEL"]).read_bytes())  # noqa: S301 (our own)
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


# `async def`, because it is faster here: with `def`, each request also goes through a pool of threads.
@app.post("/predict")
async def predict(request: Request) -> Answer:
    """Score the candidates of one request."""
    probabilities = model.predict_proba(vectorizer.transform(request.candidates))[:, 1].tolist()
    return Answer(
        predictions=[Prediction(placement=p >= 0.5, placement_probability=p) for p in probabilities]
    )
