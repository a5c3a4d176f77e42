"""A bundle that cannot be served is refused with one line that names the wrong field."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundle_copies import file_sha256
from transformer.bundle.format import (
    BUNDLE_FILE,
    Bundle,
    BundleError,
    Version,
    load_bundle,
    parse_bundle,
)


@pytest.fixture
def content(trained_bundle: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((trained_bundle / BUNDLE_FILE).read_text())
    return loaded


def test_a_bundle_is_the_same_after_it_was_written_and_read(trained_bundle):
    bundle = load_bundle(trained_bundle)
    assert parse_bundle(bundle.to_json()) == bundle


def test_the_bundle_names_the_model_file_beside_it(trained_bundle):
    bundle = load_bundle(trained_bundle)
    assert bundle.model.sha256 == file_sha256(trained_bundle / bundle.model.file)


def test_later_bundles_keep_what_it_takes_to_verify_and_encode_for_a_version(trained_bundle):
    bundle = load_bundle(trained_bundle)
    kept = bundle.as_previous()
    assert type(kept) is Version
    assert Version.model_validate_json(kept.model_dump_json()) == kept
    assert kept.reference.probabilities == bundle.reference.probabilities
    assert kept.background == bundle.background


@pytest.mark.parametrize("number", [1, 2])
def test_a_bundle_of_an_earlier_format_is_read(number, content, tmp_path):
    bundle = parse_bundle(json.dumps(content))
    if number == 1:
        del content["model"]["serving_form"]
    del content["distribution"], content["background"]
    content["training_data"]["histograms"] = {"ssc_p": {"edges": [0, 100], "counts": [200]}}
    (tmp_path / BUNDLE_FILE).write_text(json.dumps({**content, "format": number}))
    earlier = load_bundle(tmp_path)
    assert (earlier.format, earlier.distribution, earlier.background) == (number, None, None)
    without = {"distribution": None, "background": None}
    assert earlier.as_previous() == bundle.as_previous().model_copy(update=without)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({"format": 5}, "format: must be 1 to 4, got 5; "),
    "no format number": ({"format": "one"}, "format: must be 1 to 4, got 'one'; "),
    "an unknown key": ({"colour": "red"}, "colour: is not known; train"),
    "no signature": ({"signature": None}, "signature: must be an object, got null"),
    "a version that is no name": ({"version": "../v1"}, "version: must match ^"),
    "a digest that is none": ({"model": {"file": "model.joblib", "sha256": "x"}}, "model.sha256: "),
    "another model file": ({"model": {"file": "model.pkl"}}, "model.file: "),
    "a positive class that is none": ({"positive_class": "Hired"}, "positive_class 'Hired' is not one of"),
    "a threshold that is none": ({"threshold": 1.5}, "threshold: must be at most 1, got the number 1.5"),
    "a reference without scores": (
        {"reference": {"candidates": [{"ssc_p": 1}], "probabilities": []}},
        "1 candidates, 0 probabilities",
    ),
    "a background without weights": (
        {"background": {"candidates": [{"ssc_p": 1}], "weights": []}},
        "background: 1 candidates, 0 weights",
    ),
    "a background whose weights are no shares": (
        {"background": {"candidates": [{"ssc_p": 1}, {"ssc_p": 2}], "weights": [0.5, 0.4]}},
        "weights must add up to 1, got 0.9",
    ),
    "an incomplete background candidate": (
        {"background": {"candidates": [{"ssc_p": 1}], "weights": [1.0]}},
        "background candidate is invalid: background[0].gender: is required",
    ),
    "a vectorizer that contradicts the signature": (
        {"vectorizer": {"feature_names": ["ssc_p", "salary"], "separator": "=", "dtype": "float64"}},
        "vectorizer and signature differ in: ",
    ),
    "a feature name twice": (
        {"vectorizer": {"feature_names": ["ssc_p", "ssc_p"]}},
        "duplicate feature name 'ssc_p'",
    ),
}


BROKEN_DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], object, str]] = {
    "a number without bins": (("numbers", "ssc_p"), None, "distribution and signature differ in: ssc_p"),
    "a category without counts": (
        ("categories", "gender"),
        None,
        "distribution and signature differ in: gender",
    ),
    "other categories": (
        ("categories", "gender"),
        {"F": 1, "X": 1},
        "distribution of gender: categories must be those of the signature",
    ),
    "another range": (
        ("numbers", "ssc_p"),
        {"edges": [0, 1], "counts": [200]},
        "distribution of ssc_p: edges must end at 100, got 1;",
    ),
    "a count too few": (
        ("numbers", "ssc_p"),
        {"edges": [0, 50, 100], "counts": [200]},
        "3 edges need 2 counts, got 1",
    ),
    "edges in disorder": (
        ("numbers", "ssc_p"),
        {"edges": [0, 60, 50, 100], "counts": [1, 1, 1]},
        "edges must be in ascending order",
    ),
    "a negative count": (
        ("scores",),
        [-1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "must be at least 0, got the number -1",
    ),
    "too few bins of scores": (("scores",), [200], "scores must have 10 counts, got 1"),
}


@pytest.mark.parametrize("case", BROKEN_DISTRIBUTIONS)
def test_a_distribution_that_does_not_fit_the_signature_is_refused(case, content):
    *path, last = BROKEN_DISTRIBUTIONS[case][0]
    inner = content["distribution"]
    for key in path:
        inner = inner[key]
    if BROKEN_DISTRIBUTIONS[case][1] is None:
        del inner[last]
    else:
        inner[last] = BROKEN_DISTRIBUTIONS[case][1]
    with pytest.raises(BundleError, match=BROKEN_DISTRIBUTIONS[case][2]):
        parse_bundle(json.dumps(content))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_bundle_is_refused_by_its_field(case, content, tmp_path):
    change, problem = BROKEN[case]
    (tmp_path / BUNDLE_FILE).write_text(json.dumps({**content, **change}))
    with pytest.raises(BundleError) as raised:
        load_bundle(tmp_path)
    message = str(raised.value)
    assert problem in message
    assert str(tmp_path) in message
    assert "\n" not in message


def test_a_bundle_cannot_list_an_earlier_version_twice(content):
    own = {name: content[name] for name in Version.model_fields}
    with pytest.raises(BundleError, match="duplicate version 'v1'"):
        parse_bundle(json.dumps({**content, "previous": [own]}))


def test_a_bundle_lists_at_most_three_earlier_versions(content):
    own = {name: content[name] for name in Version.model_fields}
    earlier = [{**own, "version": f"v0.{number}"} for number in range(4)]
    assert len(parse_bundle(json.dumps({**content, "previous": earlier[:3]})).versions) == 4
    with pytest.raises(BundleError, match="previous: "):
        parse_bundle(json.dumps({**content, "previous": earlier}))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b'"bundle"'])
def test_a_file_that_is_not_a_bundle_is_refused(text):
    with pytest.raises(BundleError, match=r"bundle\.json: "):
        parse_bundle(text)


#: JSON of at most 1 MB that would take hundreds of megabytes when it is parsed.
AMPLIFIED = {
    "values": b'{"reference": [%s0]}' % (b"0," * 300_000),
    "empty arrays": b'{"reference": [%s[]]}' % (b"[]," * 150_000),
    "nested arrays": b'{"threshold": [%s0]}' % (b"[" * 100 + b"]" * 100 + b",") * 3_000,
    "unknown keys": b'{%s"a": {}}' % b"".join(b'"%d":{},' % number for number in range(150_000)),
}


@pytest.mark.parametrize("case", AMPLIFIED)
def test_a_bundle_with_too_many_values_is_refused_before_it_is_parsed(case):
    with pytest.raises(
        BundleError, match=r"bundle\.json: has too many values: limit 200000, got about \d+; "
    ):
        parse_bundle(AMPLIFIED[case])
    with pytest.raises(BundleError, match="has too many values"):
        parse_bundle(AMPLIFIED[case].decode())


def test_the_error_for_a_missing_bundle_explains_storage_uri(tmp_path):
    with pytest.raises(BundleError, match="STORAGE_URI must name a version's directory"):
        load_bundle(tmp_path / "v9")


def test_a_bundle_cannot_be_changed(trained_bundle):
    bundle: Bundle = load_bundle(trained_bundle)
    with pytest.raises(ValueError, match="frozen"):
        bundle.version = "v2"
