"""Names that models' pickles have and that run no code: data of scikit-learn, numpy, scipy and Python.

A class or function is not data just because one of these packages has it: some of their functions open files
or call what they are given. So classes are known by the packages of scikit-learn that define estimators, and
functions by their own names.
"""

import importlib
import re
import warnings
from functools import reduce
from typing import Any

import numpy as np
import sklearn

#: Classes and functions by module; for numpy, by its current name.
_NAMES_BY_MODULE = {
    "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "copyreg": "_reconstructor __newobj__ __newobj_ex__",
    # Bytes in pickles of protocol 2.
    "_codecs": "encode",
    "numpy": "ndarray dtype matrix",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.ma": "MaskedArray",
    "numpy.ma.core": "MaskedArray _mareconstruct",
    "numpy.random._pickle": "__randomstate_ctor __generator_ctor __bit_generator_ctor",
    "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64 PCG64DXSM",
    "numpy.random._philox": "Philox",
    "numpy.random._sfc64": "SFC64",
    # The namespace of the arrays in a spline.
    "scipy._lib.array_api_compat.numpy._aliases": "asarray",
}
_NAMED = {(module, name) for module, names in _NAMES_BY_MODULE.items() for name in names.split()}

#: Packages of scikit-learn whose classes are estimators and their parts.
_ESTIMATOR_MODULE = re.compile(
    r"sklearn\.(_loss|calibration|cluster|compose|covariance|cross_decomposition|decomposition"
    r"|discriminant_analysis|dummy|ensemble|feature_extraction|feature_selection|gaussian_process|impute"
    r"|isotonic|kernel_approximation|kernel_ridge|linear_model|manifold|metrics|mixture|model_selection"
    r"|multiclass|multioutput|naive_bayes|neighbors|neural_network|pipeline|preprocessing|random_projection"
    r"|semi_supervised|svm|tree|utils\._bunch|utils\._metadata_requests)(\.\w+)*"
)
#: Functions that make an object of a compiled class.
_CONSTRUCTOR = re.compile("newObj|__pyx_unpickle_[A-Za-z0-9_]+")
#: Modules with functions that estimators have as parameters, which only compute.
_SCORES = re.compile(
    r"sklearn\.(feature_selection\._[a-z_]+|metrics\._(classification|ranking|regression|scorer))"
)
_SCIPY_CLASSES = re.compile(r"scipy\.(sparse|interpolate)(\._?[a-z]+)?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class UnknownNameError(Exception):
    """A name that the installed scikit-learn, numpy or scipy does not have."""


def canonical(module: str) -> str:
    """Return the module's current name: numpy 2 has renamed ``numpy.core``, and Cython shortens ``_loss``."""
    if module == "_loss":
        return "sklearn._loss._loss"
    return re.sub(r"^numpy\.core\b", "numpy._core", module)


def is_data(module: str, name: str) -> bool:
    """Return True if a pickle may name a class or function without running code by it.

    Raises
    ------
    UnknownNameError
        If it would be data, but the installed package does not have it.
    """
    module = canonical(module)
    if (module, name) in _NAMED:
        return True
    if not _NAME.fullmatch(name) or "tests" in module.split("."):
        return False
    if _ESTIMATOR_MODULE.fullmatch(module):
        return _is_part_of_estimators(find(module, name), name)
    if _SCIPY_CLASSES.fullmatch(module):
        found = find(module, name)
        return isinstance(found, type) and bool(_SCIPY_CLASSES.fullmatch(found.__module__))
    if module in {"numpy", "numpy._core._multiarray_umath", "scipy.special", "scipy.special._ufuncs"}:
        found = find(module, name)
        return isinstance(found, np.ufunc) or (isinstance(found, type) and issubclass(found, np.generic))
    return False


def _is_part_of_estimators(found: Any, name: str) -> bool:  # noqa: ANN401
    # Also a module of estimators imports classes and functions of others.
    origin = canonical(getattr(found, "__module__", None) or "")
    if isinstance(found, type):
        return bool(_ESTIMATOR_MODULE.fullmatch(origin))
    if isinstance(found, np.ufunc):
        return False
    if _CONSTRUCTOR.fullmatch(name):
        return type(found).__name__ == "cython_function_or_method"
    return callable(found) and bool(_SCORES.fullmatch(origin))


def find(module: str, name: str) -> Any:  # noqa: ANN401
    """Return a class or function by its module's name and its own, in which dots lead to attributes.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    module = canonical(module)
    try:
        with warnings.catch_warnings():
            # Modules that are deprecated, or that numpy has renamed.
            warnings.simplefilter("ignore")
            return reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        package = module.partition(".")[0]
        known = {"sklearn": f"scikit-learn {sklearn.__version__}", "numpy": f"numpy {np.__version__}"}
        raise UnknownNameError(
            f"{module}.{name}, which {known.get(package, package)} does not have"
        ) from error
