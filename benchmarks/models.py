"""The models that all systems serve, and their probabilities by scikit-learn in this process."""

import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate
from training.generator import generate
from training.train import train
from transformer.bundle.format import FORMAT, MODEL_FILE, Bundle, BundleError, load_bundle

Progress = Callable[[str], None]

#: Names of the models. Both forests are the tutorial's, with equal probabilities: our service serves it in
#: its serving form, the peers as it was fitted.
FOREST = "forest"
ORIGINAL_FOREST = "forest-original"
CHOSEN = "chosen"
#: Estimator of each model, and whether a forest is rewritten into its serving form.
ESTIMATORS = {FOREST: ("tutorial", True), ORIGINAL_FOREST: ("tutorial", False), CHOSEN: ("auto", True)}

#: Seed of the candidates that are sent; training uses another seed.
_SEED = 1


@dataclass(frozen=True)
class ServedModel:
    """A model version: as a bundle for our service, as a pickle for the peers, and in this process."""

    directory: Path
    bundle: Bundle
    pickled: Path

    @cached_property
    def vectorizer(self) -> DictVectorizer:
        """DictVectorizer with the version's feature names."""
        made = DictVectorizer(sparse=False, separator=self.bundle.vectorizer.separator)
        made.feature_names_ = list(self.bundle.vectorizer.feature_names)
        made.vocabulary_ = dict(self.bundle.vectorizer.index)
        return made

    @cached_property
    def classifier(self) -> Any:  # noqa: ANN401 (scikit-learn has no types)
        """The version's classifier, without the feature names that it was fitted on.

        The tutorial fits its model on plain arrays. With feature names, scikit-learn would warn about every
        plain array, and the warnings would slow the peers down.
        """
        loaded = joblib.load(self.directory / MODEL_FILE)
        inner = [step for _, step in getattr(loaded, "steps", ())]
        for part in (loaded, *inner, *(getattr(one, "estimator_", one) for one in (loaded, *inner))):
            vars(part).pop("feature_names_in_", None)
        return loaded

    def encode(self, candidates: Sequence[Candidate]) -> npt.NDArray[np.float64]:
        """Encode candidates as rows of features."""
        matrix: npt.NDArray[np.float64] = self.vectorizer.transform(candidates)
        return matrix

    def probabilities(self, candidates: Sequence[Candidate]) -> list[float]:
        """Probability of the positive class for each candidate."""
        scores = self.classifier.predict_proba(self.encode(candidates))
        probabilities: list[float] = scores[:, self.bundle.target.positive_column].tolist()
        return probabilities

    def positive_probabilities(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """Take the positive class's column from a predictor's rows of probabilities."""
        return [row[self.bundle.target.positive_column] for row in rows]


def load_served_model(directory: Path, work: Path) -> ServedModel:
    """Load a bundle, and write its pickle for the peers into the directory `work`.

    Raises
    ------
    BundleError
        If the bundle cannot be read.
    """
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    model = ServedModel(directory.resolve(), load_bundle(directory), work / "model.pickle")
    model.pickled.write_bytes(pickle.dumps((model.vectorizer, model.classifier)))
    return model


def ensure_trained(name: str, storage: Path, progress: Progress) -> Path:
    """Train one of the models unless this release has trained it already; return its directory.

    Raises
    ------
    StorageError
        If the model cannot be written.
    """
    estimator, rewrite = ESTIMATORS[name]

    def fit(storage: Path) -> None:
        train(generate(), storage=storage, version=name, estimator=estimator, rewrite=rewrite)

    return ensure(storage / "placement" / name, fit, progress)


def ensure(directory: Path, train_into: Callable[[Path], object], progress: Progress) -> Path:
    """Train a version unless this release has trained it already; return its directory.

    Parameters
    ----------
    train_into
        Trains the version ``STORAGE/NAME/VERSION`` into its storage.
    """
    if not _is_current(directory):
        shutil.rmtree(directory, ignore_errors=True)
        progress(f"training {directory.name} (first run only)")
        train_into(directory.parent.parent)
    return directory


def _is_current(directory: Path) -> bool:
    try:
        return load_bundle(directory).format == FORMAT
    except BundleError:
        return False


def candidates(count: int) -> list[Candidate]:
    """Generate candidates to send, from the same distribution as the training data."""
    return generate(count, _SEED).candidates
