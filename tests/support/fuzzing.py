"""How much the fuzz tests try: always the same few inputs, or as many others as FUZZ_EXAMPLES says."""

import os

from hypothesis import HealthCheck, settings

MANY = os.environ.get("FUZZ_EXAMPLES")


def fuzz(few: int) -> settings:
    """Settings of a test that tries `few` inputs unless many are asked for."""
    return settings(
        max_examples=int(MANY or few),
        derandomize=MANY is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
