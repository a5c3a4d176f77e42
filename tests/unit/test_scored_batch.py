"""A batch gets scikit-learn's answers bit for bit, and invalid candidates the service's error text."""

from decimal import Decimal
from hashlib import sha256

import numpy as np
import orjson
import pyarrow as pa
import pytest
from sklearn.dummy import DummyClassifier

from scoring import predictor
from scoring.batch import CANDIDATES, BatchScorer, answer
from scoring.errors import ScoringError
from scoring.predictor import MAX_BATCH_ROWS, BundlePredictor
from storage.errors import StorageError
from training.generator import generate
from transformer.bundle.candidates import Rows
from transformer.bundle.encoder import Encoder
from transformer.bundle.format import BUNDLE_FILE, MODEL_FILE, load_bundle
from transformer.bundle.signature import CategoryList
from transformer.errors import InvalidRequest

CANDIDATES_HERE = generate(300, 3).candidates


@pytest.fixture(scope="module")
def scorer(trained_bundle):
    return BatchScorer(str(trained_bundle))


def as_columns(candidates):
    return pa.RecordBatch.from_pylist(candidates)


def as_json(candidates):
    return pa.RecordBatch.from_pydict({CANDIDATES: [orjson.dumps(one) for one in candidates]})


def service_error(bundle, candidate):
    """Return the service's error for a V1 request with one candidate."""
    try:
        Encoder(bundle.vectorizer, bundle.signature).encode(Rows([candidate], "instances"))
    except InvalidRequest as error:
        return str(error)
    return None


@pytest.mark.parametrize("form", [as_columns, as_json])
def test_answers_are_those_of_scikit_learn(scorer, sklearn_reference, form):
    scored = scorer(form(CANDIDATES_HERE))
    expected = sklearn_reference.probabilities(CANDIDATES_HERE)
    assert scored["probability"].to_pylist() == expected
    threshold = sklearn_reference.bundle.threshold
    assert scored["prediction"].to_pylist() == [one >= threshold for one in expected]
    assert set(scored["version"].to_pylist()) == {"v1"}
    assert scored["error"].null_count == len(expected)


def test_a_column_named_candidates_hides_no_field(scorer, sklearn_reference):
    table = as_columns([{"candidates": "none", **one} for one in CANDIDATES_HERE])
    assert scorer(table)["probability"].to_pylist() == sklearn_reference.probabilities(CANDIDATES_HERE)


def test_a_table_stays_a_table_and_keeps_its_columns(scorer):
    table = pa.Table.from_pylist([{"id": row, **one} for row, one in enumerate(CANDIDATES_HERE)])
    scored = scorer(table)
    assert isinstance(scored, pa.Table)
    assert scored.drop_columns(["prediction", "probability", "version", "error"]).equals(table)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ssc_p": None},
        {"ssc_p": 710.0},
        {"gender": "X"},
        {"gender": None},
        {"ssc_p": -1.0, "gender": "long" * 100},
    ],
)
def test_an_invalid_candidate_changes_no_other_and_gets_the_services_error(scorer, sklearn_reference, wrong):
    candidates = [dict(one) for one in CANDIDATES_HERE]
    candidates[137] |= wrong
    scored = scorer(as_columns(candidates))
    errors = scored["error"].to_pylist()
    assert errors[137] == service_error(sklearn_reference.bundle, candidates[137])
    assert errors[137] is not None
    assert scored["probability"][137].as_py() is None
    assert [row for row, error in enumerate(errors) if error is not None] == [137]
    others = [one for row, one in enumerate(candidates) if row != 137]
    probabilities = [one for row, one in enumerate(scored["probability"].to_pylist()) if row != 137]
    assert probabilities == sklearn_reference.probabilities(others)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_has_not_is_no_missing_value(scorer, value):
    candidates = [dict(one) for one in CANDIDATES_HERE[:3]]
    candidates[1]["ssc_p"] = value
    errors = scorer(as_columns(candidates))["error"].to_pylist()
    expected = f"instances[0].ssc_p: must be a number, 0 to 100, got a string '{value}'"
    assert errors == [None, expected, None]


def test_a_batch_of_invalid_candidates_gets_an_error_for_each(scorer, sklearn_reference):
    candidates = [{**one, "ssc_p": 101.0 + row} for row, one in enumerate(CANDIDATES_HERE)]
    expected = [service_error(sklearn_reference.bundle, one) for one in candidates]
    assert scorer(as_columns(candidates))["error"].to_pylist() == expected


