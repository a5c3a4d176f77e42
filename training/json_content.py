"""Columns and rows of JSON: objects, JSON lines, what pandas' `to_json` writes, or a V1 or V2 request."""

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from training.table import Content, DataError
from transformer.errors import json_problem

_FORMS = (
    "must be an object of fields and values, a list of them, JSON lines, a table of pandas' to_json, or a V1 "
    "or V2 request"
)
_TABLE_KEYS = {"split": {"columns", "index", "data"}, "table": {"schema", "data"}}


def json_content(source: str, text: bytes, known: Sequence[str] = (), *, only_lists: bool = False) -> Content:
    """Read JSON.

    Parameters
    ----------
    source
        Name of the file in messages.
    text
        The whole text in UTF-8, without a byte order mark.
    known
        Names of some fields; they tell apart a table by columns and one by rows.
    only_lists
        True if each field is a list of categories. An object of lists of texts is a row then, and no table.

    Raises
    ------
    DataError
        If it is not JSON, or has no rows of fields.
    """
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        objects = _json_lines(source, text)
        if objects is None:
            raise DataError(source, [f"is not JSON: {json_problem(error)}"]) from error
        return _of_objects(source, objects)
    return _Reader(source, set(known), only_lists).read(content)


def _json_lines(source: str, text: bytes) -> list[tuple[int | None, Any]] | None:
    """Return line and value of each line; None if the first one is no JSON object."""
    objects: list[tuple[int | None, Any]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            objects.append((number, orjson.loads(line)))
        except orjson.JSONDecodeError as error:
            if not objects:
                return None
            problem = f"row {len(objects) + 1} (line {number}): is not JSON: {json_problem(error)}"
            raise DataError(source, [problem]) from error
        if not isinstance(objects[0][1], dict):
            return None
    return objects or None


def _of_objects(source: str, objects: Iterable[tuple[int | None, Any]]) -> Content:
    """Return the rows of objects; the columns are the names of all of them."""
    objects = list(objects)
    for number, (line, one) in enumerate(objects, start=1):
        if not isinstance(one, dict):
            place = f"row {number}" if line is None else f"row {number} (line {line})"
            raise DataError(source, [f"{place}: must be an object of fields and values"])
    header = list(dict.fromkeys(name for _, one in objects for name in one))
    rows = ((line, [one.get(name) for name in header]) for line, one in objects)
    return Content(header, rows, len(objects), is_json=True)


class _Reader:
    """Recognises the form of a JSON value by its keys."""

    def __init__(self, source: str, known: set[str], only_lists: bool) -> None:
        self._source = source
        self._known = known
        self._only_lists = only_lists

    def read(self, content: Any) -> Content:  # noqa: ANN401 (JSON)
        """Return the rows of a parsed file."""
        if isinstance(content, dict):
            return self._read_object(content)
        if not isinstance(content, list):
            raise self._error(_FORMS)
        if content and all(isinstance(one, list) for one in content):
            raise self._error("has rows without field names; write it with another orient than 'values'")
        return self._read_objects(content)

    def _read_object(self, content: dict[str, Any]) -> Content:
        for key in ("instances", "inputs"):
            value = content.get(key)
            if isinstance(value, list):
                tensors = key == "inputs" and value and all(_is_tensor(one) for one in value)
                return self._read_tensors(value) if tensors else self._read_objects(value)
            if value is not None and len(content) == 1:
                raise self._error(_FORMS)
        keys = set(content)
        if isinstance(content.get("data"), list) and {"columns", "data"} <= keys <= _TABLE_KEYS["split"]:
            return self._read_split(content["columns"], content["data"])
        if isinstance(content.get("data"), list) and keys == _TABLE_KEYS["table"]:
            return self._read_objects(content["data"])
        if content and all(isinstance(value, dict) for value in content.values()):
            return self._read_index(content)
        return self._read_objects([content])

    def _read_objects(self, objects: list[Any]) -> Content:
        """Read a list of rows, or of one object with a list for each field, as KServe's servers take it."""
        if len(objects) == 1 and isinstance(objects[0], dict) and objects[0]:
            columns = objects[0]
            if all(map(self._is_column, columns.values())):
                return self._read_columns(columns)
        return _of_objects(self._source, ((None, one) for one in objects))

    def _is_column(self, values: object) -> bool:
        return isinstance(values, list) and (
            not self._only_lists or all(one is None or isinstance(one, list) for one in values)
        )

    def _read_columns(self, columns: dict[str, list[Any]]) -> Content:
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise self._error(f"must have equally many values for each field, got {counts}")
        rows = ((None, list(cells)) for cells in zip(*columns.values(), strict=True))
        return Content(list(columns), rows, next(iter(lengths.values()), 0), is_json=True)

    def _read_split(self, columns: Any, data: list[Any]) -> Content:  # noqa: ANN401 (JSON)
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise self._error("columns: must be a list of names")
        for number, cells in enumerate(data, start=1):
            if not isinstance(cells, list) or len(cells) != len(columns):
                raise self._error(f"row {number}: must be a list of {len(columns)} values")
        return Content(columns, ((None, cells) for cells in data), len(data), is_json=True)

    def _read_index(self, content: dict[str, dict[str, Any]]) -> Content:
        """Read objects by column or by row: the level with more of the known fields has the columns."""
        inner = dict.fromkeys(name for one in content.values() for name in one)
        if len(self._known & inner.keys()) > len(self._known & content.keys()):
            return self._read_objects(list(content.values()))
        rows = ((None, [column.get(index) for column in content.values()]) for index in inner)
        return Content(list(content), rows, len(inner), is_json=True)

    def _read_tensors(self, tensors: list[dict[str, Any]]) -> Content:
        """Read a V2 request: a tensor for each field, or one tensor of JSON objects."""
        columns = {tensor["name"]: self._tensor_data(tensor) for tensor in tensors}
        if len(columns) < len(tensors):
            raise self._error("duplicate tensor name")
        only = next(iter(columns.values()))
        if len(columns) == 1 and only and all(isinstance(v, str) and v.lstrip()[:1] == "{" for v in only):
            try:
                return self._read_objects([orjson.loads(value) for value in only])
            except orjson.JSONDecodeError as error:
                (name,) = columns
                raise self._error(f"tensor {name!r}: is not JSON: {json_problem(error)}") from error
        return self._read_columns(columns)

    def _tensor_data(self, tensor: dict[str, Any]) -> list[Any]:
        name, data = tensor["name"], tensor.get("data")
        if not isinstance(data, list):
            raise self._error(f"tensor {name!r}: must have data; binary data cannot be read from a file")
        if data and all(isinstance(row, list) and len(row) == 1 for row in data):
            data = [row[0] for row in data]
        parameters = tensor.get("parameters")
        if isinstance(parameters, dict) and parameters.get("content_type") == "base64":
            try:
                return [base64.b64decode(value, validate=True).decode() for value in data]
            except (binascii.Error, TypeError, ValueError) as error:
                raise self._error(f"tensor {name!r}: must be UTF-8 in base64") from error
        return data

    def _error(self, problem: str) -> DataError:
        return DataError(self._source, [problem])


def _is_tensor(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and "datatype" in value
