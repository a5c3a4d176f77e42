"""A small model in this process, with the game that explains it: tests compute the same in other ways."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction import DictVectorizer

from transformer.bundle.candidates import Rows
from transformer.bundle.encoder import Encoder
from transformer.bundle.format import Background, Reference, Vectorizer, Version
from transformer.bundle.signature import Category, Number, Signature
from transformer.explanation.game import Game, Scoring

Candidate = dict[str, Any]
Scores = npt.NDArray[np.float64]
#: Probability of one raw candidate.
Model = Callable[[Candidate], float]
_Result = TypeVar("_Result")

SIGNATURE = Signature(
    fields=(
        Category(name="hsc_s", categories=("Science", "Commerce", "Arts")),
        Number(name="ssc_p", minimum=0, maximum=100),
        Category(name="gender", categories=("M", "F")),
        Number(name="mba_p", minimum=0, maximum=100),
    )
)
BACKGROUND: tuple[Candidate, ...] = (
    {"hsc_s": "Commerce", "ssc_p": 40.0, "gender": "F", "mba_p": 55.0},
    {"hsc_s": "Science", "ssc_p": 66.5, "gender": "M", "mba_p": 70.0},
    {"hsc_s": "Arts", "ssc_p": 66.5, "gender": "M", "mba_p": 61.0},
)
WEIGHTS = (0.5, 0.2, 0.3)
CANDIDATE: Candidate = {"hsc_s": "Science", "ssc_p": 82.0, "gender": "M", "mba_p": 70.0}


def interacting(row: Candidate) -> float:
    """Return a probability to which all fields contribute, also together."""
    points = 0.04 * (row["ssc_p"] - 60) + (row["hsc_s"] == "Science")
    points += 0.05 * (row["mba_p"] - 60) * (row["gender"] == "F") - (row["ssc_p"] > 70) * (row["mba_p"] > 65)
    return float(1 / (1 + np.exp(-points)))


class ExplainedModel:
    """A model of raw candidates, and its game.

    Parameters
    ----------
    model
        Returns the probability of one raw candidate.
    """

    def __init__(
        self,
        model: Model = interacting,
        signature: Signature = SIGNATURE,
        background: Sequence[Candidate] = BACKGROUND,
        weights: Sequence[float] = WEIGHTS,
    ) -> None:
        self._model = model
        self.signature = signature
        self.background = background
        self.weights = weights
        # Not ours: DictVectorizer itself puts the features into their order and turns rows back.
        self.vectorizer = DictVectorizer(sparse=False).fit(
            [{name: 1} for name in signature.feature_names("=")]
        )
        names = tuple(self.vectorizer.get_feature_names_out().tolist())
        version = Version(
            version="v1",
            signature=signature,
            vectorizer=Vectorizer(feature_names=names, separator="="),
            classes=("no", "yes"),
            positive_class="yes",
            threshold=0.5,
            reference=Reference(candidates=(dict(background[0]),), probabilities=(0.5,)),
            background=Background(candidates=tuple(map(dict, background)), weights=tuple(weights)),
        )
        self._encoder = Encoder(version.vectorizer, signature)
        assert version.background is not None
        self.game = Game(version, version.background, self._encoder.encode)
        self.scored = 0

    def encode(self, candidate: Candidate) -> Scores:
        """Return the encoded candidate."""
        row: Scores = self._encoder.encode(Rows([candidate], "instances"))[0]
        return row

    def decode(self, row: Scores) -> Candidate:
        """Return the raw candidate of an encoded row; a category without a column is None."""
        columns = dict(zip(self.vectorizer.get_feature_names_out(), row.tolist(), strict=True))
        candidate: Candidate = {}
        for field in self.signature.fields:
            if isinstance(field, Category):
                chosen = [one for one in field.categories if columns[f"{field.name}={one}"] == 1]
                candidate[field.name] = chosen[0] if chosen else None
            else:
                candidate[field.name] = columns[field.name]
        return candidate

    def probability(self, candidate: Candidate) -> float:
        """Return the model's probability."""
        return self._model(candidate)

    def run(self, scoring: Scoring[_Result]) -> _Result:
        """Give a computation the scores that it asks for, and return its result."""

        def score(rows: Scores) -> Scores:
            self.scored += len(rows)
            return np.array([self._model(self.decode(row)) for row in rows])

        return scored(scoring, score)


def scored(scoring: Scoring[_Result], score: Callable[[Scores], Scores]) -> _Result:
    """Give a computation the scores of the rows that it asks for, and return its result."""
    try:
        rows = next(scoring)
        while True:
            rows = scoring.send(score(rows))
    except StopIteration as end:
        result: _Result = end.value
        return result
