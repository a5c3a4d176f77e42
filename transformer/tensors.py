"""Tensors of the V2 inference protocol: from JSON, from binary data, and as candidates."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from transformer.candidates import Candidates, Columns, RawColumn, Rows
from transformer.errors import InvalidRequest
from transformer.v1 import check_count, parse_json
from transformer.validation import typed

#: The V2 protocol's datatypes and their little-endian numpy form; BYTES has none.
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
#: Longest name of a tensor; errors repeat it.
MAX_NAME = 128
_LENGTH = struct.Struct("<I")
#: What a value in JSON must be for its tensor's datatype; null is a missing value in all of them.
_JSON_KINDS: dict[str, tuple[str, set[type]]] = {
    **dict.fromkeys(NUMPY_DTYPES, ("an integer", {int, type(None)})),
    **dict.fromkeys(("FP16", "FP32", "FP64"), ("a number", {int, float, type(None)})),
    "BOOL": ("a boolean", {bool, type(None)}),
    "BYTES": ("a string", {str, bytes, type(None)}),
}


@dataclass(slots=True)
class Tensor:
    """One input: a column of `rows` values, as numpy array or list, strings as bytes or str."""

    name: str
    datatype: str
    rows: int
    values: RawColumn


def rows_of(name: str, shape: Sequence[int]) -> int:
    """Number of candidates in a tensor of `shape`, which must be ``[n]`` or ``[n, 1]``.

    Raises
    ------
    InvalidRequest
        If it is another shape.
    """
    if not 1 <= len(shape) <= 2 or shape[0] < 1 or shape[1:] not in ([], [1]):
        raise InvalidRequest(f"inputs.{name}: shape must be [n] or [n, 1], got {list(shape)[:8]}")
    return shape[0]


def from_values(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> Tensor:
    """A tensor of plain values, as JSON and gRPC's typed contents hold them.

    Raises
    ------
    InvalidRequest
        If the datatype is unknown, the shape asks for another number of values, or one is of another type.
    """
    _known(name, datatype)
    rows = rows_of(name, shape)
    if len(values) != rows:
        raise InvalidRequest(f"inputs.{name}: shape {list(shape)} wants {rows} values, got {len(values)}")
    kind, types = _JSON_KINDS[datatype]
    if not types.issuperset(map(type, values)):
        number, value = next((n, v) for n, v in enumerate(values) if type(v) not in types)
        raise InvalidRequest(f"inputs.{name}[{number}]: must be {kind}, as {datatype} is, got {typed(value)}")
    return Tensor(name, datatype, rows, values)


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """A tensor of little-endian binary data; BYTES elements each follow their length in four bytes.

    Raises
    ------
    InvalidRequest
        If the datatype is unknown or the data does not fill the shape exactly.
    """
    _known(name, datatype)
    rows = rows_of(name, shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, rows, _raw_bytes(name, rows, raw))
    dtype = np.dtype(NUMPY_DTYPES[datatype])
    wanted = prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise InvalidRequest(
            f"inputs.{name}: shape {list(shape)} of {datatype} wants {wanted} bytes, got {len(raw)}"
        )
    return Tensor(name, datatype, rows, np.frombuffer(raw, dtype))


def _known(name: str, datatype: str) -> None:
    if len(name) > MAX_NAME:
        raise InvalidRequest(f"inputs: a tensor's name may have {MAX_NAME} characters, got {len(name)}")
    if datatype != "BYTES" and datatype not in NUMPY_DTYPES:
        raise InvalidRequest(
            f"inputs.{name}: datatype must be one of BYTES, {', '.join(NUMPY_DTYPES)}, got {datatype[:40]!a}"
        )


def _raw_bytes(name: str, rows: int, raw: bytes) -> list[bytes]:
    values: list[bytes] = []
    position, end, length_at = 0, len(raw), _LENGTH.unpack_from
    # One more than there should be tells of too many.
    for _ in range(rows + 1):
        if position == end:
            break
        start = position + _LENGTH.size
        position = start + length_at(raw, position)[0] if start <= end else end + 1
        if position > end:
            raise InvalidRequest(f"inputs.{name}[{len(values)}]: its length reaches past the end of the data")
        values.append(raw[start:position])
    if len(values) != rows:
        got = f"more than {rows}" if len(values) > rows else len(values)
        raise InvalidRequest(f"inputs.{name}: shape wants {rows} elements, got {got}")
    return values


def to_candidates(tensors: Sequence[Tensor], fields: tuple[str, ...], max_candidates: int) -> Candidates:
    """Candidates from tensors: one tensor for each field, or one BYTES tensor of JSON objects.

    Tensors of other names are passed over, as a candidate's other keys are.

    Raises
    ------
    InvalidRequest
        If there is no tensor, a name stands twice, the tensors differ in length, or a BYTES element is not
        UTF-8 or not JSON.
    TooLarge
        If there are more than `max_candidates`.
    """
    if not tensors:
        raise InvalidRequest("inputs: must be one tensor for each field, or one BYTES tensor of JSON objects")
    first = tensors[0]
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise InvalidRequest(f"inputs: {max(names, key=names.count)[:40]!a} stands twice")
    for tensor in tensors:
        if tensor.rows != first.rows:
            raise InvalidRequest(
                f"inputs.{tensor.name}: must hold {first.rows} as inputs.{first.name} does, got {tensor.rows}"
            )
    check_count(first.rows, max_candidates)
    if len(tensors) == 1 and first.datatype == "BYTES" and first.name not in fields:
        return _json_objects(first)
    return Columns(first.rows, {tensor.name: _column(tensor) for tensor in tensors if tensor.name in fields})


def _json_objects(tensor: Tensor) -> Candidates:
    path = f"inputs.{tensor.name}"
    rows = []
    for number, value in enumerate(tensor.values):
        if not isinstance(value, (bytes, str)):
            raise InvalidRequest(f"{path}[{number}]: must be a JSON object as a string")
        try:
            rows.append(parse_json(value))
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}[{number}]: {str(error).removeprefix('body: ')}") from error
    return Rows(rows, path)


def _column(tensor: Tensor) -> RawColumn:
    if tensor.datatype != "BYTES" or bytes not in set(map(type, tensor.values)):
        return tensor.values
    # Categories: many values, few different ones.
    texts = dict.fromkeys(tensor.values)
    try:
        for value in texts:
            texts[value] = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        # The first of its kind, since a dict keeps the order.
        number = list(tensor.values).index(value)
        raise InvalidRequest(f"inputs.{tensor.name}[{number}]: is not UTF-8") from error
    return [texts[value] for value in tensor.values]
