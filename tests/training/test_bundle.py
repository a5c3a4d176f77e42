"""Training writes a bundle that agrees with its model."""

import hashlib
import os
import re
from pathlib import Path

import joblib
import numpy as np
import pytest
import s3fs
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import FixedThresholdClassifier

from storage.errors import StorageError, VersionExistsError
from training.bundling import HISTOGRAM_BINS, _edges
from training.candidates import PLACEMENT, SIGNATURE, Candidate, Task
from training.data import DataError, Dataset
from training.encoding import encode, fit_vectorizer
from training.generator import generate
from training.publishing import TrainingError
from training.selection import UnknownEstimatorError
from training.train import train
from transformer.bundle.format import Bundle, load_bundle
from transformer.bundle.signature import Category, Number, Signature

DATASET = generate(200)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def first(storage: Path) -> Bundle:
    return train(DATASET, storage=storage, estimator="support-vectors").bundle


def encoded(bundle: Bundle) -> np.ndarray:
    """Encode the reference rows with the bundle alone."""
    rows = np.zeros((len(bundle.reference.candidates), len(bundle.vectorizer.feature_names)))
    for row, candidate in zip(rows, bundle.reference.candidates, strict=True):
        for name, value in candidate.items():
            feature = f"{name}={value}" if isinstance(value, str) else name
            row[bundle.vectorizer.index[feature]] = 1 if isinstance(value, str) else value
    return rows


def test_a_version_is_a_directory_with_two_files_and_its_report_beside_it(storage, first):
    assert sorted(path.name for path in (storage / "placement").glob("*")) == ["v1", "v1.html"]
    assert sorted(path.name for path in (storage / "placement" / "v1").iterdir()) == [
        "bundle.json",
        "model.joblib",
    ]
    assert load_bundle(storage / "placement" / "v1") == first


def test_the_reference_rows_have_the_scores_of_the_stored_model(storage, first):
    import pandas as pd

    path = storage / "placement" / "v1" / "model.joblib"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first.model.sha256
    features = pd.DataFrame(encoded(first), columns=list(first.vectorizer.feature_names))
    answered = joblib.load(path).predict_proba(features)[:, first.target.positive_column]
    assert tuple(answered.tolist()) == first.reference.probabilities


def test_the_reference_rows_cover_every_category_and_many_probabilities(first):
    for field in SIGNATURE.fields:
        values = {candidate[field.name] for candidate in first.reference.candidates}
        if isinstance(field, Category):
            assert values == set(field.categories)
        else:
            assert isinstance(field, Number)
            assert len(values) > 10
            assert all(field.range[0] <= value <= field.range[1] for value in values)
    probabilities = first.reference.probabilities
    assert 32 <= len(probabilities) <= 40
    assert min(probabilities) < 0.1
    assert max(probabilities) > 0.9
    assert any(0.3 < probability < 0.7 for probability in probabilities)


def test_no_candidate_of_the_training_data_is_in_the_bundle(first):
    real = [tuple(candidate.values()) for candidate in DATASET.candidates]
    assert not any(tuple(candidate.values()) in real for candidate in first.reference.candidates)


def test_the_bundle_names_the_libraries_and_the_estimator(first):
    assert (first.name, first.version, first.positive_class, first.threshold) == (
        "placement",
        "v1",
        "Placed",
        0.5,
    )
    assert first.model.estimator.startswith(
        "Pipeline(steps=[('standardscaler', StandardScaler()), ('svc', SVC("
    )
    assert first.model.libraries["scikit-learn"] == "1.5.2"
    assert {"python", "numpy", "joblib"} < set(first.model.libraries)
    assert (first.training_data.rows, first.training_data.source) == (200, "generated, seed 0")
    assert 0 < first.metrics["accuracy"] <= 1


def test_the_distribution_counts_every_candidate(first):
    distribution = first.distribution
    assert distribution is not None
    for field in SIGNATURE.fields:
        if isinstance(field, Number):
            bins = distribution.numbers[field.name]
            assert sum(bins.counts) == 200
            assert (bins.edges[0], bins.edges[-1]) == (field.minimum, field.maximum)
        else:
            assert isinstance(field, Category)
            assert list(distribution.categories[field.name]) == list(field.categories)
            assert sum(distribution.categories[field.name].values()) == 200
    assert distribution.rows == sum(distribution.scores) == 200


@pytest.mark.parametrize(
    ("minimum", "maximum", "edges"),
    [(0, 100, 0.1), (0, 1, 0.001), (2000, 2030, 0.1), (0, 2_000_000, 10_000), (5, 5, None)],
)
def test_the_edges_of_bins_are_rounded_to_a_thousandth_of_the_range(minimum, maximum, edges):
    values = np.random.default_rng(0).uniform(minimum, maximum, 1000)
    field = Number(name="a", minimum=minimum, maximum=maximum)
    found = _edges(values, field)
    assert (found[0], found[-1]) == (minimum, maximum)
    if edges is None:
        assert len(found) == 2
    else:
        assert len(found) == HISTOGRAM_BINS + 1
        assert found == [pytest.approx(edges * round(edge / edges), rel=1e-12) for edge in found]


