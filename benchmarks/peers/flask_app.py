"""The tutorial's Flask app, with vectorizer and model from one pickle.

gunicorn --bind 127.0.0.1:PORT flask_app:app
"""

import os
import pickle
from pathlib import Path

from flask import Flask, Response, jsonify, request

vectorizer, model = pickle.loads(Path(os.environ["MODEL"]).read_bytes())  # noqa: S301 (our own)
app = Flask("placement")


@app.post("/predict")
def predict() -> Response:
    """Score one candidate, or a list of them."""
    content = request.get_json()
    candidates = content if isinstance(content, list) else [content]
    probabilities = model.predict_proba(vectorizer.transform(candidates))[:, 1]
    answer = [{"placement": p >= 0.5, "placement_probability": p} for p in probabilities.tolist()]
    return jsonify(answer if isinstance(content, list) else answer[0])
