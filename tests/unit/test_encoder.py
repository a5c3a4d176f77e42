"""The encoder gives the same numbers as DictVectorizer, bit for bit, on each of its code paths."""

import math
import pickle
import random
from itertools import combinations_with_replacement, cycle, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction import DictVectorizer

from training.candidates import SIGNATURE as PLACEMENT_SIGNATURE
from training.generator import generate
from transformer.bundle import encoder as encoding
from transformer.bundle.candidates import (
    MAX_PACKERS,
    MIN_ROWS_FOR_OWN_KEYS,
    NEEDS_FULL_VALIDATION,
    Candidates,
    CodedColumn,
    Columns,
    Rows,
)
from transformer.bundle.encoder import BLOCK_SIZE, MAX_ONE_BY_ONE, Encoder
from transformer.bundle.format import Vectorizer
from transformer.bundle.signature import Boolean, Category, CategoryList, Number, RawField, Signature
from transformer.bundle.validation import validate
from transformer.errors import InvalidCandidates, InvalidRequest

#: Sizes around each limit of the encoder's code paths, and the sizes of the benchmarks.
SIZES = sorted(
    {
        1,
        2,
        MAX_ONE_BY_ONE - 1,
        MAX_ONE_BY_ONE,
        MAX_ONE_BY_ONE + 1,
        8,
        MIN_ROWS_FOR_OWN_KEYS - 1,
        MIN_ROWS_FOR_OWN_KEYS,
        64,
        128,
        BLOCK_SIZE - 1,
        BLOCK_SIZE,
        BLOCK_SIZE + 1,
        1_000,
    }
)

names = st.text(min_size=1, max_size=6)
finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@st.composite
def numbers(draw: st.DrawFn, name: str) -> Number:
    # -0.0 sorts before 0.0, since there is no float between 0.0 and -0.0.
    minimum, maximum = sorted(
        (draw(finite), draw(finite)), key=lambda bound: (bound, math.copysign(1, bound))
    )
    default = draw(st.none() | st.floats(minimum, maximum))
    least, most = draw(st.none() | st.just(minimum)), draw(st.none() | st.just(maximum))
    return Number(name=name, minimum=least, maximum=most, default=default)


@st.composite
def categories(draw: st.DrawFn, name: str) -> Category:
    values = draw(st.lists(st.text(max_size=5), min_size=1, max_size=5, unique=True))
    default = draw(st.none() | st.sampled_from(values))
    return Category(name=name, categories=tuple(values), open=draw(st.booleans()), default=default)


@st.composite
def integers(draw: st.DrawFn, name: str) -> Number:
    minimum, maximum = sorted((draw(st.integers(-(2**53), 2**53)), draw(st.integers(-(2**53), 2**53))))
    default = draw(st.none() | st.integers(minimum, maximum))
    return Number(name=name, type="integer", minimum=minimum, maximum=maximum, default=default)


@st.composite
def lists(draw: st.DrawFn, name: str) -> CategoryList:
    found = draw(categories(name))
    default = None if found.default is None else (found.default,) * 2
    return CategoryList(name=name, categories=found.categories, open=draw(st.booleans()), default=default)


def booleans(name: str) -> st.SearchStrategy[Boolean]:
    return st.builds(Boolean, name=st.just(name), default=st.none() | st.booleans())


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    chosen = [
        draw(numbers(name) | categories(name) | integers(name) | lists(name) | booleans(name))
        for name in draw(st.lists(names, min_size=1, max_size=6, unique=True))
    ]
    signature = Signature(fields=tuple(chosen))
    features = list(signature.feature_names("="))
    # A bundle with colliding features ("a" = "b=c" and "a=b" = "c") is invalid.
    if len(set(features)) != len(features):
        return draw(signatures())
    return signature


def values(field: RawField) -> st.SearchStrategy[Any]:
    if isinstance(field, Boolean):
        return st.booleans() | st.sampled_from([0, 1, 0.0, 1.0])
    if isinstance(field, Category | CategoryList):
        known: st.SearchStrategy[str] = st.sampled_from(field.categories)
        one = known | st.text(max_size=5) if field.open else known
        return one if isinstance(field, Category) else st.lists(one, max_size=3)
    least, most = field.range
    whole = st.integers(math.ceil(least), max(math.ceil(least), math.floor(most)))
    if field.is_whole:
        return whole | whole.map(float)
    return st.floats(least, most) | whole.filter(lambda number: least <= number <= most)