@pytest.mark.parametrize(
    ("values", "maximum", "edges", "counts"),
    [
        ([0] * 85 + [1] * 15, 1, [0, 0.5, 1], [85, 15]),
        ([0] * 15 + [1] * 85, 1, [0, 0.5, 1], [15, 85]),
        ([0] * 100, 1, [0, 0.5, 1], [100, 0]),
        ([0, 1, 1, 2, 3, 3], 4, [0, 0.5, 1.5, 2.5, 4], [1, 2, 1, 2]),
        (
            [0] * 95 + list(range(1000, 6000, 1000)) * 3,
            100_000,
            [0, 500, 1500, 2500, 3500, 4500, 100_000],
            None,
        ),
        ([0] * 950 + list(range(1001, 1051)), 100_000, [0, 500, 100_000], [950, 50]),
        (list(range(50)) + [99_999] * 950, 100_000, [0, 50_000, 100_000], [50, 950]),
        ([0] * 950 + list(range(1, 51)), 100_000, [0, 100, 100_000], [1000, 0]),
    ],
    ids=["few ones", "many ones", "only zeros", "counts", "few", "most are zero", "most are high", "near"],
)
def test_a_number_that_most_candidates_have_shares_its_bin_with_no_distant_one(
    values, maximum, edges, counts
):
    found = _edges(np.array(values, float), Number(name="a", minimum=0, maximum=maximum))
    assert found == pytest.approx(edges)
    assert counts is None or np.histogram(values, found)[0].tolist() == counts


def test_the_same_data_give_the_same_bundle_except_for_its_time(tmp_path, first, storage):
    again = train(DATASET, storage=tmp_path, estimator="support-vectors").bundle
    assert again.model_copy(update={"created": first.created}) == first
    files = [where / "placement" / "v1" / "model.joblib" for where in (storage, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_bundle_lists_the_last_three_versions(tmp_path):
    known: list[str] = []
    uri = None
    for number in range(1, 6):
        trained = train(DATASET, storage=tmp_path, previous=uri, estimator="logistic-regression")
        assert trained.bundle.version == f"v{number}"
        assert [version.version for version in trained.bundle.previous] == known[:3]
        known.insert(0, trained.bundle.version)
        uri = trained.uri
    assert trained.bundle.previous[0] == load_bundle(tmp_path / "placement" / "v4").as_previous()


def test_training_says_that_a_version_has_the_model_of_the_one_that_it_replaces(tmp_path):
    def trained(rows, previous=None):
        return train(generate(rows), storage=tmp_path, previous=previous, estimator="logistic-regression")

    first = trained(100)
    assert first.notes == trained(120, first.uri).notes == ()
    equal = "the model is that of v1: answers cannot tell the two versions apart"
    assert trained(100, first.uri).notes == (equal,)


def test_a_version_number_is_not_used_twice(tmp_path, storage, first):
    uri = str(storage / "placement" / "v1")
    elsewhere = train(DATASET, storage=tmp_path, previous=uri, estimator="logistic-regression")
    assert elsewhere.bundle.version == "v2"
    with pytest.raises(TrainingError, match="version 'v1' is the name of an earlier version"):
        train(DATASET, storage=tmp_path, previous=uri, version="v1")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"version": "v1"}, VersionExistsError, "v1: this version exists"),
        ({"version": "../v2"}, TrainingError, r"version '../v2' must be"),
        ({"name": "4you"}, TrainingError, "name '4you' must be"),
        ({"estimator": "oracle"}, UnknownEstimatorError, "'oracle' is not known"),
        ({"previous": "nowhere/v1"}, StorageError, "nowhere/v1: no version here"),
        (
            {"previous": "v1", "name": "other"},
            TrainingError,
            "is a version of 'placement', expected a version of 'other'; the next version of 'placement' "
            "needs its own task, data and name",
        ),
    ],
)
def test_invalid_arguments_are_refused_before_training(storage, first, options, error, message):
    if options.get("previous") == "v1":
        options = {**options, "previous": str(storage / "placement" / "v1")}
    lines: list[str] = []
    with pytest.raises(error, match=message):
        train(DATASET, storage=storage, progress=lines.append, **options)
    assert not lines