@pytest.mark.parametrize("form", [as_columns, as_json])
def test_invalid_candidates_do_not_split_the_call_of_the_model(
    trained_bundle, form, sklearn_reference, monkeypatch
):
    """A call with few candidates costs a model much more per candidate."""
    candidates = [
        {**one, **({"ssc_p": 710.0} if row % 7 == 0 else {})} for row, one in enumerate(CANDIDATES_HERE)
    ]
    opened = BundlePredictor(str(trained_bundle))
    calls, scores = [], opened._scores

    def counted(features):
        calls.append(len(features))
        return scores(features)

    monkeypatch.setattr(opened, "_scores", counted)
    answers = answer(form(candidates), opened)
    valid = [one for row, one in enumerate(candidates) if row % 7]
    assert calls == [len(valid)]
    found = [one for one in answers["probability"].to_pylist() if one is not None]
    assert found == sklearn_reference.probabilities(valid)
    assert [row for row, error in enumerate(answers["error"].to_pylist()) if error is not None] == [
        *range(0, len(candidates), 7)
    ]


def changed_bundle(trained_bundle, directory, **changes):
    """Write a version with other content and the same model."""
    bundle = load_bundle(trained_bundle).model_copy(update=changes)
    (directory / BUNDLE_FILE).write_text(bundle.to_json())
    (directory / MODEL_FILE).write_bytes((trained_bundle / MODEL_FILE).read_bytes())
    return bundle


def test_an_optional_field_gets_its_default_but_not_under_another_spelling(trained_bundle, tmp_path):
    signature = load_bundle(trained_bundle).signature
    fields = tuple(
        one.model_copy(update={"default": "No"}) if one.name == "workex" else one for one in signature.fields
    )
    changed = signature.model_copy(update={"fields": fields})
    bundle = changed_bundle(trained_bundle, tmp_path, signature=changed)
    scorer = BatchScorer(str(tmp_path))
    candidate = {**CANDIDATES_HERE[0], "workex": "No"}
    without = {name: value for name, value in candidate.items() if name != "workex"}
    defaulted = scorer(as_columns([without, without]))["probability"]
    assert defaulted.equals(scorer(as_columns([candidate, candidate]))["probability"])
    misspelled = {**without, "Work Ex": "Yes"}
    errors = scorer(as_columns([misspelled, misspelled]))["error"].to_pylist()
    assert errors == [service_error(bundle, misspelled)] * 2
    assert errors[0] == "instances[0].workex: must be spelled 'workex', got 'Work Ex'"


def test_a_column_of_lists_has_the_values_of_a_field_of_several_categories(trained_bundle, tmp_path):
    trained = load_bundle(trained_bundle)
    several = CategoryList(name="workex", categories=("Yes", "No"))
    fields = tuple(several if one.name == "workex" else one for one in trained.signature.fields)

    def with_lists(candidates):
        return [{**one, "workex": (one["workex"],)} for one in candidates]

    reference = {"candidates": tuple(with_lists(trained.reference.candidates))}
    bundle = changed_bundle(
        trained_bundle,
        tmp_path,
        signature=trained.signature.model_copy(update={"fields": fields}),
        reference=trained.reference.model_copy(update=reference),
        background=None,
    )
    candidates = with_lists(CANDIDATES_HERE)
    candidates[5]["workex"] = ("Maybe",)
    scored = BatchScorer(str(tmp_path))(as_columns(candidates))
    expected = BatchScorer(str(trained_bundle))(as_columns(CANDIDATES_HERE))["probability"].to_pylist()
    expected[5] = None
    assert scored["probability"].to_pylist() == expected
    assert scored["error"][5].as_py() == service_error(bundle, candidates[5])


def test_json_that_is_no_candidate_gets_an_error(scorer):
    texts = [b"[1]", b"{", None, orjson.dumps(CANDIDATES_HERE[0])]
    errors = scorer(pa.RecordBatch.from_pydict({CANDIDATES: texts}))["error"].to_pylist()
    assert errors[0] == "instances[0]: must be an object of fields and values"
    assert errors[1].startswith("instances[0]: is not JSON")
    assert errors[2] == "instances[0]: must be an object of fields and values"
    assert errors[3] is None


def test_arrow_types_of_warehouses_are_read_as_their_values(scorer):
    plain = as_columns(CANDIDATES_HERE)
    columns = {name: plain[name] for name in plain.schema.names}
    columns["ssc_p"] = pa.array([Decimal(str(one["ssc_p"])) for one in CANDIDATES_HERE], pa.decimal128(9, 4))
    columns["gender"] = plain["gender"].dictionary_encode()
    columns["hsc_s"] = plain["hsc_s"].cast(pa.large_string())
    columns["ssc_b"] = plain["ssc_b"].cast(pa.string_view())
    scored = scorer(pa.RecordBatch.from_pydict(columns))
    assert scored["probability"].equals(scorer(plain)["probability"])


