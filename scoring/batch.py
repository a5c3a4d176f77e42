"""Score one Arrow batch: the pure function that every engine runs.

A batch has candidates in one of the two forms of the V2 protocol: a column per raw field, or, if no field has
a column, one column `CANDIDATES` of JSON objects. Other columns are kept.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from scoring.columns import ERROR, PREDICTION, PROBABILITY, VERSION, check_free
from scoring.errors import ScoringError
from scoring.predictor import AnswerType, BundlePredictor, Predictor
from transformer.bundle.candidates import Candidates, CodedColumn, Columns, RawColumn, Rows
from transformer.bundle.signature import same_spelling
from transformer.errors import InvalidCandidates, InvalidRequest

#: Name of the one column of JSON objects, as in V2.
CANDIDATES = "candidates"
#: Path of a candidate in errors, as in V1.
_INSTANCES = "instances"
_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
#: Types of the column of JSON objects.
_JSON_TYPES = (*_TEXT_TYPES, pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())
#: Types whose values become codes.
_CODED_TYPES = (*_TEXT_TYPES, pa.bool_())
#: Type of the predictions, by the V2 datatype of the answers.
_ARROW_TYPES = {"BOOL": pa.bool_(), "INT64": pa.int64(), "FP64": pa.float64(), "BYTES": pa.string()}

Batch = TypeVar("Batch", pa.RecordBatch, pa.Table)


class BatchScorer:
    """Scores Arrow batches with the model of a bundle; for jobs of Ray Data, Spark or Dask.

    See `scoring.predictor.BundlePredictor` for the parameters and errors.
    """

    def __init__(self, uri: str, digest: str | None = None) -> None:
        self._predictor = BundlePredictor(uri, digest)

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with the columns of `answer` added."""
        answers = answer(batch, self._predictor)
        for name in answers.schema.names:
            batch = batch.append_column(name, answers.column(name))
        return batch


def answer(batch: pa.RecordBatch | pa.Table, predictor: Predictor) -> pa.RecordBatch:
    """Score the candidates of a batch.

    Returns
    -------
    RecordBatch with one row per candidate
        ``prediction`` (bool, string, int64 or double), ``probability`` (double) if the model gives
        probabilities, ``version`` (string) and ``error`` (string). All but ``error`` are null for an invalid
        candidate, and ``error`` is the service's text for a V1 request with this candidate only; else it is
        null.

    Raises
    ------
    ScoringError
        If a column has values that no request could have, or the name of an added one.
    """
    check_free(batch.schema.names, "the input has the column")
    schema = _answer_schema(predictor.answer_type)
    if not batch.num_rows:
        return pa.RecordBatch.from_pylist([], schema)
    return _answers(batch, predictor, schema).combine_chunks().to_batches()[0]


def refusal(errors: pa.StringArray, predictor: Predictor) -> pa.RecordBatch:
    """Return what `answer` does, for rows from which no candidates can be read."""
    return pa.RecordBatch.from_pylist(
        [{ERROR: error} for error in errors.to_pylist()], _answer_schema(predictor.answer_type)
    )


def _answer_schema(kind: AnswerType) -> pa.Schema:
    types = {PREDICTION: _ARROW_TYPES[kind.datatype]}
    if kind.has_probabilities:
        types[PROBABILITY] = pa.float64()
    return pa.schema(types | {VERSION: pa.string(), ERROR: pa.string()})


def _answers(batch: pa.RecordBatch | pa.Table, predictor: Predictor, schema: pa.Schema) -> pa.Table:
    """Return the answers to all candidates; after an error, those of each group of them."""
    rows = batch.num_rows
    try:
        answers = predictor.predict(_candidates(batch, predictor.fields))
    except InvalidRequest as error:
        if rows == 1:
            return pa.Table.from_pylist([{ERROR: str(error)}], schema)
        groups = _groups(rows, error)
        tables = [_answers(batch.take(group), predictor, schema) for group in groups]
        return pa.concat_tables(tables).take(np.argsort(np.concatenate(groups)))
    columns = {
        PREDICTION: answers.labels,
        PROBABILITY: answers.probabilities,
        VERSION: pa.repeat(answers.version, rows),
        ERROR: pa.nulls(rows),
    }
    return pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema)


