"""Files of models are opened only after a check that opening them runs no code."""

import bz2
import copyreg
import gzip
import io
import lzma
import operator
import os
import pickle
import warnings
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cross_decomposition import PLSRegression
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import BernoulliNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, SplineTransformer

from training.imports.known_names import find
from training.imports.model_file import ModelFileError, open_model
from training.imports.pickles import load, scan

ROWS = [{"tenure": float(n), "plan": "abc"[n % 3]} for n in range(40)]
LABELS = [int(n % 4 == 0) for n in range(40)]


class Ran(Exception):
    """Code of a file has run."""


def raise_ran(*_: object) -> None:
    raise Ran


class Reduced:
    """Object whose pickle calls a function with arguments."""

    def __init__(self, function, *arguments, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def pair(estimator):
    vectorizer = DictVectorizer(sparse=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vectorizer, estimator.fit(vectorizer.fit_transform(ROWS), LABELS)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def joblib_bytes(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    joblib.dump(content, file, **options)
    return file.getvalue()


def same(path: Path, expected) -> bool:
    vectorizer, model = open_model(path).content
    rows = expected[0].transform(ROWS)
    return bool(
        np.array_equal(vectorizer.transform(ROWS), rows)
        and np.array_equal(model.predict_proba(rows), expected[1].predict_proba(rows))
    )


# Files that open


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle_opens(protocol, tmp_path):
    model = pair(RandomForestClassifier(3))
    assert same(written(tmp_path / "model.bin", pickle.dumps(model, protocol)), model)


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)], ids=str)
def test_every_compression_of_joblib_opens(compress, tmp_path):
    model = pair(RandomForestClassifier(3))
    assert same(written(tmp_path / "model.pkl", joblib_bytes(model, compress=compress)), model)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_pickle_or_joblib_file_opens(compress, tmp_path):
    model = pair(LogisticRegression())
    for content in (pickle.dumps(model), joblib_bytes(model, compress=3)):
        assert same(written(tmp_path / "model.gz", compress(content)), model)


def test_a_file_of_skops_opens(tmp_path):
    model = pair(KNeighborsClassifier())
    assert same(written(tmp_path / "model.skops", skops.io.dumps(model)), model)


