"""The number of inputs that fuzz tests try: the same few in each run, or FUZZ_EXAMPLES random ones."""

import os

from hypothesis import HealthCheck, settings

MANY = os.environ.get("FUZZ_EXAMPLES")


def fuzz(few: int) -> settings:
    """Return the settings of a test that tries `few` inputs unless FUZZ_EXAMPLES is set."""
    return settings(
        max_examples=int(MANY or few),
        derandomize=MANY is None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
