"""Files of fitted models: pickle, joblib or skops, compressed or not.

To load such a file can run any code, so its names are checked first, and then the version of scikit-learn
that wrote it. A model of another version loads only if that is known to give equal results.
"""

import bz2
import lzma
import os
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from training.imports import skops_file
from training.imports.known_names import UnknownNameError, find, is_data
from training.imports.pickles import Global, PickleError, Scan, load, scan
from training.serving_form import SCIKIT_LEARN
from transformer.bundle.regular_file import MAX_MODEL_BYTES

#: First and last version of scikit-learn whose files give equal results in the predictor's: 70 classifiers
#: and regressors of each were compared. Extra trees of 1.3 give wrong results there, and forests of 1.2 and
#: 1.8 fail.
SOUND = ((1, 4), (1, 7))
#: Estimators whose attributes mean something else in files of 1.4.
_CHANGED_AFTER_1_4 = {"CCA", "PLSCanonical", "PLSRegression"}
#: Maximum names that an error lists.
MAX_LISTED = 10
#: Maximum compressions around each other: gzip around a file of joblib.
_MAX_LAYERS = 3

_GZIP_HEADER = 16 + zlib.MAX_WBITS
#: First bytes of each compression, and a decompressor for at most so many bytes. zlib is joblib's.
_COMPRESSIONS: tuple[tuple[bytes, Callable[[bytes], Callable[[int], bytes]]], ...] = (
    (b"\x1f\x8b", lambda content: partial(zlib.decompressobj(_GZIP_HEADER).decompress, content)),
    (b"BZh", lambda content: partial(bz2.BZ2Decompressor().decompress, content)),
    (b"\xfd7zXZ\x00", lambda content: partial(lzma.LZMADecompressor().decompress, content)),
    (b"\x5d\x00\x00", lambda content: partial(lzma.LZMADecompressor().decompress, content)),
    *(
        (magic, lambda content: partial(zlib.decompressobj().decompress, content))
        for magic in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
    ),
)
_ZIP, _OLD_JOBLIB, _LZ4 = b"PK\x03\x04", b"ZF", b"\x04\x22\x4d\x18"


class ModelFileError(Exception):
    """A file that is not opened; the message names the file, and says why and what to do."""


@dataclass(frozen=True)
class ModelFile:
    """A loaded file.

    Attributes
    ----------
    content
        The object in the file.
    sha256
        Digest of the file.
    scikit_learn
        Versions of scikit-learn that wrote its estimators.
    """

    path: str
    content: Any
    sha256: str
    scikit_learn: frozenset[str]

    @property
    def name(self) -> str:
        """Name of the file, without its directory."""
        return Path(self.path).name


def open_model(path: str | os.PathLike[str], *, trust: bool = False) -> ModelFile:
    """Load a file after its check.

    Parameters
    ----------
    trust
        True to load also what may run code.

    Raises
    ------
    ModelFileError
        If the file cannot be read, may run code, or was written by a version of scikit-learn that the
        predictor cannot read.
    """
    where = os.fspath(path)
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{where}: {error.strerror}") from error
    content = _decompressed(where, raw)
    is_skops = content.startswith(_ZIP)
    try:
        found = skops_file.scan(content) if is_skops else scan(content)
    except PickleError as error:
        raise ModelFileError(f"{where}: is no pickle, nor a file of joblib or skops: {error}") from error
    except skops_file.SkopsError as error:
        raise ModelFileError(f"{where}: {error}") from error
    _check_names(where, found, trust=trust)
    _check_version(where, found.versions)
    changed = sorted(_CHANGED_AFTER_1_4.intersection(name for _, name in found.names))
    if changed and any(version.startswith("1.4.") for version in found.versions):
        raise ModelFileError(
            f"{where}: a {changed[0]} of scikit-learn 1.4 gives wrong results in {SCIKIT_LEARN}; {advice()}"
        )
    try:
        with warnings.catch_warnings():
            # scikit-learn warns about every other version; `_check_version` knows the sound ones.
            warnings.simplefilter("ignore")
            loaded = skops_file.load(content) if is_skops else load(content, find if trust else _find_data)
    except Exception as error:
        raise ModelFileError(f"{where}: cannot be loaded: {type(error).__name__}: {error}") from error
    return ModelFile(where, loaded, sha256(raw).hexdigest(), frozenset(found.versions))


def _decompressed(where: str, content: bytes) -> bytes:
    for _ in range(_MAX_LAYERS):
        opener = next((one for magic, one in _COMPRESSIONS if content.startswith(magic)), None)
        if opener is None:
            break
        try:
            content = opener(content)(MAX_MODEL_BYTES + 1)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ModelFileError(f"{where}: cannot be decompressed: {error}") from error
        if len(content) > MAX_MODEL_BYTES:
            raise ModelFileError(f"{where}: more bytes than the limit of {MAX_MODEL_BYTES} when decompressed")
    if content.startswith((_OLD_JOBLIB, _LZ4)):
        kind = "lz4" if content.startswith(_LZ4) else "a joblib before 0.10"
        raise ModelFileError(
            f"{where}: is compressed by {kind}; write it with joblib.dump(model, file, compress=3)"
        )
    return content


def _check_names(where: str, found: Scan, *, trust: bool) -> None:
    if trust:
        return
    refused: list[str] = []
    missing: list[str] = []
    for module, name in sorted(found.names):
        try:
            if not is_data(module, name):
                refused.append(f"{module}.{name}")
        except UnknownNameError as error:
            missing.append(str(error))
    if refused:
        raise ModelFileError(
            f"{where}: not opened, because that can run code: it names {_listed(refused)}, and a model needs "
            "only data of scikit-learn, numpy, scipy and Python; if you trust its author, use --trust"
        )
    if missing and all(_is_sound(version) for version in found.versions):
        raise ModelFileError(f"{where}: names {_listed(missing)}; {advice()}")


def _find_data(module: str, name: str) -> Any:  # noqa: ANN401
    """Return a class or function that is data. The scan has found all names, so this refuses none of them."""
    if not is_data(module, name):
        raise ModelFileError(f"names {module}.{name}, which can run code")
    return find(module, name)


def _check_version(where: str, versions: set[str]) -> None:
    wrong = sorted(version for version in versions if not _is_sound(version))
    if not versions:
        raise ModelFileError(
            f"{where}: does not say which scikit-learn wrote it, expected an estimator of scikit-learn "
            f"{_range()}; {advice()}"
        )
    if wrong:
        raise ModelFileError(
            f"{where}: was written by scikit-learn {', '.join(wrong)}; the predictor has {SCIKIT_LEARN}, and "
            f"its results are right for files of {_range()} only; {advice()}"
        )


def _is_sound(version: str) -> bool:
    match = re.match(r"(\d+)\.(\d+)\.", version)
    return match is not None and SOUND[0] <= (int(match[1]), int(match[2])) <= SOUND[1]


def _range() -> str:
    first, last = (".".join(map(str, version)) for version in SOUND)
    return f"{first} to {last}"


def advice() -> str:
    """Return what to do about a file of another scikit-learn."""
    return (
        f"fit the model again with scikit-learn {SCIKIT_LEARN} and import that file, or train here with "
        "`placement train --data`"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def names_in(content: bytes) -> set[Global]:
    """Return the names in a model file that this project has written."""
    return scan(_decompressed("model", content)).names
