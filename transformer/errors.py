"""What can go wrong with a request, and the status that says so over REST and over gRPC.

Each class carries its HTTP status and the name of its gRPC status code; each message names what came and
what was expected. The adapters to the protocols need nothing else.
"""

from collections.abc import Sequence
from http import HTTPStatus

#: Problems of one request that its answer spells out; the rest is counted.
MAX_PROBLEMS = 20
#: Seconds after which a client may try again when nothing better is known.
RETRY_AFTER_S = 1


def printable(text: str, most: int = 80) -> str:
    """The beginning of somebody else's words, with escapes for what is no part of a line of text."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:most].strip())[:most]


def quoted(word: str) -> str:
    """The beginning of a caller's own word, in quotes and in ASCII."""
    return ascii(word[:40])


class ServiceError(Exception):
    """A request that was not answered with a prediction.

    Parameters
    ----------
    detail
        What the other side said about it, if it did. It may repeat candidates: only who knows that there were
        none in the call may write it down.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    grpc_code = "INTERNAL"

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error."""
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            return {"retry-after": str(RETRY_AFTER_S)}
        return {}


class InvalidRequest(ServiceError):
    """The request's content is not what the model takes."""

    status = HTTPStatus.BAD_REQUEST
    grpc_code = "INVALID_ARGUMENT"


class CompressedBody(InvalidRequest):
    """The request's body is compressed, as Triton's client does it on demand."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class InvalidCandidates(InvalidRequest):
    """Values that the signature does not allow.

    Parameters
    ----------
    problems
        The first of them, in the order of the candidates: ``instances[3].ssc_p: must be …``.
    total
        How many there are.
    """

    def __init__(self, problems: Sequence[str], total: int) -> None:
        more = [f"and {total - len(problems)} more problems"] if total > len(problems) else []
        super().__init__("; ".join([*problems, *more]))
        self.problems = tuple(problems)


class UnknownModel(ServiceError):
    """A model that is not served here."""

    status = HTTPStatus.NOT_FOUND
    grpc_code = "NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"Model with name {printable(name)} does not exist.")


class UnknownVersion(UnknownModel):
    """A version that no verified connection leads to."""

    def __init__(self, name: str, version: str, existing: Sequence[str]) -> None:
        ServiceError.__init__(
            self,
            f"model {printable(name)} has no version {quoted(version)}; versions now: {', '.join(existing)}",
        )


class TooLarge(ServiceError):
    """More bytes or candidates than one request may carry."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    grpc_code = "RESOURCE_EXHAUSTED"


class NotImplementedHere(ServiceError):
    """Something that the protocol knows and this service does not do."""

    status = HTTPStatus.NOT_IMPLEMENTED
    grpc_code = "UNIMPLEMENTED"


class PredictorUnavailable(ServiceError):
    """No predictor answers; the same request may succeed in a moment."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_code = "UNAVAILABLE"


class QueueFull(ServiceError):
    """More candidates wait than can be scored soon; the same request may succeed in a moment."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_code = "RESOURCE_EXHAUSTED"


class PredictorTooSlow(ServiceError):
    """The predictor did not answer within the request's deadline."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    grpc_code = "DEADLINE_EXCEEDED"


class EncodingRefused(PredictorUnavailable):
    """The predictor's model takes other feature names than the ones it was sent."""


class InvalidPredictorResponse(ServiceError):
    """The predictor answered with something that is not a probability for each candidate."""

    status = HTTPStatus.BAD_GATEWAY
    grpc_code = "INTERNAL"
