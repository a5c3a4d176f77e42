"""Copies of a version that was trained, for tests of storage."""

import shutil
from hashlib import sha256
from pathlib import Path

from transformer.bundle.format import MODEL_FILE, Bundle

MODEL = b"a model"


def copied(template: Bundle, version: str, model: bytes = MODEL) -> Bundle:
    """Rename a bundle and let it name another model file."""
    named = template.model.model_copy(update={"sha256": sha256(model).hexdigest()})
    return template.model_copy(update={"version": version, "model": named})


def damaged(version: Path, copy: Path) -> Path:
    """A copy of a version with one byte of its model exchanged."""
    shutil.copytree(version, copy)
    model = bytearray((copy / MODEL_FILE).read_bytes())
    model[len(model) // 2] ^= 1
    (copy / MODEL_FILE).write_bytes(model)
    return copy