@pytest.mark.parametrize("version", [None, "v7"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gs://bucket/models", "scheme 'gs' is not supported"),
        ("http://host/models", "scheme 'http' is not supported"),
        ("{}/file", "file is not a directory|Not a directory"),
        ("{}/file/below", "file is not a directory|Not a directory"),
        ("{}/locked", "locked cannot be written to"),
        ("{}/locked/below", "locked cannot be written to"),
        ("file://{}/locked", "locked cannot be written to"),
        ("s3://bucket/models", "set AWS_ACCESS_KEY_ID"),
    ],
)
def test_unwritable_storage_is_refused_before_training(tmp_path, monkeypatch, place, message, version):
    (tmp_path / "file").touch()
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    access = os.access
    # root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and access(path, mode))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    lines: list[str] = []
    with pytest.raises(StorageError, match=message):
        train(DATASET, storage=place.format(tmp_path), version=version, progress=lines.append)
    assert not lines
    assert not list(locked.iterdir())
    s3fs.S3FileSystem.clear_instance_cache()


def test_missing_storage_is_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = train(DATASET, storage="new/models", estimator="logistic-regression")
    assert trained.uri == "new/models/placement/v1"


def test_too_few_candidates_of_a_class_are_refused(tmp_path):
    few = generate(40)
    labels = ["Placed"] * 37 + ["Not Placed"] * 3
    with pytest.raises(DataError, match="must have at least 10 candidates of class 'Not Placed', got 3"):
        train(Dataset(PLACEMENT, few.candidates, labels, "few.csv", few.sha256), storage=tmp_path)


def test_a_category_without_training_data_can_be_served():
    candidates = [candidate for candidate in DATASET.candidates if candidate["hsc_s"] != "Arts"]
    vectorizer = fit_vectorizer(SIGNATURE)
    assert sorted(vectorizer.feature_names_) == sorted(SIGNATURE.feature_names("="))
    frame = encode(vectorizer, [{**candidates[0], "hsc_s": "Arts"}])
    assert frame["hsc_s=Arts"].tolist() == [1.0]


@pytest.mark.parametrize("rewrite", [True, False])
def test_a_bundle_names_the_estimator_and_the_form_in_its_file(tmp_path, rewrite):
    lines: list[str] = []
    trained = train(DATASET, storage=tmp_path, estimator="forest-50", rewrite=rewrite, progress=lines.append)
    model = joblib.load(Path(trained.uri) / "model.joblib")
    stored = load_bundle(trained.uri).model
    report = Path(str(trained.report)).read_text()
    assert stored.estimator == "RandomForestClassifier(n_estimators=50, random_state=0)"
    if rewrite:
        assert isinstance(model, FixedThresholdClassifier)
        assert stored.serving_form == " ".join(repr(model).split())
        assert "GradientBoostingClassifier(init='zero'" in stored.serving_form
        assert any(line.startswith("serving form equals the forest on ") for line in lines)
        assert "FixedThresholdClassifier" in report
        assert "equal probabilities of Placed on " in report
    else:
        assert isinstance(model, RandomForestClassifier)
        assert stored.serving_form is None
        assert "serving form not used: it is turned off" in lines
        assert "the estimator itself: it is turned off" in report


def test_both_forms_of_a_forest_have_the_same_reference_rows(tmp_path):
    forms = [
        train(DATASET, storage=tmp_path, estimator="forest-50", rewrite=rewrite) for rewrite in (True, False)
    ]
    assert forms[0].bundle.reference == forms[1].bundle.reference
    for trained in forms:
        features = encode(fit_vectorizer(SIGNATURE), trained.bundle.reference.candidates)
        model = joblib.load(Path(trained.uri) / "model.joblib")
        assert tuple(model.predict_proba(features)[:, 1]) == trained.bundle.reference.probabilities


@pytest.mark.parametrize(
    "fields",
    [
        (Number(name="height", minimum=0, maximum=0.01), Number(name="still", minimum=5, maximum=5)),
        (Number(name="height"), Number(name="still", minimum=5)),
        (Category(name="colour", categories=("red", "green", "never seen")),),
    ],
    ids=["only numbers", "numbers without a range", "only categories"],
)
def test_a_custom_task_needs_no_change_of_code(tmp_path, fields):
    task = Task(signature=Signature(fields=fields), label="sold", classes=("no", "yes"), positive_class="no")
    random, labels = np.random.default_rng(0), []
    candidates: list[Candidate] = []
    for _ in range(60):
        high = bool(random.random() < 0.5)
        values = {"height": random.uniform(0, 0.01), "still": 5.0, "colour": "red" if high else "green"}
        candidates.append({field.name: values[field.name] for field in fields})
        labels.append("yes" if high else "no")
    dataset = Dataset(task, candidates, labels, "own.csv", "0" * 64)
    trained = train(dataset, storage=tmp_path, name="sale", estimator="forest-50")
    assert re.search("/sale/v1$", trained.uri)
    assert load_bundle(trained.uri) == trained.bundle
    assert "sale v1" in Path(str(trained.report)).read_text()
