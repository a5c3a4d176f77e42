"""The project's InferenceService, and variants of it."""

from dataclasses import replace
from typing import Any

from inferenceservice import spec
from inferenceservice.spec import InferenceService
from tests.support.paths import MANIFEST

NO_DELAY = "--shutdown_delay_seconds=0"
SPEC = spec.read(MANIFEST)


def with_arguments(*arguments: str, **changes: Any) -> InferenceService:
    """Return the InferenceService with further arguments for the transformer and other changes.

    A transformer stops without the spec's delay.
    """
    return replace(SPEC, transformer_args=(*SPEC.transformer_args, NO_DELAY, *arguments), **changes)
