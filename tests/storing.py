"""Bundles for storage tests: cheap copies of one that was trained."""

from hashlib import sha256

from transformer.bundle import Bundle

MODEL = b"a model"


def copied(template: Bundle, version: str, model: bytes = MODEL) -> Bundle:
    """Rename a bundle and let it name another model file."""
    named = template.model.model_copy(update={"sha256": sha256(model).hexdigest()})
    return template.model_copy(update={"version": version, "model": named})
