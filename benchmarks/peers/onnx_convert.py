"""Convert a pickled forest to ONNX, and compare the probabilities of both.

python onnx_convert.py MODEL.pickle CANDIDATES.json MODEL.onnx
"""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from skl2onnx import to_onnx

#: Largest accepted difference: ONNX Runtime computes in float32, which has about seven digits.
TOLERANCE = 1e-6


def convert(pickled: Path, candidates: Path) -> tuple[bytes, float]:
    """Return the model as ONNX, and the largest difference between the probabilities for the candidates."""
    vectorizer, model = pickle.loads(pickled.read_bytes())  # noqa: S301 (our own)
    rows = vectorizer.transform(json.loads(candidates.read_bytes()))
    narrow = rows.astype(np.float32)
    converted = to_onnx(model, narrow[:1], options={"zipmap": False}).SerializeToString()
    session = onnxruntime.InferenceSession(converted, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {session.get_inputs()[0].name: narrow})
    return converted, float(np.abs(probabilities - model.predict_proba(rows)).max())


if __name__ == "__main__":
    pickle_file, candidates_file, onnx_file = map(Path, sys.argv[1:])
    content, difference = convert(pickle_file, candidates_file)
    if difference > TOLERANCE:
        sys.exit(f"the probabilities of {onnx_file} differ by {difference:.2g}, limit {TOLERANCE:.2g}")
    onnx_file.write_bytes(content)
