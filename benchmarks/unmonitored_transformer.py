"""The transformer without its counts of requests, calls and candidates, to measure what they cost.

python -m benchmarks.unmonitored_transformer ARGUMENTS

No setting turns them off.
"""

from contextlib import AbstractContextManager, nullcontext

from transformer.__main__ import main
from transformer.batching.call_metrics import CallMetrics
from transformer.monitoring.monitor import Monitor


def _ignore(*_: object, **__: object) -> None:
    """Count nothing."""


def _unmeasured(*_: object) -> AbstractContextManager[None]:
    return nullcontext()


if __name__ == "__main__":
    Monitor.answered = _ignore  # type: ignore[method-assign]
    CallMetrics.measured = _unmeasured  # type: ignore[method-assign, assignment]
    main()
