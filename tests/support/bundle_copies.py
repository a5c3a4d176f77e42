"""Copies of a trained version for tests of storage."""

import shutil
from hashlib import sha256
from pathlib import Path

from transformer.bundle.format import MODEL_FILE, Bundle

MODEL = b"a model"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return sha256(path.read_bytes()).hexdigest()


def bundle_copy(template: Bundle, version: str, model: bytes = MODEL) -> Bundle:
    """Return a bundle with another version and the digest of another model."""
    named = template.model.model_copy(update={"sha256": sha256(model).hexdigest()})
    return template.model_copy(update={"version": version, "model": named})


def damaged_copy(version: Path, copy: Path) -> Path:
    """Copy a version, and change one byte of its model."""
    shutil.copytree(version, copy)
    model = bytearray((copy / MODEL_FILE).read_bytes())
    model[len(model) // 2] ^= 1
    (copy / MODEL_FILE).write_bytes(model)
    return copy
