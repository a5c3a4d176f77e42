"""Tensors of the V2 inference protocol: from JSON, from binary data, and as candidates."""

import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from transformer.bundle.candidates import Candidates, Columns, RawColumn, Rows
from transformer.bundle.validation import MAX_VALUE_LENGTH, describe
from transformer.errors import InvalidRequest, quoted
from transformer.protocols.json_body import check_count, check_values, parse_json

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
#: Least and greatest value of each integer datatype.
_RANGES = {
    name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    for name, dtype in NUMPY_DTYPES.items()
    if "INT" in name
}
#: Datatypes that hold less of a number than JSON does.
_NARROW = {"FP16", "FP32"}
#: Longest name of a tensor; errors repeat it.
MAX_NAME = 128
#: Tensors that a request may have beyond one for each field; they are passed over.
MAX_OTHERS = 1_000
#: A tensor without its data: name, datatype, shape.
Head = tuple[str, str, Sequence[int]]
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


def check_heads(heads: Iterable[Head], fields: Collection[str], max_candidates: int) -> None:
    """See what can be seen of a request's tensors before any of their data is read.

    Raises
    ------
    InvalidRequest
        If there is no tensor or far too many, a name is too long, cannot be printed or stands twice, a
        datatype is unknown, a shape is none of a column, or the tensors differ in length.
    TooLarge
        If there are more than `max_candidates`.
    """
    names: set[str] = set()
    first, candidates = "", 0
    for name, datatype, shape in heads:
        if len(name) > MAX_NAME:
            raise InvalidRequest(
                f"inputs: a tensor's name may have at most {MAX_NAME} characters, got {len(name)}"
            )
        if not name.isprintable():
            raise InvalidRequest(f"inputs: a tensor's name must be printable, got {quoted(name)}")
        if datatype != "BYTES" and datatype not in NUMPY_DTYPES:
            known = ", ".join(NUMPY_DTYPES)
            raise InvalidRequest(
                f"inputs.{name}: datatype must be one of BYTES, {known}, got {quoted(datatype)}"
            )
        if name in names:
            raise InvalidRequest(f"inputs: {quoted(name)} stands twice")
        rows = rows_of(name, shape)
        if not names:
            first, candidates = name, rows
        if rows != candidates:
            raise InvalidRequest(f"inputs.{name}: must hold {candidates} as inputs.{first} does, got {rows}")
        names.add(name)
        if len(names) > len(fields) + MAX_OTHERS:
            raise InvalidRequest(f"inputs: may be at most {len(fields) + MAX_OTHERS} tensors")
    if not names:
        raise InvalidRequest("inputs: must be one tensor for each field, or one BYTES tensor of JSON objects")
    check_count(candidates, max_candidates)


def from_values(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> Tensor:
    """A tensor of plain values, as JSON and gRPC's typed contents hold them; its head was checked.

    Raises
    ------
    InvalidRequest
        If the shape asks for another number of values, or one is of another type or out of its range.
    """
    rows = rows_of(name, shape)
    if len(values) != rows:
        raise InvalidRequest(f"inputs.{name}: shape {list(shape)} wants {rows} values, got {len(values)}")
    # Protobuf's own sequence, of millions of values maybe, is copied only now.
    values = values if isinstance(values, list) else list(values)
    kind, types = _JSON_KINDS[datatype]
    if not types.issuperset(map(type, values)):
        number, value = next((n, v) for n, v in enumerate(values) if type(v) not in types)
        raise InvalidRequest(
            f"inputs.{name}[{number}]: must be {kind}, as {datatype} is, got {describe(value)}"
        )
    if datatype in _RANGES:
        _in_range(name, datatype, values)
    if datatype in _NARROW:
        return Tensor(name, datatype, rows, _rounded(datatype, values))
    return Tensor(name, datatype, rows, values)


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """A tensor of little-endian binary data, whose head was checked.

    BYTES elements each follow their length in four bytes.

    Raises
    ------
    InvalidRequest
        If the data does not fill the shape exactly.
    """
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


def _in_range(name: str, datatype: str, values: Sequence[Any]) -> None:
    least, greatest = _RANGES[datatype]
    for number, value in enumerate(values):
        if value is not None and not least <= value <= greatest:
            raise InvalidRequest(
                f"inputs.{name}[{number}]: must be {least} to {greatest}, as {datatype} is, got {value}"
            )


def _rounded(datatype: str, values: Sequence[Any]) -> RawColumn:
    """Values as the datatype holds them; those beyond it become infinite."""
    with np.errstate(over="ignore"):
        rounded = np.array([0.0 if value is None else value for value in values], NUMPY_DTYPES[datatype])
    if None not in values:
        return rounded
    return [None if value is None else held for value, held in zip(values, rounded.tolist(), strict=True)]


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


def to_candidates(tensors: Sequence[Tensor], fields: tuple[str, ...]) -> Candidates:
    """Candidates from tensors: one tensor for each field, or one BYTES tensor of JSON objects.

    Tensors of other names are passed over, as a candidate's other keys are.

    Raises
    ------
    InvalidRequest
        If a BYTES element is not UTF-8 or not JSON.
    TooLarge
        See `transformer.protocols.v1.check_values`.
    """
    first = tensors[0]
    if len(tensors) == 1 and first.datatype == "BYTES" and first.name not in fields:
        return _json_objects(first)
    return Columns(first.rows, {tensor.name: _column(tensor) for tensor in tensors if tensor.name in fields})


def _json_objects(tensor: Tensor) -> Candidates:
    # Errors repeat it for each problem, and gRPC has 8 KiB for an error in all, escaped as in URLs.
    short = tensor.name.isascii() and len(tensor.name) <= MAX_VALUE_LENGTH
    path = f"inputs.{tensor.name}" if short else "inputs"
    check_values(*(value for value in tensor.values if isinstance(value, bytes)))
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
