"""DictVectorizer's encoding without its code: the same numbers, bit for bit, for every valid candidate."""

import numpy as np
import numpy.typing as npt

from transformer.bundle import Vectorizer
from transformer.signature import Category, Number, Signature
from transformer.validation import Candidates, UnknownCategory, validate


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
    unknown_category
        Whether a value that the signature does not list is an error or encoded as none.
    newest
        Signature of a newer version, if there is one: what it lists is never encoded as none.
    """

    def __init__(
        self,
        vectorizer: Vectorizer,
        signature: Signature,
        unknown_category: UnknownCategory = "refuse",
        newest: Signature | None = None,
    ) -> None:
        self._signature = signature
        self._unknown_category: UnknownCategory = unknown_category
        self._newer = {
            field.name: frozenset(field.categories)
            for field in (newest.fields if newest is not None else ())
            if isinstance(field, Category)
        }
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

    def encode(self, candidates: Candidates) -> npt.NDArray[np.float64]:
        """Validate and encode candidates.

        Returns
        -------
        ndarray of float64, shape (candidates, feature names), C-contiguous

        Raises
        ------
        InvalidCandidates
            With every problem; see `transformer.validation.validate`.
        """
        valid = validate(candidates, self._signature, self._unknown_category)
        width = len(self.feature_names)
        matrix = np.zeros((valid.rows, width + 1))
        for name, column in self._numbers:
            matrix[:, column] = valid.columns[name]
        # DictVectorizer adds each number to 0, which makes 0 of -0.
        matrix += 0.0
        rows = np.arange(valid.rows)
        for name, columns in self._categories:
            matrix[rows, [columns[value] for value in valid.columns[name]]] = 1.0
        return np.ascontiguousarray(matrix[:, :width])