def complete(signature: Signature) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({field.name: values(field) for field in signature.fields})


def valid(signature: Signature) -> st.SearchStrategy[dict]:
    """Draw valid candidates, some without the fields that have a default."""
    required = {field.name: values(field) for field in signature.fields if field.default is None}
    optional = {
        field.name: values(field) | st.none() for field in signature.fields if field.default is not None
    }
    return st.fixed_dictionaries(required, optional=optional)


#: Values of a field, valid or not.
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**300, 10**400),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@st.composite
def mutilated(draw: st.DrawFn, signature: Signature) -> Any:
    """Draw a candidate that is usually invalid."""
    row = draw(complete(signature))
    for name in draw(st.lists(st.sampled_from(signature.names), max_size=2)):
        row[name] = draw(anything)
    for name in draw(st.lists(st.sampled_from(signature.names), max_size=1)):
        del row[name]
    return draw(st.just(row) | anything) if draw(st.integers(0, 9)) == 0 else row


def fitted(signature: Signature) -> DictVectorizer:
    """Return a DictVectorizer that is fitted with every category."""
    every = [
        {field.name: category}
        for field in signature.fields
        for category in getattr(field, "categories", [0.0])
    ]
    return DictVectorizer(sparse=False).fit(every)


def encoder_of(signature: Signature, **options: Any) -> Encoder:
    names = tuple(fitted(signature).feature_names_)
    return Encoder(Vectorizer(feature_names=names, separator="="), signature, **options)


def rows_of(rows: list[Any], signature: Signature) -> Candidates:
    return Rows(rows, "instances")


def columns_of(rows: list[dict], signature: Signature) -> Candidates:
    return Columns(len(rows), {name: [row.get(name) for row in rows] for name in signature.names})


def coded_of(rows: list[dict], signature: Signature) -> Candidates:
    """Return columns of codes, with a value that no row has, where all values are texts or booleans."""
    columns: dict[str, Any] = {}
    for name in signature.names:
        column = columns[name] = [row.get(name) for row in rows]
        if set(map(type, column)) <= {str, bool, type(None)}:
            distinct = ["nobody's", *dict.fromkeys(column)]
            columns[name] = CodedColumn(distinct, np.array([*map(distinct.index, column)], np.int32))
    return Columns(len(rows), columns)


FORMS = [rows_of, columns_of, coded_of]


def expected(rows: list[dict], signature: Signature) -> np.ndarray:
    """Return DictVectorizer's encoding of the rows with defaults filled in."""
    defaults = {field.name: field.default for field in signature.fields}
    given_ = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return fitted(signature).transform([{**defaults, **row} for row in given_])


def assert_same(encoded: np.ndarray, wanted: np.ndarray) -> None:
    assert encoded.dtype == wanted.dtype == np.float64
    assert encoded.shape == wanted.shape
    assert encoded.flags.c_contiguous
    # Bytes distinguish -0.0 from 0.0.
    assert encoded.tobytes() == wanted.tobytes()


def carefully(encoder: Encoder, candidates: Candidates) -> np.ndarray | str:
    """Return the matrix or the error of the path that validates each value."""
    return outcome(encoder._validate_and_encode, candidates)


def outcome(encode: Any, candidates: Candidates) -> np.ndarray | str:
    try:
        return encode(candidates)
    except InvalidRequest as error:
        return str(error)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=15)
@given(data=st.data())
def test_every_valid_candidate_is_encoded_bit_for_bit_as_dictvectorizer_does(size, form, data):
    signature = data.draw(signatures())
    drawn = data.draw(st.lists(valid(signature), min_size=1, max_size=5))
    rows = list(islice(cycle(drawn), size))
    encoded = encoder_of(signature).encode(form(rows, signature))
    assert_same(encoded, expected(rows, signature))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_valid_placement_candidates_are_encoded_without_the_slow_path(size, form, monkeypatch):
    rows = generate(size, seed=5).candidates
    encoder = encoder_of(PLACEMENT_SIGNATURE)
    monkeypatch.setattr(encoder, "_validate_and_encode", None)
    assert_same(encoder.encode(form(rows, PLACEMENT_SIGNATURE)), fitted(PLACEMENT_SIGNATURE).transform(rows))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [-0.0, 0, 0.0, 1, 1.0, 5e-324, 2**53 + 1, 10**15, 1e300, -(10**300)])