def test_a_slice_of_many_rows_is_scored_without_the_dictionary_of_the_others(scorer):
    """Parquet gives each batch the dictionary of its row group."""
    batch = as_columns(CANDIDATES_HERE)
    place = batch.schema.get_field_index("gender")
    coded = batch["gender"].dictionary_encode()
    wide = pa.array([*coded.dictionary.to_pylist(), *map(str, range(1000)), None])
    dictionary = pa.DictionaryArray.from_arrays(coded.indices, wide)
    scored = scorer(batch.set_column(place, "gender", dictionary))
    assert scored["probability"].equals(scorer(batch)["probability"])


def test_a_column_of_dates_is_refused_by_its_name(scorer):
    batch = as_columns(CANDIDATES_HERE).drop_columns(["ssc_p"])
    batch = batch.append_column("ssc_p", pa.array(np.full(batch.num_rows, "2026-11-30", "datetime64[D]")))
    with pytest.raises(
        ScoringError, match=r"column 'ssc_p': must hold numbers, strings or lists, got .* date32"
    ):
        scorer(batch)


def test_candidates_that_are_no_json_texts_are_refused_by_their_type(scorer):
    with pytest.raises(ScoringError, match=r"column 'candidates': must hold JSON texts, got .* struct<"):
        scorer(pa.RecordBatch.from_pydict({CANDIDATES: CANDIDATES_HERE}))


def test_an_input_with_a_column_of_the_output_is_refused(scorer):
    with pytest.raises(ScoringError, match="has the column 'version' already"):
        scorer(as_columns([{**CANDIDATES_HERE[0], "version": "v0"}]))


def test_an_empty_batch_gets_the_columns(scorer):
    assert scorer(as_columns(CANDIDATES_HERE).slice(0, 0)).schema.names[-4:] == [
        "prediction",
        "probability",
        "version",
        "error",
    ]


def test_a_worker_refuses_another_model_than_the_job_started_with(trained_bundle):
    with pytest.raises(
        StorageError, match=f"{trained_bundle}: SHA-256 of the model is .* expected {'0' * 64}"
    ):
        BundlePredictor(str(trained_bundle), "0" * 64)


def test_a_worker_refuses_a_model_that_scores_its_reference_rows_differently(trained_bundle, tmp_path):
    bundle = load_bundle(trained_bundle)
    wrong = tuple(1 - one for one in bundle.reference.probabilities if isinstance(one, float))
    reference = bundle.reference.model_copy(update={"probabilities": wrong})
    changed_bundle(trained_bundle, tmp_path, reference=reference)
    with pytest.raises(ScoringError, match="scores its reference rows differently from its bundle"):
        BundlePredictor(str(tmp_path))


def test_a_worker_names_a_model_that_cannot_be_loaded(trained_bundle, tmp_path):
    content = b"cno_such_library\nModel\n."
    model = load_bundle(trained_bundle).model.model_copy(update={"sha256": sha256(content).hexdigest()})
    changed_bundle(trained_bundle, tmp_path, model=model)
    (tmp_path / MODEL_FILE).write_bytes(content)
    expected = rf"{tmp_path}: cannot load the model: No module named 'no_such_library'; use .*: python"
    with pytest.raises(StorageError, match=expected):
        BundlePredictor(str(tmp_path))


def test_an_output_that_the_service_would_refuse_stops_the_job(trained_bundle):
    opened = BundlePredictor(str(trained_bundle))
    opened._model = DummyClassifier().fit(np.zeros((3, 1)), [0, 1, 2])
    expected = f"{trained_bundle}: invalid output of the model: wrong shape; expected the probabilities of 2"
    with pytest.raises(ScoringError, match=expected):
        answer(as_columns(CANDIDATES_HERE), opened)


@pytest.mark.parametrize(("rows_of_features", "rows"), [(10, 10), (0, 1), (10**9, MAX_BATCH_ROWS)])
def test_a_call_of_a_model_has_limits_of_rows_and_of_bytes(
    trained_bundle, monkeypatch, rows_of_features, rows
):
    row = 8 * len(load_bundle(trained_bundle).vectorizer.feature_names)
    monkeypatch.setattr(predictor, "MAX_BATCH_BYTES", row * rows_of_features)
    assert BundlePredictor(str(trained_bundle)).batch_rows == rows
