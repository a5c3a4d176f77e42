"""A question with a wide vocabulary: 13,000 pairs of places as one category."""

import numpy as np

from training.candidates import Candidate, Task
from training.data import Dataset
from transformer.bundle.classes import Label
from transformer.bundle.signature import Category, Number, Signature

PAIRS = tuple(f"{number // 114}_{number % 114}" for number in range(13_000))
TASK = Task(
    signature=Signature(
        fields=(Category(name="pair", categories=PAIRS, open=True), Number(name="distance", minimum=0))
    ),
    label="slow",
    classes=(False, True),
    positive_class=True,
)


def dataset(rows: int, seed: int = 0) -> Dataset:
    """Draw trips with their distance in km; a trip over 10 km is usually slow."""
    random = np.random.default_rng(seed)
    candidates: list[Candidate] = []
    labels: list[Label] = []
    for _ in range(rows):
        distance = round(float(random.uniform(0, 20)), 2)
        candidates.append({"pair": PAIRS[random.integers(len(PAIRS))], "distance": distance})
        labels.append(bool(distance + random.normal(0, 1) > 10))
    return Dataset(TASK, candidates, labels, "made up", "0" * 64)
