"""The models that all systems serve, trained once, and what scikit-learn says of them in this process."""

import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import joblib
import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate
from training.generator import generate
from training.train import train
from transformer.bundle.format import MODEL_FILE, Bundle, BundleError, load_bundle

Progress = Callable[[str], None]

#: The models by name, each with the estimator that is trained for it.
FOREST: Final = "forest"
CHOSEN: Final = "chosen"
ESTIMATORS: Final = {FOREST: "tutorial", CHOSEN: "auto"}

#: Seed of the candidates that are sent; training has another one.
_SEED: Final = 1


@dataclass(frozen=True)
class ServedModel:
    """A version: as the service gets it, as a pickle for the peers, and in this process."""

    directory: Path
    bundle: Bundle
    pickled: Path

    @cached_property
    def vectorizer(self) -> DictVectorizer:
        """A DictVectorizer with the version's feature names."""
        made = DictVectorizer(sparse=False, separator=self.bundle.vectorizer.separator)
        made.feature_names_ = list(self.bundle.vectorizer.feature_names)
        made.vocabulary_ = dict(self.bundle.vectorizer.index)
        return made

    @cached_property
    def classifier(self) -> Any:  # noqa: ANN401 (scikit-learn has no types)
        """The version's classifier, without the feature names that it was fitted on.

        They are our own; a tutorial's model is fitted on plain arrays, and so is not slowed down by warnings.
        """
        loaded = joblib.load(self.directory / MODEL_FILE)
        for part in (loaded, *(step for _, step in getattr(loaded, "steps", ()))):
            vars(part).pop("feature_names_in_", None)
        return loaded

    def encoded(self, candidates: Sequence[Candidate]) -> npt.NDArray[np.float64]:
        """Rows of features."""
        matrix: npt.NDArray[np.float64] = self.vectorizer.transform(candidates)
        return matrix

    def probabilities(self, candidates: Sequence[Candidate]) -> list[float]:
        """Probability of the positive class for each candidate."""
        scores = self.classifier.predict_proba(self.encoded(candidates))
        probabilities: list[float] = scores[:, self.bundle.positive_column].tolist()
        return probabilities

    def positive(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """The positive class's column of a predictor's answer."""
        return [row[self.bundle.positive_column] for row in rows]


def served_model(directory: Path, work: Path) -> ServedModel:
    """A version, with a pickle of it for the peers in the directory `work`.

    Raises
    ------
    BundleError
        If there is none that can be read.
    """
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    model = ServedModel(directory.resolve(), load_bundle(directory), work / "model.pickle")
    model.pickled.write_bytes(pickle.dumps((model.vectorizer, model.classifier)))
    return model


def trained(name: str, storage: Path, progress: Progress) -> Path:
    """Directory of one of the models; it is trained if it is not there.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    directory = storage / "placement" / name
    try:
        load_bundle(directory)
    except BundleError:
        shutil.rmtree(directory, ignore_errors=True)
        progress(f"training {name}, once")
        train(generate(), storage=storage, version=name, estimator=ESTIMATORS[name])
    return directory


def candidates(count: int) -> list[Candidate]:
    """Candidates to send, drawn as those of the training were."""
    return generate(count, _SEED).candidates
