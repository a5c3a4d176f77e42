"""Definition of a candidate: the fields with their types, ranges and categories, and the label.

To train on other data, change `SIGNATURE` and `PLACEMENT` here, or write the same content as a JSON file for
`Task.read`. No other module of training, transformer or predictor names a field.
"""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError, model_validator

from transformer.bundle.signature import STRICT, Category, Number, Signature

Candidate = dict[str, str | float]


class TaskError(Exception):
    """An invalid task file; the message names the field that is wrong."""


class Task(BaseModel):
    """Definition of the classification task: the candidate's fields and the two classes.

    Attributes
    ----------
    signature
        The candidate's raw fields.
    label
        Name of the column with the class in the training data.
    classes
        Both classes in alphabetical order, which is the order of the model's `predict_proba`.
    positive_class
        The class whose probability the service returns.
    """

    model_config = STRICT

    signature: Signature
    label: str = Field(min_length=1)
    classes: Annotated[tuple[str, str], Field(strict=False)]
    positive_class: str

    @model_validator(mode="after")
    def _coherent(self) -> "Task":
        if self.label in self.signature.names:
            raise ValueError(f"label {self.label!r} is one of the candidate's fields")
        if self.classes[0] >= self.classes[1]:
            raise ValueError(f"classes {list(self.classes)} must be two, in alphabetical order")
        if self.positive_class not in self.classes:
            raise ValueError(f"positive_class {self.positive_class!r} is not one of {list(self.classes)}")
        return self

    @property
    def negative_class(self) -> str:
        """The other class."""
        return self.classes[1 - self.classes.index(self.positive_class)]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Task":
        """Read a task from a JSON file with this class's attributes.

        Raises
        ------
        TaskError
            If the file is missing or invalid.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise TaskError(f"{path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "content"
            raise TaskError(f"{path}: {where}: {first['msg']}") from error


def _percentage(name: str) -> Number:
    return Number(name=name, minimum=0, maximum=100)


SIGNATURE = Signature(
    fields=(
        Category(name="gender", categories=("M", "F")),
        _percentage("ssc_p"),
        Category(name="ssc_b", categories=("Central", "Others")),
        _percentage("hsc_p"),
        Category(name="hsc_b", categories=("Central", "Others")),
        Category(name="hsc_s", categories=("Science", "Commerce", "Arts")),
        _percentage("degree_p"),
        Category(name="degree_t", categories=("Sci&Tech", "Comm&Mgmt", "Others")),
        _percentage("etest_p"),
        _percentage("mba_p"),
        Category(name="specialisation", categories=("Mkt&Fin", "Mkt&HR")),
        Category(name="workex", categories=("Yes", "No")),
    )
)

#: The task of this project: predict if a candidate will be placed.
PLACEMENT = Task(
    signature=SIGNATURE, label="status", classes=("Not Placed", "Placed"), positive_class="Placed"
)

#: The tutorial's example; the tutorial's forest gives it a probability of 0.898.
SAMPLE: Candidate = {
    "gender": "M",
    "ssc_p": 71.0,
    "ssc_b": "Central",
    "hsc_p": 58.66,
    "hsc_b": "Central",
    "hsc_s": "Science",
    "degree_p": 58.0,
    "degree_t": "Sci&Tech",
    "etest_p": 56.0,
    "mba_p": 61.3,
    "specialisation": "Mkt&Fin",
    "workex": "Yes",
}