def _groups(rows: int, error: InvalidRequest) -> list[npt.NDArray[np.intp]]:
    """Return the positions that are asked for together after an error.

    The invalid ones are alone, if the error says which they are. A service's error does not: then halves.
    """
    every = np.arange(rows)
    if not isinstance(error, InvalidCandidates):
        return np.array_split(every, 2)
    valid = np.delete(every, error.rows)
    return [*np.split(np.array(error.rows), len(error.rows)), *([valid] if len(valid) else ())]


def _candidates(batch: pa.RecordBatch | pa.Table, fields: Mapping[str, str]) -> Candidates:
    """Return the candidates of a batch; a single one as in V1, because the service's errors depend on it."""
    names = batch.schema.names
    if holds_objects(names, fields):
        return Rows(_parsed(_texts(batch[CANDIDATES])), _INSTANCES)
    misspelled = same_spelling(names, fields)
    columns = {name: _raw_column(name, batch[name]) for name in names if name in fields or name in misspelled}
    candidates = Columns(batch.num_rows, columns)
    return Rows(as_json(candidates), _INSTANCES) if batch.num_rows == 1 else candidates


def holds_objects(names: Sequence[str], fields: Mapping[str, str]) -> bool:
    """Return whether a table with these columns has its candidates as JSON objects in one of them."""
    return CANDIDATES in names and not any(name in fields for name in names)


def as_json(candidates: Candidates) -> list[Any]:
    """Return candidates as JSON can express them: NaN and infinity as texts, because null means missing."""
    return [
        {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in candidate.items()
        }
        if isinstance(candidate, dict)
        else candidate
        for candidate in candidates.dicts()
    ]


def _texts(column: Any) -> list[str | bytes | None]:  # noqa: ANN401 (Arrow has no types)
    """Return the JSON texts of a column."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind not in _JSON_TYPES:
        raise ScoringError(f"column {CANDIDATES!r}: must hold JSON texts, got the Arrow type {kind}")
    texts: list[str | bytes | None] = column.to_pylist()
    return texts


def _parsed(texts: Sequence[str | bytes | None]) -> list[object]:
    """Return the values of JSON texts, None in place of missing ones."""
    values: list[object] = []
    problems = {}
    for row, text in enumerate(texts):
        try:
            values.append(None if text is None else orjson.loads(text))
        except orjson.JSONDecodeError as error:
            problems[row] = f"{_INSTANCES}[{row}]: is not JSON: {error}"
    if problems:
        raise InvalidCandidates([*problems.values()], len(problems), [*problems])
    for value in values:
        if isinstance(value, dict):
            check_free(value, "a candidate has the key")
    return values


def _raw_column(name: str, column: Any) -> RawColumn:  # noqa: ANN401 (Arrow has no types)
    """Return a column's values as a request would have them."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_decimal(kind):
        column, kind = pc.cast(column, pa.float64()), pa.float64()
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not column.null_count:
        numbers: npt.NDArray[Any] = column.to_numpy()
        return numbers
    if pa.types.is_dictionary(kind) or kind in _CODED_TYPES:
        return _coded(column)
    is_plain = pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_plain or is_list or pa.types.is_null(kind):
        values: list[Any] = column.to_pylist()
        return values
    raise ScoringError(f"column {name!r}: must hold numbers, strings or lists, got the Arrow type {kind}")


def _coded(column: Any) -> CodedColumn:  # noqa: ANN401
    """Return texts or booleans as codes, without the values of a dictionary that belong to other rows."""
    if pa.types.is_dictionary(column.type) and len(column.dictionary) > len(column):
        column = column.dictionary_decode()
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    values, codes = encoded.dictionary.to_pylist(), encoded.indices
    if codes.null_count:
        values, codes = [*values, None], pc.fill_null(codes.cast(pa.int64()), len(values))
    return CodedColumn(values, codes.to_numpy())