@pytest.mark.parametrize(
    "estimator",
    [
        CalibratedClassifierCV(LogisticRegression(), method="isotonic"),
        GradientBoostingClassifier(n_estimators=3),
        HistGradientBoostingClassifier(max_iter=3),
        GaussianProcessClassifier(),
        MLPClassifier(4, max_iter=5),
        make_pipeline(SplineTransformer(), LogisticRegression()),
        make_pipeline(FunctionTransformer(np.log1p), SelectKBest(k=2), LogisticRegression()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_models_of_scikit_learn_need_no_trust(estimator, tmp_path):
    model = pair(estimator)
    assert same(written(tmp_path / "model.pkl", pickle.dumps(model)), model)
    assert same(written(tmp_path / "model.joblib", joblib_bytes(model)), model)


def test_a_search_for_parameters_needs_no_trust(tmp_path):
    search = GridSearchCV(make_pipeline(DictVectorizer(), BernoulliNB()), {"bernoullinb__alpha": [1]})
    path = written(tmp_path / "search.pkl", pickle.dumps(search.fit(ROWS, LABELS)))
    assert open_model(path).content.best_params_ == {"bernoullinb__alpha": 1}


# Files that are refused

ATTACKS = {
    "a function of the system": (Reduced(os.system, "exit 1"), ["posix.system"]),
    "eval": (Reduced(eval, "1"), ["builtins.eval"]),
    "getattr": (Reduced(getattr, "a", "upper"), ["builtins.getattr"]),
    "import": (Reduced(__import__, "os"), ["builtins.__import__"]),
    "a file of numpy": (Reduced(np.load, "a.npy"), ["numpy.load"]),
    "a file of joblib": (Reduced(joblib.load, "a.pkl"), ["joblib.numpy_pickle.load"]),
    "an attribute": (Reduced(operator.attrgetter, "a"), ["operator.attrgetter"]),
    "a call of a method": (Reduced(operator.methodcaller, "a"), ["operator.methodcaller"]),
    "a partial function": (Reduced(partial, raise_ran), ["functools.partial", f"{__name__}.raise_ran"]),
    "a method of a class": (Reduced(dict.fromkeys, "a"), ["builtins.dict.fromkeys", "builtins.getattr"]),
    "a step of a pipeline": (make_pipeline(FunctionTransformer(raise_ran)), [f"{__name__}.raise_ran"]),
    "an object array": (np.array([Reduced(raise_ran)], dtype=object), [f"{__name__}.raise_ran"]),
    "a data set of the internet": (
        Reduced(__import__("sklearn.datasets").datasets.fetch_openml, "a"),
        ["sklearn.datasets._openml.fetch_openml"],
    ),
    "a function of a scikit-learn module": (
        Reduced(__import__("sklearn.pipeline").pipeline.make_pipeline),
        ["sklearn.pipeline.make_pipeline"],
    ),
    "a distribution of scipy": (
        __import__("scipy.stats").stats.uniform(),
        ["scipy.stats._distn_infrastructure.rv_continuous_frozen"],
    ),
}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", ATTACKS)
def test_what_can_run_code_is_refused_by_name(name, protocol, tmp_path):
    attack, names = ATTACKS[name]
    model = pair(LogisticRegression())
    plain = pickle.dumps((*model, attack), protocol)
    for content in (plain, gzip.compress(plain), joblib_bytes((*model, attack), compress=3)):
        with pytest.raises(
            ModelFileError, match="not opened, because that can run code: it names "
        ) as refused:
            open_model(written(tmp_path / "attack.pkl", content))
        assert any(one in str(refused.value) for one in names)
        assert "--trust" in str(refused.value)


def global_of(module: str, name: str) -> bytes:
    """Return the steps that name a class or function by computed strings."""
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


@pytest.mark.parametrize(
    "steps",
    [
        # The names are on the stack, in the memo, and in the memo in another order.
        global_of("os", "system") + b"\x8c\x06exit 1\x85R.",
        b"\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x06exit 1\x85R.",
        b"\x8c\x06system\x94\x8c\x02os\x940h\x01h\x00\x93\x8c\x06exit 1\x85R.",
        # By the steps of old protocols: GLOBAL, INST and OBJ.
        b"cos\nsystem\n\x8c\x06exit 1\x85R.",
        b"(\x8c\x06exit 1ios\nsystem\n.",
        b"(cos\nsystem\n\x8c\x06exit 1o.",
        # By NEWOBJ and NEWOBJ_EX.
        global_of("os", "system") + b"\x8c\x06exit 1\x85\x81.",
        global_of("os", "system") + b"\x8c\x06exit 1\x85}\x92.",
        # A name with a dot is an attribute of an attribute.
        global_of("numpy._core", "_ufunc_reconstruct") + b"\x8c\x02os\x8c\x06system\x86R.",
        b"\x80\x04" + global_of("sklearn.pipeline", "np.load") + b"\x8c\x01a\x85R.",
    ],
)
def test_a_pickle_made_by_hand_is_refused_by_name(steps, tmp_path):
    with pytest.raises(
        ModelFileError, match=r"it names (os\.system|sklearn\.pipeline\.np\.load|numpy\._core\._ufunc)"
    ):
        open_model(written(tmp_path / "attack.pkl", b"\x80\x04" + steps))


def test_an_extension_code_is_refused_by_the_name_that_it_stands_for(tmp_path):
    copyreg.add_extension(__name__, "raise_ran", 240)
    try:
        content = pickle.dumps(raise_ran, 2)
        assert b"raise_ran" not in content
        with pytest.raises(ModelFileError, match=rf"it names {__name__}\.raise_ran"):
            open_model(written(tmp_path / "attack.pkl", content))
    finally:
        copyreg.remove_extension(__name__, "raise_ran", 240)


def test_a_pickle_that_changes_a_class_is_refused(tmp_path):
    steps = global_of("sklearn.linear_model._logistic", "LogisticRegression") + b"}\x8c\x01a\x8c\x01bsb."
    with pytest.raises(ModelFileError, match="sets attributes of a class or function"):
        open_model(written(tmp_path / "attack.pkl", b"\x80\x04" + steps))
    assert not hasattr(LogisticRegression, "a")


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype(">i4"),
        np.dtype("S3"),
        np.dtype([("a", "<f8"), ("b", "O"), ("c", "i4", (2, 3))]),
        np.dtype([("a", "i1"), ("b", "<f8")], align=True),
        np.dtype({"names": ["a"], "formats": ["i4"], "offsets": [12], "itemsize": 16}),
    ],
    ids=str,
)
def test_a_data_type_is_read_as_numpy_reads_it(dtype):
    content = pickle.dumps((np.zeros(3, dtype), np.ones(1, dtype), dtype))
    for given, expected in zip(load(content, find), pickle.loads(content), strict=True):
        one, other = getattr(given, "dtype", given), getattr(expected, "dtype", expected)
        assert one == other
        assert (one.isalignedstruct, one.hasobject) == (other.isalignedstruct, other.hasobject)
        assert str(given) == str(expected)
    assert ("numpy", "dtype") in scan(content).names


def test_a_forged_data_type_keeps_its_objects_and_its_bounds():
    # Without the mark of an object, its bytes would be addresses.
    forged = Reduced(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))
    assert load(pickle.dumps(forged), find).hasobject
    outside = (3, "|", None, ("a",), {"a": (np.dtype("f8"), 4096)}, 8, 1, 16)
    with pytest.raises(ValueError, match="itemsize"):
        load(pickle.dumps(Reduced(np.dtype, "V8", False, True, state=outside)), find)