def test_special_numbers_are_encoded_as_by_dictvectorizer(value, size):
    signature = Signature(fields=(Number(name="a", minimum=-1e300, maximum=1e300),))
    rows = [{"a": 2.5}] * (size - 1) + [{"a": value}]
    encoded = encoder_of(signature).encode(rows_of(rows, signature))
    assert_same(encoded, fitted(signature).transform(rows))


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=15)
@given(data=st.data())
def test_fast_and_slow_paths_give_the_same_result_or_error(size, data):
    signature = data.draw(signatures())
    encoder = encoder_of(signature, unknown_category=data.draw(st.sampled_from(["refuse", "ignore"])))
    good = data.draw(st.lists(complete(signature), min_size=1, max_size=2))
    rows = list(islice(cycle(good), size))
    for position in data.draw(st.lists(st.integers(0, size - 1), max_size=3)):
        rows[position] = data.draw(mutilated(signature))
    candidates = rows_of(rows, signature)
    slowly = carefully(encoder, candidates)
    quickly = outcome(encoder.encode, candidates)
    if isinstance(slowly, str):
        assert quickly == slowly
    else:
        assert not isinstance(quickly, str), quickly
        assert_same(quickly, slowly)


WRONG = {
    "a boolean": True,
    "false": False,
    "nothing": None,
    "not a number": math.nan,
    "infinity": -math.inf,
    "a number as text": "71",
    "text": "F",
    "bytes": b"71",
    "a list": [71],
    "an object": {"71": 71},
    "too large": 100.5,
    "below": -0.001,
    "more than a float holds": 10**400,
    "a negative of that kind": -(10**400),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, MAX_ONE_BY_ONE + 1, BLOCK_SIZE + 1])
