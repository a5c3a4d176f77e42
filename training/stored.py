"""A version from storage, to score candidates as its callers would see them."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Self

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd

from storage.bundles import fetch
from storage.errors import StorageError
from training.candidates import Candidate
from training.estimators import Estimator, scores_of
from transformer.bundle.candidates import Rows
from transformer.bundle.encoder import Encoder, Matrix
from transformer.bundle.format import MODEL_FILE, Bundle
from transformer.bundle.target import Scores
from transformer.bundle.validation import UnknownCategory
from transformer.errors import InvalidCandidates


@dataclass(frozen=True)
class StoredVersion:
    """A version's bundle and its model."""

    bundle: Bundle
    model: Estimator

    @classmethod
    def load(cls, uri: str | os.PathLike[str], sha256: str | None = None) -> Self:
        """Load a version. Its model is a pickle: the storage must be trusted, as for serving.

        Parameters
        ----------
        sha256
            SHA-256 that the model must have; by default the one in the bundle.

        Raises
        ------
        storage.errors.StorageError, transformer.bundle.format.BundleError
            If the version cannot be read, or its model cannot be loaded or is another one.
        """
        with tempfile.TemporaryDirectory() as directory:
            bundle = fetch(uri, directory)
            if sha256 not in (None, bundle.model.sha256):
                raise StorageError(
                    f"{uri}: SHA-256 of the model is {bundle.model.sha256}, expected {sha256}: the version "
                    "was replaced"
                )
            try:
                model = joblib.load(Path(directory) / MODEL_FILE)
            except Exception as error:
                raise StorageError(
                    f"{uri}: cannot load the model: {error or repr(error)}; use the libraries that fitted "
                    f"it: {bundle.model.library_versions}"
                ) from error
        return cls(bundle, model)

    def encode(
        self, candidates: Sequence[Candidate], unknown_category: UnknownCategory = "refuse"
    ) -> tuple[npt.NDArray[np.bool_], Matrix]:
        """Encode the candidates that the version accepts.

        Parameters
        ----------
        unknown_category
            ``ignore`` to accept categories that the signature does not list.

        Returns
        -------
        accepted : ndarray of bool, shape (candidates,)
            True for each candidate that is valid for the version's signature.
        matrix : ndarray of float64, shape (accepted candidates, feature names)
        """
        encoder = Encoder(self.bundle.vectorizer, self.bundle.signature, unknown_category)
        accepted = np.ones(len(candidates), np.bool_)
        try:
            return accepted, encoder.encode(Rows([*candidates], "candidates"))
        except InvalidCandidates as error:
            accepted[[*error.rows]] = False
        return accepted, encoder.encode(Rows([*compress(candidates, accepted)], "candidates"))

    def score(self, candidates: Sequence[Candidate]) -> tuple[npt.NDArray[np.bool_], Scores]:
        """Score the candidates that the version accepts.

        Returns
        -------
        accepted : ndarray of bool, shape (candidates,)
        scores : ndarray of float64, shape (accepted candidates, `target.columns`)
        """
        accepted, matrix = self.encode(candidates)
        target = self.bundle.target
        if not len(matrix):
            return accepted, np.empty((0, target.columns))
        features = pd.DataFrame(matrix, columns=self.bundle.vectorizer.feature_names)
        return accepted, scores_of(self.model, features, target)