def test_a_trusted_file_runs_its_code(tmp_path):
    path = written(tmp_path / "own.pkl", pickle.dumps((*pair(LogisticRegression()), Reduced(raise_ran))))
    with pytest.raises(ModelFileError, match="cannot be loaded: Ran"):
        open_model(path, trust=True)


def test_an_unknown_class_in_a_file_of_skops_is_refused(tmp_path):
    content = skops.io.dumps(make_pipeline(FunctionTransformer(raise_ran)))
    with pytest.raises(ModelFileError, match=rf"it names {__name__}\.raise_ran"):
        open_model(written(tmp_path / "attack.skops", content))


# Versions and damage


@pytest.mark.parametrize(("version", "opens"), [("1.4.2", False), ("1.5.2", True)])
def test_estimators_that_changed_after_1_4_are_refused_in_its_files(version, opens, tmp_path, monkeypatch):
    rows = [{"a": 1.0, "b": 0.0}, {"a": 2.0, "b": 1.0}, {"a": 4.0, "b": 0.5}]
    pipeline = make_pipeline(DictVectorizer(sparse=False), PLSRegression(1)).fit(rows, [1, 2, 4])
    path = tmp_path / "model.pkl"
    with monkeypatch.context() as patch:
        patch.setattr("sklearn.base.__version__", version)
        path.write_bytes(pickle.dumps(pipeline))
    if opens:
        assert open_model(path).scikit_learn == {version}
        return
    with pytest.raises(ModelFileError, match=r"a PLSRegression of scikit-learn 1\.4 gives wrong results"):
        open_model(path)


@pytest.mark.parametrize(
    ("version", "opens"),
    [
        ("1.3.2", False),
        ("1.4.0", True),
        ("1.7.2", True),
        ("1.8.0", False),
        ("0.24.2", False),
        ("2.5.2", False),
    ],
)
def test_only_versions_that_are_known_to_be_sound_are_loaded(version, opens, tmp_path, monkeypatch):
    model = pair(LogisticRegression())
    with monkeypatch.context() as patch:
        patch.setattr("sklearn.base.__version__", version)
        content = pickle.dumps(model)
    path = written(tmp_path / "model.pkl", content)
    if opens:
        assert open_model(path).scikit_learn == {version}
        assert same(path, model)
        return
    with pytest.raises(ModelFileError) as refused:
        open_model(path, trust=True)
    assert str(refused.value) == (
        f"{path}: was written by scikit-learn {version}; the predictor has 1.5.2, and its results are "
        "right for files of 1.4 to 1.7 only; fit the model again with scikit-learn 1.5.2 and import that "
        "file, or train here with `placement train --data`"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no pickle"),
        (b"tenure,plan\n1,a\n", "is no pickle"),
        (pickle.dumps(pair(LogisticRegression()))[:-40], "is no pickle"),
        (joblib_bytes(pair(LogisticRegression()))[:-40], "is no pickle"),
        (gzip.compress(b"a" * 1000, mtime=0)[:20], "is no pickle"),
        (b"PK\x03\x04", "is a zip archive, but no file of skops"),
        (b"\x04\x22\x4d\x18", r"is compressed by lz4; write it with joblib\.dump"),
        (pickle.dumps({"a": 1}), "does not say which scikit-learn wrote it"),
    ],
)
def test_a_file_that_is_no_model_says_so(content, problem, tmp_path):
    path = written(tmp_path / "model.pkl", content)
    with pytest.raises(ModelFileError, match=problem):
        open_model(path)


def test_a_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"none\.pkl: No such file or directory"):
        open_model(tmp_path / "none.pkl")
