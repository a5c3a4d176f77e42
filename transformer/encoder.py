"""DictVectorizer's encoding without its code: the same numbers, bit for bit, for every valid candidate."""

import numpy as np
import numpy.typing as npt

from transformer.bundle import Vectorizer
from transformer.signature import Number, Signature
from transformer.validation import ValidCandidates


class Encoder:
    """Turns valid candidates into one version's feature matrix.

    The rule is that of `sklearn.feature_extraction.DictVectorizer` (scikit-learn 1.5): a number fills the
    column of its field's name, a category puts 1 into the column ``name=value``, all else is 0.

    Parameters
    ----------
    vectorizer
        Feature names of the version to encode for, in order.
    signature
        The same version's raw fields.
    """

    def __init__(self, vectorizer: Vectorizer, signature: Signature) -> None:
        index = vectorizer.index
        self.feature_names = vectorizer.feature_names
        self._numbers: list[tuple[str, int]] = []
        self._categories: list[tuple[str, dict[str | None, int]]] = []
        for field in signature.fields:
            if isinstance(field, Number):
                self._numbers.append((field.name, index[field.name]))
                continue
            columns: dict[str | None, int] = {
                category: index[f"{field.name}{vectorizer.separator}{category}"]
                for category in field.categories
            }
            # An ignored category fills no column: its 1 lands in a spare last one that is cut off.
            columns[None] = len(self.feature_names)
            self._categories.append((field.name, columns))

    def encode(self, candidates: ValidCandidates) -> npt.NDArray[np.float64]:
        """Encode candidates.

        Returns
        -------
        ndarray of float64, shape (candidates, feature names), C-contiguous
        """
        width = len(self.feature_names)
        matrix = np.zeros((candidates.rows, width + 1))
        for name, column in self._numbers:
            matrix[:, column] = candidates.columns[name]
        rows = np.arange(candidates.rows)
        for name, columns in self._categories:
            matrix[rows, [columns[value] for value in candidates.columns[name]]] = 1.0
        return np.ascontiguousarray(matrix[:, :width])
