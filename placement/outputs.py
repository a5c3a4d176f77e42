"""Predictions in a V2 response: output tensors become the objects that V1 has."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformer.bundle.classes import class_name


@dataclass(frozen=True, slots=True)
class Output:
    """An output tensor.

    Attributes
    ----------
    values
        Its values, row by row.
    classes
        The parameter ``classes``: the class of each column, as a JSON array; None for one value per row.
    """

    name: str
    values: Sequence[Any]
    classes: str | None = None

    def rows(self) -> Sequence[Any]:
        """Return the value of each row; with classes, a dict of them."""
        if self.classes is None:
            return self.values
        names = list(map(class_name, json.loads(self.classes)))
        starts = range(0, len(self.values), len(names))
        return [dict(zip(names, self.values[start : start + len(names)], strict=True)) for start in starts]


def predictions(outputs: Iterable[Output]) -> list[dict[str, Any]]:
    """Return a prediction for each row, as V1 gives it."""
    columns = {output.name: output.rows() for output in outputs}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def cells(prediction: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each column of a prediction in a table.

    The names are ``prediction``, then ``probability``, or ``probability of A`` for each of many classes.
    """
    answer, *probabilities = prediction.values()
    yield "prediction", answer
    for value in probabilities:
        if isinstance(value, Mapping):
            yield from ((f"probability of {name}", one) for name, one in value.items())
        else:
            yield "probability", value
