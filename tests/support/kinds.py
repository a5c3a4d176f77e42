"""One trained version for each kind of question, and the answers that scikit-learn gives for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from tests.support.sklearn_reference import vectorizer_of
from training.candidates import Candidate, Task
from training.data import Dataset
from training.train import train
from transformer.bundle.classes import Kind, Label
from transformer.bundle.format import MODEL_FILE, Bundle
from transformer.bundle.signature import Category, Number, Signature

SIGNATURE = Signature(
    fields=(
        Number(name="size", minimum=0, maximum=10),
        Number(name="age", default=3.0),
        Category(name="town", categories=("Ulm", "Köln", "Bonn")),
    )
)
NAME = "answer"


@dataclass(frozen=True)
class Question:
    """A kind of question, its classes and an estimator that answers it.

    Attributes
    ----------
    cuts
        Limits between the classes' numbers; the number itself is the label without classes.
    """

    kind: Kind
    classes: tuple[Label, ...] = ()
    positive_class: Label | None = None
    estimator: str = "logistic-regression"
    cuts: tuple[float, ...] = ()


QUESTIONS = {
    "text, positive first": Question("binary", ("no", "yes"), "no", cuts=(9,)),
    "0 and 1": Question("binary", (0, 1), 1, "forest-50", cuts=(9,)),
    "1 and 0": Question("binary", (1, 0), 0, cuts=(9,)),
    "booleans": Question("binary", (True, False), True, cuts=(9,)),
    "yes or no without probabilities": Question("binary", ("a", "b"), "b", "linear-svc", cuts=(9,)),
    "booleans without probabilities": Question("binary", (False, True), True, "ridge-classifier", cuts=(9,)),
    "three texts": Question("multiclass", ("low", "mid", "hoch ä"), cuts=(7, 11)),
    "four whole numbers": Question("multiclass", (0, 1, 2, 7), estimator="forest-50", cuts=(6, 9, 12)),
    "three numbers": Question("multiclass", (1.0, 2.0, 3.0), cuts=(7, 11)),
    "three texts without probabilities": Question(
        "multiclass", ("low", "mid", "hoch ä"), estimator="linear-svc", cuts=(7, 11)
    ),
    "three whole numbers without probabilities": Question(
        "multiclass", (1, 2, 3), estimator="ridge-classifier", cuts=(7, 11)
    ),
    "three odd texts": Question("multiclass", ('b, "c"', "true", "b\nc"), cuts=(7, 11)),
    "negative whole numbers": Question("multiclass", (10, -1, 9), estimator="linear-svc", cuts=(7, 11)),
    "minus one and one": Question("binary", (1, -1), -1, "linear-svc", cuts=(9,)),
    "a number": Question("regression", estimator="ridge"),
    "a number, by a forest": Question("regression", estimator="forest-50"),
}


@dataclass(frozen=True)
class Trained:
    """A trained version, the data it was trained on, and its model in this process."""

    directory: Path
    bundle: Bundle
    dataset: Dataset
    report: Path

    def frame(self, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
        """Encode rows with scikit-learn's DictVectorizer."""
        vectorizer = vectorizer_of(self.bundle)
        filled = [{"age": 3.0, **row} for row in rows]
        return pd.DataFrame(vectorizer.transform(filled), columns=vectorizer.feature_names_)

    @property
    def model(self) -> Any:
        """The model in the file."""
        return joblib.load(self.directory / MODEL_FILE)

    def answers(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what V1 must answer, written down from scikit-learn's own results."""
        bundle, model, frame = self.bundle, self.model, self.frame(rows)
        predicted = model.predict(frame).tolist()
        if not bundle.classes:
            return [{NAME: number} for number in predicted]
        labels = model.classes_.tolist()
        yes = bundle.positive_class
        if not hasattr(model, "predict_proba"):
            return [{NAME: label if yes is None else label == yes} for label in predicted]
        shares = model.predict_proba(frame)
        if yes is not None:
            column = shares[:, labels.index(yes)].tolist()
            return [{NAME: share >= bundle.threshold, f"{NAME}_probability": share} for share in column]
        return [
            {NAME: label, f"{NAME}_probabilities": dict(zip(map(str, labels), row.tolist(), strict=True))}
            for label, row in zip(predicted, shares, strict=True)
        ]


def dataset_of(question: Question, rows: int = 240, seed: int = 0) -> Dataset:
    """Return data where the answer depends on all fields, and a little on chance."""
    random = np.random.default_rng(seed)
    towns = ("Ulm", "Köln", "Bonn")
    candidates: list[Candidate] = [
        {
            "size": round(float(random.uniform(0, 10)), 2),
            "age": round(float(random.uniform(0, 6)), 2),
            "town": towns[random.integers(3)],
        }
        for _ in range(rows)
    ]
    numbers = [
        float(str(one["size"]))
        + float(str(one["age"]))
        + towns.index(str(one["town"]))
        + random.normal(0, 0.5)
        for one in candidates
    ]
    labels: list[Label] = list(numbers)
    if question.classes:
        labels = [question.classes[int(np.digitize(number, question.cuts))] for number in numbers]
    else:
        # A scale that an absolute tolerance would not fit.
        labels = [1e5 * number for number in numbers]
    task = Task(
        signature=SIGNATURE,
        label="truth",
        kind=question.kind,
        classes=question.classes,
        positive_class=question.positive_class,
    )
    return Dataset(task, candidates, labels, "made up", "0" * 64)


def train_question(question: Question, storage: Path, **options: Any) -> Trained:
    """Train a version that answers a question."""
    dataset = dataset_of(question, seed=options.pop("seed", 0))
    trained = train(dataset, storage=storage, name=NAME, estimator=question.estimator, **options)
    assert trained.report is not None
    return Trained(Path(trained.uri), trained.bundle, dataset, Path(trained.report))
