"""Headers that carry a request's trace to the calls to the predictor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformer.tracing.spans import RequestTrace


class TracedHeaders(dict[str, str]):
    """Headers to forward of a request that is traced.

    Attributes
    ----------
    trace
        The request's trace.
    """

    __slots__ = ("trace",)

    def __init__(self, headers: Mapping[str, str], trace: "RequestTrace") -> None:
        super().__init__(headers)
        self.trace = trace
