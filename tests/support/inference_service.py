"""The project's InferenceService, and variants of it."""

from dataclasses import replace
from typing import Any

from inferenceservice import spec
from inferenceservice.spec import InferenceService
from tests.support.paths import MANIFEST

SPEC = spec.read(MANIFEST)


def with_arguments(*arguments: str, **changes: Any) -> InferenceService:
    """Return the InferenceService with further arguments for the transformer and other changes."""
    return replace(SPEC, transformer_args=(*SPEC.transformer_args, *arguments), **changes)
