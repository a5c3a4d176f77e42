"""Kinds of question, and the classes of a model. `transformer.bundle.target` says how they are answered."""

import json
from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Literal

from pydantic import PlainValidator, WithJsonSchema

from transformer.bundle.plain_errors import describe, shown

Kind = Literal["binary", "multiclass", "regression"]
#: Types of classes in errors.
_TYPE_NAMES = {"bool": "booleans", "float": "numbers with decimals", "int": "whole numbers", "str": "texts"}
#: Whole numbers of 64 bits, which numpy and V2 have.
_INT64 = range(-(2**63), 2**63)
#: A class as scikit-learn knows it. All classes of a model have one type.
Label = str | bool | int | float
#: The same in a pydantic model.
LabelField = Annotated[
    Label,
    PlainValidator(lambda value: _checked_label(value)),
    WithJsonSchema({"type": ["string", "boolean", "integer", "number"]}),
]


def class_name(label: Label) -> str:
    """Return a class as text: as a key of a JSON object, a metric's label, or a cell of a CSV file."""
    return json.dumps(label) if isinstance(label, bool) else str(label)


def check_classes(classes: Sequence[Label]) -> None:
    """Raise ValueError unless these are two or more different classes of one type."""
    if len(classes) < 2:
        raise ValueError(f"must be two or more classes, got {len(classes)}")
    types = sorted({type(one).__name__ for one in classes})
    if len(types) > 1:
        names = " and ".join(_TYPE_NAMES[one] for one in types)
        raise ValueError(f"must be of one type, got {names}")
    fractions = [one for one in classes if isinstance(one, float) and not one.is_integer()]
    if fractions:
        raise ValueError(f"must be whole numbers, as scikit-learn takes no others, got {fractions[0]}")
    if len(set(classes)) != len(classes):
        raise ValueError(f"must be different classes, got {', '.join(map(str, classes))}")


def _checked_label(value: object) -> object:
    if not isinstance(value, str | bool | int | float) or (isinstance(value, float) and not isfinite(value)):
        raise ValueError(f"must be a text, a number or a boolean, got {describe(value)}")
    if isinstance(value, int) and value not in _INT64:
        raise ValueError(f"must be a whole number of at most 64 bits, got {shown(value)}")
    return value
