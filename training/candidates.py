"""Definition of a candidate: the fields with their types, ranges and categories, and the label.

To train on other data, change `SIGNATURE` and `PLACEMENT` here, or write the same content as a JSON file for
`Task.read`. No other module of training, transformer or predictor names a field.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from transformer.bundle.classes import Kind, Label, LabelField, check_classes, class_name
from transformer.bundle.plain_errors import problems, shown
from transformer.bundle.signature import (
    DEFAULT_ROW_NAME,
    SEPARATOR,
    STRICT,
    Boolean,
    Category,
    CategoryList,
    Number,
    RowName,
    Signature,
    Value,
    plural,
)

Candidate = dict[str, Value]


#: Keys of a task file that are for its readers and editors only.
REMARKS = ("comment", "$schema")


class TaskError(Exception):
    """An invalid task file; the message names each field that is wrong."""


class Task(BaseModel):
    """Definition of the task: the candidate's fields, and what is predicted.

    Attributes
    ----------
    signature
        The candidate's raw fields.
    label
        Name of the column with the class or the number in the training data.
    kind
        Kind of question: ``binary`` (yes or no), ``multiclass`` (one of many classes) or ``regression`` (a
        number).
    classes
        The classes, all texts, all numbers or both booleans; none for regression. They are put into
        ascending order, which is that of the model's `predict_proba`.
    positive_class
        Of two classes, the one whose probability the service returns.
    row_name
        Word for one row of data in messages and in the report: ``candidate``, ``customer``.
    """

    model_config = STRICT

    signature: Signature
    label: str = Field(min_length=1)
    kind: Kind = "binary"
    classes: Annotated[tuple[LabelField, ...], Field(strict=False, validate_default=True)] = ()
    positive_class: Annotated[LabelField | None, Field(validate_default=True)] = None
    row_name: RowName = DEFAULT_ROW_NAME

    @field_validator("signature")
    @classmethod
    def _distinct_features(cls, signature: Signature) -> Signature:
        signature.check_feature_names(SEPARATOR)
        return signature

    # Fields before a validator's own that have an error are missing in its `info.data`.
    @field_validator("label")
    @classmethod
    def _no_field(cls, label: str, info: ValidationInfo) -> str:
        if "signature" in info.data and label in info.data["signature"].names:
            raise ValueError(f"must not be one of the fields, got {label!r}")
        return label

    @field_validator("classes")
    @classmethod
    def _fit_the_kind(cls, classes: tuple[Label, ...], info: ValidationInfo) -> tuple[Label, ...]:
        kind = info.data.get("kind")
        got = ", ".join(map(str, classes)) or "none"
        different = len(set(classes))
        if kind == "regression" and classes:
            raise ValueError(f"must be left out for the kind regression, got {got}")
        if kind == "binary" and not different == len(classes) == 2:
            hint = '; for more classes, write "kind": "multiclass"' if different > 2 else ""
            raise ValueError(f"must be two different classes, got {got}{hint}")
        if kind == "multiclass" and not different == len(classes) > 2:
            raise ValueError(f"must be three or more different classes, got {got}")
        if classes:
            check_classes(classes)
        return tuple(sorted(classes))

    @field_validator("positive_class")
    @classmethod
    def _one_of_classes(cls, positive_class: Label | None, info: ValidationInfo) -> Label | None:
        kind, classes = info.data.get("kind"), info.data.get("classes")
        if kind in {"multiclass", "regression"} and positive_class is not None:
            raise ValueError(f"must be left out for the kind {kind}, got {positive_class!r}")
        if kind == "binary" and classes:
            if positive_class is None:
                raise ValueError(f"is required, expected one of {', '.join(map(class_name, classes))}")
            if (type(positive_class), positive_class) not in ((type(one), one) for one in classes):
                expected = ", ".join(map(class_name, classes))
                raise ValueError(f"must be one of {expected}, got {shown(positive_class)}")
        return positive_class

    @property
    def positive_name(self) -> str:
        """The positive class as text."""
        assert self.positive_class is not None  # noqa: S101 (binary)
        return class_name(self.positive_class)

    @property
    def negative_name(self) -> str:
        """The other class as text."""
        return next(class_name(one) for one in self.classes if one != self.positive_class)

    @property
    def row_names(self) -> str:
        """Plural of `row_name`."""
        return plural(self.row_name)

    def with_row_name(self, row_name: str) -> "Task":
        """Return the task with another word for one row of data.

        Raises
        ------
        TaskError
            If it is not a word.
        """
        try:
            return type(self).model_validate({**self.model_dump(), "row_name": row_name})
        except ValidationError as error:
            raise TaskError(problems(error)[0]) from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Task":
        """Read a task from a JSON file with this class's attributes; see docs/task_file.md.

        Raises
        ------
        TaskError
            If the file is missing or invalid; the message has a line for each problem.
        """
        try:
            content = without_remarks(json.loads(Path(path).read_text("utf-8-sig")))
        except OSError as error:
            raise TaskError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise TaskError(f"{path}: must be UTF-8") from error
        except json.JSONDecodeError as error:
            raise TaskError(f"{path}: line {error.lineno}: is not JSON: {error.msg}") from error
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            parts = cls, Number, Boolean, Category, CategoryList
            known = list(dict.fromkeys(name for part in parts for name in part.model_fields))
            raise TaskError("\n".join(f"{path}: {one}" for one in problems(error, content, known))) from error

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of a task file; docs/task.schema.json is a copy of it."""
        schema = cls.model_json_schema()
        for part in (schema, *schema["$defs"].values()):
            part["description"] = part["description"].partition("\n")[0]
            part["properties"]["comment"] = {"type": ["string", "array"], "items": {"type": "string"}}
            if "type" in part["properties"]:
                part["required"].append("type")
        schema["properties"]["classes"].update(minItems=2, uniqueItems=True)
        schema["properties"]["$schema"] = {"type": "string"}
        return schema


def without_remarks(content: Any) -> Any:  # noqa: ANN401 (JSON)
    """Return the content of a task file without what is only for its readers."""
    if isinstance(content, dict):
        return {name: without_remarks(part) for name, part in content.items() if name not in REMARKS}
    return [without_remarks(part) for part in content] if isinstance(content, list) else content


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
    signature=SIGNATURE,
    label="status",
    classes=("Not Placed", "Placed"),
    positive_class="Placed",
    row_name="candidate",
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
