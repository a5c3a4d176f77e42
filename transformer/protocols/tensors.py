"""Tensors of the V2 inference protocol: limits on them, their JSON and binary data, and their candidates."""

import struct
from base64 import b64decode
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from transformer.bundle.candidates import Candidates, Columns, RawColumn, Rows
from transformer.bundle.plain_errors import MAX_VALUE_LENGTH, describe
from transformer.errors import InvalidRequest, quoted
from transformer.protocols.json_body import check_count, check_values, parse_json

#: Datatypes of the V2 protocol as little-endian numpy types; BYTES has none.
NUMPY_DTYPES = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
#: Minimum and maximum of each integer datatype.
_RANGES = {
    name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    for name, dtype in NUMPY_DTYPES.items()
    if "INT" in name
}
#: Datatypes with less precision or range than a JSON number.
_NARROW = {"FP16", "FP32"}
#: Value of the parameter ``content_type`` of a tensor whose elements are base64, as MLServer defines it.
BASE64 = "base64"
#: Maximum characters of a tensor's name, which errors repeat, and of a request's id, which responses repeat.
MAX_NAME_LENGTH = 128
#: Maximum extra tensors of a request, beyond one per field. Extra tensors are ignored.
MAX_OTHER_TENSORS = 1_000
#: Name, datatype and shape of a tensor.
TensorMetadata = tuple[str, str, Sequence[int]]
_LENGTH = struct.Struct("<I")
#: JSON type of each datatype's values, as text and as Python types. null is a missing value in all of them.
_JSON_TYPES: dict[str, tuple[str, set[type]]] = {
    **dict.fromkeys(NUMPY_DTYPES, ("an integer", {int, type(None)})),
    **dict.fromkeys(("FP16", "FP32", "FP64"), ("a number", {int, float, type(None)})),
    "BOOL": ("a boolean", {bool, type(None)}),
    "BYTES": ("a string", {str, bytes, type(None)}),
}


@dataclass(slots=True)
class Tensor:
    """An input tensor: a column of `rows` values, as numpy array or list. Strings are bytes or str."""

    name: str
    datatype: str
    rows: int
    values: RawColumn


def row_count(name: str, shape: Sequence[int]) -> int:
    """Return the number of candidates in a tensor of shape ``[n]`` or ``[n, 1]``.

    Raises
    ------
    InvalidRequest
        If it has another shape.
    """
    if not 1 <= len(shape) <= 2 or shape[0] < 1 or shape[1:] not in ([], [1]):
        raise InvalidRequest(f"inputs.{name}: shape must be [n] or [n, 1], got {list(shape)[:8]}")
    return shape[0]


def check_number_of_tensors(tensors: int, fields: Collection[str]) -> None:
    """Check the number of a request's tensors before anything else of them is read.

    Raises
    ------
    InvalidRequest
        If there are more than `MAX_OTHER_TENSORS` and one for each field.
    """
    limit = len(fields) + MAX_OTHER_TENSORS
    if tensors > limit:
        raise InvalidRequest(f"inputs: too many tensors: limit {limit}, got {tensors}")


def check_metadata(
    tensors: Iterable[TensorMetadata], fields: Collection[str], max_candidates: int, row_name: str
) -> Collection[str]:
    """Check the tensors of a request before their data is read.

    Returns
    -------
    The names of the tensors that are ignored. Their values, which can be millions, need not be read.

    Raises
    ------
    InvalidRequest
        If there is no tensor, a name is too long, not printable or a duplicate, a datatype is unknown, a
        shape is not that of a column, or the tensors differ in length.
    TooLarge
        If there are more than `max_candidates`.
    """
    names: set[str] = set()
    first, candidates = "", 0
    for name, datatype, shape in tensors:
        if len(name) > MAX_NAME_LENGTH:
            raise InvalidRequest(
                f"inputs: tensor name too long: limit {MAX_NAME_LENGTH} characters, got {len(name)}"
            )
        if not name.isprintable():
            raise InvalidRequest(f"inputs: tensor name must be printable, got {quoted(name)}")
        if datatype != "BYTES" and datatype not in NUMPY_DTYPES:
            known = ", ".join(NUMPY_DTYPES)
            raise InvalidRequest(
                f"inputs.{name}: datatype must be one of BYTES, {known}, got {quoted(datatype)}"
            )
        if name in names:
            raise InvalidRequest(f"inputs: duplicate tensor name {quoted(name)}")
        rows = row_count(name, shape)
        if not names:
            first, candidates = name, rows
        if rows != candidates:
            raise InvalidRequest(
                f"inputs.{name}: must have length {candidates}, as inputs.{first} has, got {rows}"
            )
        names.add(name)
    if not names:
        raise InvalidRequest(
            "inputs: must be one tensor per field, or one BYTES tensor of JSON objects, got no tensor"
        )
    check_count(candidates, max_candidates, row_name)
    # A single tensor may be one of JSON objects; see `to_candidates`.
    return names.difference(fields) if len(names) > 1 else ()


