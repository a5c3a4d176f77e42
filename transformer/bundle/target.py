"""Target of a model: the kind of question it answers, and how a predictor's output becomes the answer.

================  =================================  ==================================================
kind              the predictor gives                the answer
================  =================================  ==================================================
binary            the probability of both classes    yes or no, and the probability of the positive class
binary            a class (no probabilities)         yes or no
multiclass        the probability of each class      the likeliest class, and the probabilities
multiclass        a class (no probabilities)         the class
regression        a number                           the number
================  =================================  ==================================================

Everything that depends on the kind asks a `Target`; no other module of the transformer decides it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from transformer.bundle.classes import Kind, Label, check_classes, class_name

Floats = npt.NDArray[np.float64]
#: The predictor's output: shape (rows, classes) for probabilities; else (rows, 1) with the number, or with
#: the place of the class in `Target.classes`.
Scores = Floats

#: V2 outputs of MLServer.
PROBABILITIES_OUTPUT = "predict_proba"
PREDICTIONS_OUTPUT = "predict"
#: Maximum difference of equal scores: libraries add up in different orders. For numbers, it is a share of
#: the largest one.
TOLERANCE = 1e-6
#: The part of an answer that is compared: a probability, one for each class, or the answer itself.
AnswerScore = float | tuple[float, ...] | Label
#: Maximum difference from 1 of the sum of one row's probabilities.
_SUM_TOLERANCE = 1e-3
#: Threshold of a model without probabilities, whose score is 1 for its class and else 0.
_CLASS_THRESHOLD = 0.5
_DATATYPES = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}


@dataclass(frozen=True)
class Target:
    """The kind of question, its classes, and what the predictor gives.

    Attributes
    ----------
    kind
        ``binary``, ``multiclass`` or ``regression``.
    classes
        The model's classes, in the order of its `predict_proba`; empty for regression.
    positive_class
        Class that a binary answer says yes to; None for other kinds.
    threshold
        Lowest probability of a yes.
    has_probabilities
        True if the predictor gives the probability of each class.
    """

    kind: Kind
    classes: tuple[Label, ...] = ()
    positive_class: Label | None = None
    threshold: float = _CLASS_THRESHOLD
    has_probabilities: bool = True

    @classmethod
    def of(
        cls,
        classes: Sequence[Label],
        positive_class: Label | None = None,
        threshold: float | None = None,
        *,
        has_probabilities: bool = True,
    ) -> Self:
        """Return the target with these classes: none for regression, a positive one for a yes or no.

        Raises
        ------
        ValueError
            If they are no target of any kind; the message says why.
        """
        if not classes:
            if positive_class is not None or threshold is not None:
                raise ValueError("positive_class and threshold need classes, and a regression has none")
            return cls("regression", has_probabilities=False)
        check_classes(classes)
        if positive_class is None:
            if len(classes) < 3:
                raise ValueError("positive_class is missing, and two classes need one")
            if threshold is not None:
                raise ValueError("threshold needs a positive_class")
            return cls("multiclass", tuple(classes), has_probabilities=has_probabilities)
        if len(classes) != 2:
            raise ValueError(f"positive_class needs two classes, got {len(classes)}")
        if not any(_same_label(one, positive_class) for one in classes):
            raise ValueError(f"positive_class {positive_class!r} is not one of {list(classes)}")
        if has_probabilities and threshold is None:
            raise ValueError("threshold is missing")
        return cls(
            "binary",
            tuple(classes),
            positive_class,
            threshold if has_probabilities and threshold is not None else _CLASS_THRESHOLD,
            has_probabilities,
        )

    @property
    def datatype(self) -> str:
        """Datatype of the answer in the V2 protocol."""
        if self.kind == "binary":
            return "BOOL"
        return "FP64" if self.kind == "regression" else _DATATYPES[type(self.classes[0])]

    @property
    def outputs(self) -> dict[str, str]:
        """Suffix and datatype of each output in the V2 protocol."""
        suffix = "_probability" if self.kind == "binary" else "_probabilities"
        return {"": self.datatype} | ({suffix: "FP64"} if self.has_probabilities else {})

    def __str__(self) -> str:
        return f"{self.kind}{'' if self.has_probabilities or not self.classes else ' (no probabilities)'}"

    @property
    def columns(self) -> int:
        """Columns of the predictor's scores."""
        return len(self.classes) if self.has_probabilities else 1

    @cached_property
    def positive_column(self) -> int:
        """Place of the positive class in `classes`."""
        assert self.positive_class is not None  # noqa: S101 (binary)
        return self.classes.index(self.positive_class)

    @cached_property
    def _places(self) -> dict[Label, int]:
        return {label: place for place, label in enumerate(self.classes)}

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes as texts."""
        return tuple(map(class_name, self.classes))

    @property
    def has_threshold(self) -> bool:
        """True if a threshold of the probability decides the answer."""
        return self.kind == "binary" and self.has_probabilities

    @property
    def score_name(self) -> str:
        """Name of the score that an explanation is about; see `explained`."""
        if self.kind == "regression":
            return "number"
        if not self.has_probabilities:
            return "score, 1 for this answer and 0 for another"
        return "probability" if self.kind == "binary" else "probability of the class"

    @property
    def expected(self) -> str:
        """Description of a predictor's output for error messages."""
        if self.has_probabilities:
            return f"the probabilities of {len(self.classes)} classes for each candidate"
        return "one number for each candidate" if self.kind == "regression" else "a known class for each one"

    def output(self, configured: str) -> str:
        """Return the predictor's V2 output to ask for.

        Parameters
        ----------
        configured
            The setting ``--predictor_output``. Only MLServer names its outputs by the method.
        """
        if configured == PROBABILITIES_OUTPUT and not self.has_probabilities:
            return PREDICTIONS_OUTPUT
        return configured

    def read(self, values: object, rows: int) -> Scores:
        """Read a predictor's output.

        Parameters
        ----------
        values
            Array or nested lists; for classes, also bytes in place of strings.

        Raises
        ------
        ValueError
            If it is anything else than these rows' scores; the message says what is wrong.
        """
        if self.has_probabilities:
            return self._probabilities(np.asarray(values), rows)
        array = np.asarray(values, dtype=None if self.kind == "regression" else object)
        if array.shape not in {(rows,), (rows, 1)}:
            raise ValueError("wrong shape")
        if self.kind == "regression":
            return self._numbers(array.reshape(rows, 1))
        try:
            places = [self._places[_text(label)] for label in array.ravel().tolist()]
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError("not a class of this version") from error
        return np.array(places, np.float64).reshape(rows, 1)

    def _probabilities(self, array: npt.NDArray[Any], rows: int) -> Scores:
        if array.shape != (rows, self.columns):
            raise ValueError("wrong shape")
        if array.dtype.kind not in "fi":
            raise ValueError("not numbers")
        matrix = array.astype(np.float64, copy=False)
        in_range = np.all(matrix >= 0) and np.all(matrix <= 1)
        if not (in_range and np.all(abs(matrix.sum(axis=1) - 1) <= _SUM_TOLERANCE)):
            raise ValueError("not probabilities")
        return matrix

    @staticmethod
    def _numbers(array: npt.NDArray[Any]) -> Scores:
        if array.dtype.kind not in "fiu":
            raise ValueError("not numbers")
        numbers = array.astype(np.float64, copy=False)
        if not np.isfinite(numbers).all():
            raise ValueError("not finite numbers")
        return numbers

    def fingerprint(self, scores: Scores) -> Floats:
        """Return what identifies a model in its scores: one row of numbers for each row.

        Of two classes, it is the probability of the positive one, or 1 for a yes.
        """
        if self.kind != "binary":
            return scores
        if self.has_probabilities:
            return scores[:, [self.positive_column]]
        return np.where(scores == self.positive_column, 1.0, 0.0)

    def fingerprint_of(self, answers: Sequence[AnswerScore]) -> Floats:
        """Return the same from answers, as `answer_score` finds them in responses and a bundle records them.

        Raises
        ------
        ValueError
            If they are answers to another kind of question.
        """
        if self.kind == "multiclass" and not self.has_probabilities:
            if not all(isinstance(one, (str, bool, int, float)) and one in self._places for one in answers):
                raise ValueError("not a class of this version")
            return np.array([[self._places[one]] for one in answers], np.float64)  # type: ignore[index]
        columns = len(self.classes) if self.kind == "multiclass" else 1
        if not answers:
            return np.empty((0, columns))
        rows = np.array([one if isinstance(one, tuple) else (one,) for one in answers])
        if rows.shape != (len(answers), columns):
            raise ValueError("wrong shape")
        booleans = self.kind == "binary" and not self.has_probabilities
        if rows.dtype.kind not in "fiub" or (rows.dtype.kind == "b") != booleans:
            raise ValueError(f"not {'booleans' if booleans else 'numbers'}")
        return rows.astype(np.float64)

    def recorded(self, scores: Scores) -> list[AnswerScore]:
        """Return scores as a bundle records them: the inverse of `fingerprint_of`."""
        values, probabilities = self.answers(scores)
        if probabilities is None:
            return list(self.labels(values))
        found = probabilities.tolist()
        return [tuple(one) for one in found] if self.kind == "multiclass" else found

    def same(self, given: npt.ArrayLike, expected: npt.ArrayLike) -> bool:
        """Return True if no two scores differ by more than `TOLERANCE`.

        NaN equals nothing, and neither do arrays of different shapes.
        """
        one, other = np.asarray(given, np.float64), np.asarray(expected, np.float64)
        if one.shape != other.shape:
            return False
        scale = np.abs(other).max(initial=0.0) if self.kind == "regression" else 1.0
        with np.errstate(invalid="ignore"):
            return bool((np.abs(one - other) <= TOLERANCE * scale).all())

    def same_answers(self, given: Sequence[AnswerScore], expected: Sequence[AnswerScore]) -> bool:
        """Return True if answers are the expected ones; False also for those to another kind of question."""
        try:
            return self.same(self.fingerprint_of(given), self.fingerprint_of(expected))
        except ValueError:
            return False

    def answers(self, scores: Scores) -> tuple[npt.NDArray[Any], Floats | None]:
        """Turn scores into answers.

        Returns
        -------
        values : ndarray, shape (rows,)
            binary: bool, True for the positive class. multiclass: int, place of the class. regression:
            float64.
        probabilities : ndarray of float64
            binary: shape (rows,), of the positive class. multiclass: shape (rows, classes). None if the model
            gives none.
        """
        if self.kind == "regression":
            return np.ascontiguousarray(scores[:, 0]), None
        if not self.has_probabilities:
            places = scores[:, 0].astype(np.intp)
            return places == self.positive_column if self.kind == "binary" else places, None
        if self.kind == "multiclass":
            return scores.argmax(axis=1), np.ascontiguousarray(scores)
        positive = np.ascontiguousarray(scores[:, self.positive_column])
        return positive >= self.threshold, positive

    def ordered_scores(self, values: npt.NDArray[Any], probabilities: Floats | None) -> Floats | None:
        """Return one number for each answer; None for a class without probabilities.

        It is the number of a regression, or the probability of the positive class, or of many classes that
        of the likeliest one.
        """
        if probabilities is None:
            return values if self.kind == "regression" else None
        highest: Floats = probabilities if probabilities.ndim == 1 else probabilities.max(axis=1)
        return highest

    def labels(self, values: npt.NDArray[Any]) -> list[Label]:
        """Return each answer as JSON has it: a boolean, a class or a number."""
        found: list[Any] = values.tolist()
        return [self.classes[place] for place in found] if self.kind == "multiclass" else found

    def explained(self, values: npt.NDArray[Any], probabilities: Floats | None, place: int) -> Floats:
        """Return the score that an explanation is about, for each row.

        It is the number of a regression, the probability of the positive class, or of many classes that of
        the one at `place`; without probabilities, 1 for a yes or for this class, and else 0.
        """
        if probabilities is not None:
            return probabilities if self.kind == "binary" else np.ascontiguousarray(probabilities[:, place])
        if self.kind == "multiclass":
            values = values == place
        return values.astype(np.float64)


#: Two classes with probabilities.
BINARY = Target("binary", (False, True), positive_class=True)


def answer_score(name: str, prediction: Mapping[str, Any]) -> AnswerScore:
    """Return the part of an answer to compare, from V1's object; `name` is that of the output.

    Raises
    ------
    KeyError
        If it is no answer of this output.
    """
    if (probability := prediction.get(f"{name}_probability")) is not None:
        found: float = probability
        return found
    if (probabilities := prediction.get(f"{name}_probabilities")) is not None:
        return tuple(probabilities.values())
    answer: Label = prediction[name]
    return answer


def _same_label(one: Label, other: Label) -> bool:
    return type(one) is type(other) and one == other


def _text(label: Any) -> Any:  # noqa: ANN401 (a class of any type)
    return label.decode() if isinstance(label, bytes) else label