@pytest.mark.parametrize("field", ["ssc_p", "gender"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_value_gets_the_same_error_at_every_position(wrong, field, size, form):
    if (field, wrong) == ("gender", "F"):
        wrong = "f"
    rows = [*generate(size, seed=6).candidates]
    rows[-1] = {**rows[-1], field: wrong}
    encoder, candidates = encoder_of(PLACEMENT_SIGNATURE), form(rows, PLACEMENT_SIGNATURE)
    with pytest.raises(InvalidCandidates) as raised:
        encoder.encode(candidates)
    with pytest.raises(InvalidCandidates) as reference:
        validate(candidates, PLACEMENT_SIGNATURE)
    assert raised.value.problems == reference.value.problems
    (problem,) = raised.value.problems
    assert problem.startswith(candidates.locate(size - 1, field) + ": ")


@pytest.mark.parametrize("size", [1, MAX_ONE_BY_ONE + 1, BLOCK_SIZE + 1])
@pytest.mark.parametrize("row", [7, None, "ssc_p", ["ssc_p"], {}], ids=str)
def test_a_row_that_is_not_a_candidate_is_refused(row, size):
    rows = [*generate(size, seed=6).candidates]
    for position in {0, size - 1}:
        rows[position] = row
    with pytest.raises(InvalidRequest, match=r"instances\[0\]"):
        encoder_of(PLACEMENT_SIGNATURE).encode(rows_of(rows, PLACEMENT_SIGNATURE))


@pytest.mark.parametrize("size", SIZES)
def test_the_order_of_a_candidates_keys_does_not_matter(size):
    rows = generate(size, seed=7).candidates
    mixed: list[Any] = [dict(reversed(row.items())) if number % 2 else row for number, row in enumerate(rows)]
    # Equal keys need not be the same objects, although one parser interns them.
    mixed[-1] = {"".join(list(name)): value for name, value in {**mixed[-1], "other": [1]}.items()}
    encoder = encoder_of(PLACEMENT_SIGNATURE)
    assert_same(
        encoder.encode(rows_of(mixed, PLACEMENT_SIGNATURE)), fitted(PLACEMENT_SIGNATURE).transform(rows)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_an_ignored_category_sets_no_column_as_in_dictvectorizer(size, form):
    signature = Signature(
        fields=(Category(name="a", categories=("x", "y")), Number(name="b", minimum=0, maximum=9))
    )
    rows = list(islice(cycle([{"a": "z", "b": 3}, {"a": "x", "b": 4}]), size))
    encoder = encoder_of(signature, unknown_category="ignore")
    assert_same(encoder.encode(form(rows, signature)), fitted(signature).transform(rows))


@pytest.mark.parametrize("size", [1, MAX_ONE_BY_ONE + 1])
def test_a_category_of_the_newest_version_is_never_ignored(size):
    old, new = (Signature(fields=(Category(name="a", categories=listed),)) for listed in (("x",), ("x", "y")))
    encoder = encoder_of(old, unknown_category="ignore", newest=new)
    assert not encoder.encode(rows_of([{"a": "z"}] * size, old)).any()
    with pytest.raises(InvalidCandidates, match="must be one of x, got 'y'"):
        encoder.encode(rows_of([{"a": "x"}] * (size - 1) + [{"a": "y"}], old))


@pytest.mark.parametrize("size", [1, MAX_ONE_BY_ONE + 1])
def test_a_default_that_only_the_newest_version_lists_is_refused_like_a_value(size):
    old, new = (
        Signature(fields=(Category(name="a", categories=listed, open=True, default="y"),))
        for listed in (("x",), ("x", "y"))
    )
    encoder = encoder_of(old, newest=new)
    with pytest.raises(InvalidCandidates):
        encoder.encode(rows_of([{"a": "x"}] * (size - 1) + [{}], old))


@pytest.mark.parametrize("size", SIZES)
def test_fields_with_a_default_may_be_missing_on_the_fast_path(size, monkeypatch):
    signature = Signature(
        fields=(
            Number(name="a", minimum=0, maximum=9, default=7),
            Category(name="b", categories=("x", "y"), default="y"),
            Number(name="c", minimum=0, maximum=9),
        )
    )
    rows = [{"a": 1.0, "b": "x", "c": 2.0}] * (size - 1) + [{"c": 3.0}]
    encoder = encoder_of(signature)
    monkeypatch.setattr(encoder, "_validate_and_encode", None)
    for candidates in (rows_of(rows, signature), Columns(size, {"c": [row["c"] for row in rows]})):
        filled = encoder.encode(candidates)[-1].tolist()
        assert filled == [7.0, 0.0, 1.0, 3.0]


@pytest.mark.parametrize("size", SIZES)
def test_a_misspelled_name_is_refused_on_the_fast_path(size):
    signature = Signature(
        fields=(Number(name="a", minimum=0, maximum=9, default=7), Number(name="c", minimum=0, maximum=9))
    )
    rows: list[dict] = [{"a": 1.0, "c": 2.0}] * (size - 1) + [{"A": 1.0, "c": 3.0}]
    encoder = encoder_of(signature)
    for candidates in (rows_of(rows, signature), Columns(size, {"c": [row["c"] for row in rows]}, ["A"])):
        with pytest.raises(InvalidCandidates, match=r"a.*: must be spelled 'a', got 'A'"):
            encoder.encode(candidates)


def test_the_encoder_follows_the_order_of_the_feature_names():
    signature = Signature(fields=(Category(name="a", categories=("x", "y")),))
    encoder = Encoder(Vectorizer(feature_names=("a=y", "a=x"), separator="="), signature)
    assert encoder.encode(rows_of([{"a": "x"}], signature)).tolist() == [[0.0, 1.0]]


MANY_VALUES = Signature(
    fields=(
        *(Category(name=f"c{number}", categories=tuple(map(str, range(40)))) for number in range(4)),
        Category(name="wide", categories=tuple(map(str, range(3_000)))),
        Category(name="narrow", categories=("y", "n")),
        Number(name="number", minimum=0, maximum=1),
    )
)


@pytest.mark.parametrize("size", SIZES)
def test_fields_with_many_categories_are_encoded(size):
    listed = [field for field in MANY_VALUES.fields if isinstance(field, Category)]
    dice = random.Random(0)
    rows: list[dict[str, Any]] = [
        {field.name: dice.choice(field.categories) for field in listed} | {"number": dice.random()}
        for _ in range(size)
    ]
    encoded = encoder_of(MANY_VALUES).encode(rows_of(rows, MANY_VALUES))
    assert_same(encoded, fitted(MANY_VALUES).transform(rows))


@pytest.mark.parametrize("signature", [PLACEMENT_SIGNATURE, MANY_VALUES], ids=["placement", "many values"])
def test_the_table_of_combined_categories_does_not_grow_with_requests(signature):
    encoder = encoder_of(signature, unknown_category="ignore")
    together = encoder._combined
    assert together.fields.names
    kept = len(together._rows)
    assert sum(map(len, together._rows.values())) <= encoding.MAX_TABLE_SIZE * 8
    for number in range(100):
        row: dict[str, Any] = {
            field.name: f"caller's {number}" for field in signature.fields if isinstance(field, Category)
        }
        row |= {field.name: 0.5 for field in signature.fields if isinstance(field, Number)}
        encoder.encode(rows_of([row] * (MAX_ONE_BY_ONE + 1), signature))
        encoder.encode(rows_of([row], signature))
    assert len(together._rows) == kept


def test_functions_for_numbers_of_candidates_are_kept_up_to_a_limit():
    encoder = encoder_of(PLACEMENT_SIGNATURE)
    rows = generate(100, seed=8).candidates
    for size in range(1, len(rows)):
        encoder.encode(rows_of(rows[:size], PLACEMENT_SIGNATURE))
    assert encoder._numeric.packer.cache_info().currsize == MAX_PACKERS


SMALLEST = math.nextafter(0, 1)
AROUND_0_AND_1 = [-2.0, -SMALLEST, -0.0, 0, SMALLEST, 0.5, math.nextafter(1, 0), 1, math.nextafter(1, 2), 2.0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, MAX_ONE_BY_ONE + 1])
@pytest.mark.parametrize(("minimum", "maximum"), [*combinations_with_replacement(AROUND_0_AND_1, 2)])
def test_booleans_are_told_from_numbers_in_every_range(minimum, maximum, size, form, monkeypatch):
    signature = Signature(fields=(Number(name="a", minimum=minimum, maximum=maximum),))
    encoder = encoder_of(signature)
    for value in [*AROUND_0_AND_1, math.nan, math.inf, True, False]:
        candidates = form([{"a": minimum}] * (size - 1) + [{"a": value}], signature)
        with monkeypatch.context() as patch:
            if not isinstance(value, bool) and minimum <= value <= maximum:
                patch.setattr(encoder, "_validate_and_encode", None)
                assert encoder.encode(candidates)[-1].tolist() == [value]
            else:
                with pytest.raises(InvalidCandidates) as raised:
                    encoder.encode(candidates)
                assert ("must be a number" in str(raised.value)) == isinstance(value, bool)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u1", "u8"])
@pytest.mark.parametrize("size", [1, MAX_ONE_BY_ONE + 1, BLOCK_SIZE + 1])
def test_numeric_arrays_of_any_type_are_encoded(size, dtype):
    signature = Signature(
        fields=(Number(name="a", minimum=0, maximum=100), Category(name="b", categories=("x",)))
    )
    column = (np.arange(size) % 100).astype(dtype)
    encoded = encoder_of(signature).encode(Columns(size, {"a": column, "b": ["x"] * size}))
    assert encoded.tolist() == [[float(value), 1.0] for value in column]


@pytest.mark.parametrize("size", [1, MAX_ONE_BY_ONE + 1])
def test_boolean_arrays_are_refused(size):
    signature = Signature(fields=(Number(name="a", minimum=0, maximum=1),))
    with pytest.raises(InvalidCandidates, match=r"inputs\.a\[0\]: must be a number"):
        encoder_of(signature).encode(Columns(size, {"a": np.ones(size, bool)}))


def test_exceptions_of_the_fast_path_never_reach_the_caller():
    assert not any(issubclass(doubt, InvalidRequest) for doubt in NEEDS_FULL_VALIDATION)


@pytest.mark.parametrize("size", [1, MAX_ONE_BY_ONE + 1, BLOCK_SIZE + 1])
@settings(max_examples=20)
@given(data=st.data())
def test_an_encoder_of_any_fields_can_be_pickled_for_worker_processes(size, data):
    signature = data.draw(signatures())
    candidates = rows_of([data.draw(valid(signature))] * size, signature)
    encoder = encoder_of(signature)
    again = pickle.loads(pickle.dumps(encoder))
    assert_same(again.encode(candidates), encoder.encode(candidates))