def from_values(
    name: str, datatype: str, shape: Sequence[int], values: Sequence[Any], *, ignored: bool
) -> Tensor:
    """Return a tensor of plain values, from JSON or gRPC's typed contents; its metadata was checked.

    An ignored tensor has no values, and only their number is checked.

    Raises
    ------
    InvalidRequest
        If the number of values does not fit the shape, or a value has another type or is out of range.
    """
    rows = row_count(name, shape)
    if len(values) != rows:
        raise InvalidRequest(f"inputs.{name}: shape {list(shape)} needs {rows} values, got {len(values)}")
    if ignored:
        return Tensor(name, datatype, rows, [])
    # A protobuf sequence may have millions of values, so it is copied only after the check above.
    values = values if isinstance(values, list) else list(values)
    type_name, types = _JSON_TYPES[datatype]
    if not types.issuperset(map(type, values)):
        number, value = next((n, v) for n, v in enumerate(values) if type(v) not in types)
        raise InvalidRequest(
            f"inputs.{name}[{number}]: must be {type_name}, datatype {datatype}, got {describe(value)}"
        )
    if datatype in _RANGES:
        _check_range(name, datatype, values)
    if datatype in _NARROW:
        return Tensor(name, datatype, rows, _rounded(datatype, values))
    return Tensor(name, datatype, rows, values)


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes, *, ignored: bool) -> Tensor:
    """Return a tensor of little-endian binary data; its metadata was checked.

    Each BYTES element follows its length, which takes four bytes. An ignored BYTES tensor has no values, and
    is not checked.

    Raises
    ------
    InvalidRequest
        If the data does not fit the shape.
    """
    rows = row_count(name, shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, rows, [] if ignored else _split_bytes(name, rows, raw))
    dtype = np.dtype(NUMPY_DTYPES[datatype])
    expected = prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidRequest(
            f"inputs.{name}: shape {list(shape)} of {datatype} needs {expected} bytes, got {len(raw)}"
        )
    return Tensor(name, datatype, rows, np.frombuffer(raw, dtype))


def from_base64(tensor: Tensor) -> Tensor:
    """Return a BYTES tensor whose elements are base64 with the decoded elements.

    Raises
    ------
    InvalidRequest
        If the datatype is another one, or an element is not base64.
    """
    if tensor.datatype != "BYTES":
        raise InvalidRequest(f"inputs.{tensor.name}: base64 needs datatype BYTES, got {tensor.datatype}")
    decoded: list[bytes | None] = []
    for number, value in enumerate(tensor.values):
        try:
            decoded.append(None if value is None else b64decode(value, validate=True))
        except ValueError as error:
            raise InvalidRequest(f"inputs.{tensor.name}[{number}]: must be base64") from error
    return replace(tensor, values=decoded)


def _check_range(name: str, datatype: str, values: Sequence[Any]) -> None:
    minimum, maximum = _RANGES[datatype]
    for number, value in enumerate(values):
        if value is not None and not minimum <= value <= maximum:
            raise InvalidRequest(
                f"inputs.{name}[{number}]: must be {minimum} to {maximum}, datatype {datatype}, got {value}"
            )


def _rounded(datatype: str, values: Sequence[Any]) -> RawColumn:
    """Return values rounded to the datatype's precision; larger ones become infinite."""
    with np.errstate(over="ignore"):
        rounded = np.array([0.0 if value is None else value for value in values], NUMPY_DTYPES[datatype])
    if None not in values:
        return rounded
    pairs = zip(values, rounded.tolist(), strict=True)
    return [None if value is None else number for value, number in pairs]


def _split_bytes(name: str, rows: int, raw: bytes) -> list[bytes]:
    values: list[bytes] = []
    position, end, length_at = 0, len(raw), _LENGTH.unpack_from
    # One more than expected, to find data with too many elements.
    for _ in range(rows + 1):
        if position == end:
            break
        start = position + _LENGTH.size
        position = start + length_at(raw, position)[0] if start <= end else end + 1
        if position > end:
            raise InvalidRequest(f"inputs.{name}[{len(values)}]: length is past the end of the binary data")
        values.append(raw[start:position])
    if len(values) != rows:
        got = f"more than {rows}" if len(values) > rows else len(values)
        raise InvalidRequest(f"inputs.{name}: shape needs {rows} elements, got {got}")
    return values


def to_candidates(tensors: Sequence[Tensor], fields: tuple[str, ...]) -> Candidates:
    """Return the candidates in one tensor per field, or in one BYTES tensor of JSON objects.

    Tensors with other names are ignored, like other keys of a candidate.

    Raises
    ------
    InvalidRequest
        If a BYTES element is not UTF-8 or not JSON.
    TooLarge
        If the JSON has too many values; see `transformer.protocols.json_body.check_values`.
    """
    first = tensors[0]
    if len(tensors) == 1 and first.datatype == "BYTES" and first.name not in fields:
        return _json_objects(first)
    columns = {tensor.name: _column(tensor) for tensor in tensors if tensor.name in fields}
    return Columns(first.rows, columns, [tensor.name for tensor in tensors if tensor.name not in fields])


def _json_objects(tensor: Tensor) -> Candidates:
    # Every problem repeats the name, so a long one would leave no space for other problems in a gRPC error.
    short = tensor.name.isascii() and len(tensor.name) <= MAX_VALUE_LENGTH
    path = f"inputs.{tensor.name}" if short else "inputs"
    check_values(*(value for value in tensor.values if isinstance(value, bytes)))
    rows = []
    for number, value in enumerate(tensor.values):
        if not isinstance(value, (bytes, str)):
            raise InvalidRequest(f"{path}[{number}]: must be a JSON object as a string")
        # The place is only built for an error: there may be thousands of rows.
        try:
            rows.append(parse_json(value))
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}[{number}]: {str(error).removeprefix('body: ')}") from error
    return Rows(rows, path)


def _column(tensor: Tensor) -> RawColumn:
    if tensor.datatype != "BYTES" or bytes not in set(map(type, tensor.values)):
        return tensor.values
    # Categories have many values and few distinct ones, so each is decoded once.
    texts = dict.fromkeys(tensor.values)
    try:
        for value in texts:
            texts[value] = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        # A dict keeps the order, so this is the first invalid element.
        number = list(tensor.values).index(value)
        raise InvalidRequest(f"inputs.{tensor.name}[{number}]: is not UTF-8") from error
    return [texts[value] for value in tensor.values]
