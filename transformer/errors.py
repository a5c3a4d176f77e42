"""Errors that a request can end with, and their status over REST and gRPC.

Each class carries its HTTP status and the name of its gRPC status code. Each message says what came and
what was expected. The protocol adapters need nothing else.
"""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from json import JSONDecodeError

#: Maximum problems of one request that its error lists; the others are counted.
MAX_PROBLEMS = 20
#: Maximum bytes of an error over gRPC, percent-encoded as gRPC sends it. Clients accept 8 KiB of metadata in
#: all by default, and replace the status of a call that sends more by RESOURCE_EXHAUSTED.
MAX_GRPC_DETAILS = 4096
#: Seconds in the header ``retry-after`` of every 503.
RETRY_AFTER_S = 1
#: Response header and gRPC metadata of an unknown model: names of those that are served, separated by commas.
MODELS_HEADER = "x-models"

#: A parser stops at such a word, or behind its sign.
_NOT_A_NUMBER = re.compile(r"[^\w\-]?(-?(?:NaN|Infinity))\b")


def printable(text: str, max_length: int = 80) -> str:
    """Return the beginning of an external text on one line, with unprintable characters escaped."""
    return _escaped(text[:max_length].strip())[:max_length]


def shortened(text: str, max_length: int) -> str:
    """Return a text on one line; one longer than `max_length` is cut and ends with ``…``."""
    escaped = _escaped(text[: max_length + 1])
    return escaped if len(escaped) <= max_length else escaped[: max_length - 1] + "…"


def json_problem(error: JSONDecodeError) -> str:
    """Return the reason why a text is not JSON; it names NaN, which Python's `json.dumps` writes."""
    found = _NOT_A_NUMBER.match(error.doc, max(error.pos - 1, 0))
    if found is None:
        return _json_reason(error)
    place = f"line {error.lineno} column {error.colno}"
    return f"{found[1]} at {place}: JSON has no such number; send null for a missing value"


def _json_reason(error: JSONDecodeError) -> str:
    """Return the parser's reason, or what is wrong with the text as a whole."""
    if error.msg.startswith("str is not valid UTF-8"):
        return "must be UTF-8"
    if "\0" in error.doc[:2]:
        return "must be UTF-8, got UTF-16"
    return str(error) if error.doc else "is empty"


def quoted(word: str) -> str:
    """Return the beginning of a caller's word, in quotes and in ASCII."""
    return ascii(word[:40])


class ServiceError(Exception):
    """A request that ends without a prediction.

    Parameters
    ----------
    detail
        The predictor's own error text, if there is one. It may repeat candidates' values, so log it only for
        a call that carried none.
    limit
        Name of the limit that the request exceeds, if there is one, for the metrics.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    grpc_code = "INTERNAL"

    def __init__(self, message: str, *, detail: str = "", limit: str = "") -> None:
        super().__init__(message)
        self.detail = detail
        self.limit = limit

    @property
    def headers(self) -> dict[str, str]:
        """Response headers of the error."""
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            return {"retry-after": str(RETRY_AFTER_S)}
        return {}


class InvalidRequest(ServiceError):
    """Invalid content of a request."""

    status = HTTPStatus.BAD_REQUEST
    grpc_code = "INVALID_ARGUMENT"


class CompressedBody(InvalidRequest):
    """A compressed request body, as Triton's client sends on request."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class InvalidCandidates(InvalidRequest):
    """Values that the signature does not allow.

    Parameters
    ----------
    problems
        The first problems, in the order of the candidates: ``instances[3].ssc_p: must be …``.
    total
        Number of all problems.
    rows
        Positions of all candidates with a problem, in order.
    """

    def __init__(self, problems: Sequence[str], total: int, rows: Sequence[int]) -> None:
        super().__init__(_join(problems, total))
        self.problems = tuple(problems)
        self.total = total
        self.rows = rows


class NotFound(ServiceError):
    """Something that a request names and that does not exist here."""

    status = HTTPStatus.NOT_FOUND
    grpc_code = "NOT_FOUND"


class UnknownModel(NotFound):
    """A model that this server does not have. Over gRPC, which has no list of models, metadata names them."""

    def __init__(self, name: str, served: Iterable[str]) -> None:
        self._served = ", ".join(served)
        super().__init__(f"Model with name {printable(name)} does not exist. Models here: {self._served}.")

    @property
    def headers(self) -> dict[str, str]:
        """Response headers of the error: the models that exist."""
        return {MODELS_HEADER: self._served}


class UnknownVersion(NotFound):
    """A version that no verified connection leads to."""

    def __init__(self, name: str, version: str, existing: Sequence[str]) -> None:
        versions = ", ".join(existing) or "none"
        super().__init__(
            f"model {printable(name)} has no version {quoted(version)}; versions now: {versions}"
        )


class TooLarge(ServiceError):
    """A request over the limit on its bytes or candidates."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    grpc_code = "RESOURCE_EXHAUSTED"


class RequestTooSlow(ServiceError):
    """A request that was not complete in time."""

    status = HTTPStatus.REQUEST_TIMEOUT
    grpc_code = "DEADLINE_EXCEEDED"


class NotImplementedHere(ServiceError):
    """A part of the protocol that this service does not implement."""

    status = HTTPStatus.NOT_IMPLEMENTED
    grpc_code = "UNIMPLEMENTED"


class PredictorUnavailable(ServiceError):
    """No predictor available now; a retry may succeed."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_code = "UNAVAILABLE"


class QueueFull(ServiceError):
    """A queue at its limit; a retry may succeed."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_code = "RESOURCE_EXHAUSTED"


class PredictorTooSlow(ServiceError):
    """No response from the predictor within the request's deadline."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    grpc_code = "DEADLINE_EXCEEDED"


class EncodingRefused(PredictorUnavailable):
    """A predictor whose model has other feature names than the request."""


class UnexplainedError(PredictorUnavailable):
    """An error of the predictor without a reason: it stops, or its model has other feature names."""


class InvalidPredictorResponse(ServiceError):
    """A response of the predictor that does not hold its model's scores of these rows."""

    status = HTTPStatus.BAD_GATEWAY
    grpc_code = "INTERNAL"


class PredictorError(InvalidPredictorResponse):
    """An error of the predictor for another reason than its state or the feature names."""


def grpc_details(error: ServiceError) -> str:
    """Return an error's message, cut to `MAX_GRPC_DETAILS`.

    Of invalid candidates, as many problems are kept as fit, and the others are counted.
    """
    message = str(error)
    if _encoded_bytes(message) <= MAX_GRPC_DETAILS:
        return message
    if isinstance(error, InvalidCandidates):
        for count in range(len(error.problems) - 1, 0, -1):
            message = _join(error.problems[:count], error.total)
            if _encoded_bytes(message) <= MAX_GRPC_DETAILS:
                return message
    return _cut(message)


def _escaped(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _join(problems: Sequence[str], total: int) -> str:
    hidden = total - len(problems)
    count = [f"and {hidden} more problem{'s' if hidden > 1 else ''}"] if hidden else []
    return "; ".join([*problems, *count])


def _cut(message: str) -> str:
    """Return the beginning of a message that fits, with ``…`` at its end."""
    left = MAX_GRPC_DETAILS - _encoded_bytes("…")
    for number, char in enumerate(message):
        left -= _encoded_bytes(char)
        if left < 0:
            return message[:number] + "…"
    return message


def _encoded_bytes(text: str) -> int:
    """Return a text's length as gRPC sends it: ``%XX`` for each byte that is ``%`` or not printable ASCII."""
    return sum(
        1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode(errors="surrogatepass")
    )
