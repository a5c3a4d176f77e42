"""The encoder gives DictVectorizer's numbers, bit for bit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction import DictVectorizer

from training.candidates import SIGNATURE as PLACEMENT_SIGNATURE
from transformer.bundle import Vectorizer
from transformer.encoder import Encoder
from transformer.signature import Category, Number, Signature
from transformer.v1 import from_dicts

names = st.text(min_size=1, max_size=6)
finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


def fields(name: str) -> st.SearchStrategy[Number | Category]:
    bounds = st.tuples(finite, finite).map(sorted)
    numbers = bounds.map(lambda pair: Number(name=name, minimum=pair[0], maximum=pair[1]))
    categories = st.lists(st.text(max_size=5), min_size=1, max_size=5, unique=True).map(
        lambda values: Category(name=name, categories=tuple(values))
    )
    return numbers | categories


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    chosen = [draw(fields(name)) for name in draw(st.lists(names, min_size=1, max_size=6, unique=True))]
    signature = Signature(fields=tuple(chosen))
    features = list(signature.feature_names("="))
    # Fields whose features collide ("a" = "b=c" and "a=b" = "c") make no valid bundle.
    if len(set(features)) != len(features):
        return draw(signatures())
    return signature


def values(field: Number | Category) -> st.SearchStrategy[float | int | str]:
    if isinstance(field, Category):
        return st.sampled_from(field.categories)
    floats = st.floats(field.minimum, field.maximum)
    whole = st.integers(
        int(np.ceil(field.minimum)), max(int(np.ceil(field.minimum)), int(np.floor(field.maximum)))
    )
    return floats | whole.filter(lambda number: field.minimum <= number <= field.maximum)


def candidates(signature: Signature) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({field.name: values(field) for field in signature.fields})


def fitted(signature: Signature) -> DictVectorizer:
    """A DictVectorizer that has seen every category."""
    every = [
        {field.name: category}
        for field in signature.fields
        for category in (field.categories if isinstance(field, Category) else [0.0])
    ]
    return DictVectorizer(sparse=False).fit(every)


def encode(signature: Signature, vectorizer: DictVectorizer, rows: list[dict]) -> np.ndarray:
    encoder = Encoder(Vectorizer(feature_names=tuple(vectorizer.feature_names_)), signature)
    return encoder.encode(from_dicts(rows, signature.names, "instances"))


@settings(deadline=None)
@given(st.data())
def test_every_valid_candidate_is_encoded_bit_for_bit_as_dictvectorizer_does(data):
    signature = data.draw(signatures())
    rows = data.draw(st.lists(candidates(signature), min_size=1, max_size=5))
    vectorizer = fitted(signature)
    encoded = encode(signature, vectorizer, rows)
    expected = vectorizer.transform(rows)
    assert encoded.dtype == expected.dtype == np.float64
    assert encoded.shape == expected.shape
    assert encoded.flags.c_contiguous
    # Bytes, so that -0.0 is told from 0.0.
    assert encoded.tobytes() == expected.tobytes()


@settings(deadline=None)
@given(st.lists(candidates(PLACEMENT_SIGNATURE), min_size=1, max_size=20))
def test_placement_candidates_are_encoded_bit_for_bit(rows):
    vectorizer = fitted(PLACEMENT_SIGNATURE)
    assert encode(PLACEMENT_SIGNATURE, vectorizer, rows).tobytes() == vectorizer.transform(rows).tobytes()


def test_an_ignored_category_fills_no_column_as_in_dictvectorizer():
    signature = Signature(
        fields=(Category(name="a", categories=("x", "y")), Number(name="b", minimum=0, maximum=9))
    )
    vectorizer = fitted(signature)
    rows = [{"a": "z", "b": 3}, {"a": "x", "b": 4}]
    encoder = Encoder(Vectorizer(feature_names=tuple(vectorizer.feature_names_)), signature, "ignore")
    candidates = from_dicts(rows, signature.names, "instances")
    assert encoder.encode(candidates).tobytes() == vectorizer.transform(rows).tobytes()


def test_another_order_of_feature_names_is_followed():
    signature = Signature(fields=(Category(name="a", categories=("x", "y")),))
    encoder = Encoder(Vectorizer(feature_names=("a=y", "a=x")), signature)
    candidates = from_dicts([{"a": "x"}], ("a",), "instances")
    assert encoder.encode(candidates).tolist() == [[0.0, 1.0]]
