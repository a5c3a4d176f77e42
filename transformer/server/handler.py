"""The handler of all protocols: REST's fast path, KServe's REST routes and gRPC are adapters around it.

A rule that holds for every request is written here, once: the byte budget, the headers to forward, the
version that may answer, the metrics.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kserve.logging import trace_logger
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from transformer.batching.scorer import Scorer
from transformer.bundle.format import Bundle
from transformer.bundle.prediction import Prediction, Request
from transformer.bundle.signature import CategoryList
from transformer.errors import ServiceError, printable
from transformer.explanation.explainer import Explainer
from transformer.headers import LIST_FIELDS_HEADER, forwarded
from transformer.metrics import QUEUED
from transformer.monitoring.monitor import V2_INFER, Kind, Monitor
from transformer.protocols import grpc_messages, openapi, v1, v2
from transformer.server.byte_budget import BUDGET_IN_MAX_REQUESTS, ByteBudget
from transformer.server.fair_reader import FairReader
from transformer.server.periodically import periodically
from transformer.server.traced_requests import TracedOperations
from transformer.settings import Settings
from transformer.tracing.environment import start_tracing
from transformer.tracing.traced_headers import TracedHeaders

if TYPE_CHECKING:
    from transformer.tracing.spans import RequestTrace, Tracing

_Request = TypeVar("_Request", bound=Request)
_Answer = TypeVar("_Answer")

#: Seconds between two updates of the metrics that other processes of the pod show.
FLUSH_INTERVAL_S = 1.0


class Unusual(Exception):
    """Raised by a decoder for a request that another route must answer."""


# Not frozen, because that takes five times as long for each request.
@dataclass(slots=True)
class InProgress(Generic[_Request]):
    """A request that waits for its prediction.

    Attributes
    ----------
    answer
        Its prediction, once it is done.
    release
        Drops the request at the scorer.
    size
        Its size in bytes.
    start, decoded
        Times of `perf_counter`.
    trace
        Its trace; None if tracing is off.
    """

    kind: Kind
    request: _Request
    answer: asyncio.Future[Prediction]
    release: Callable[[], object]
    size: int
    request_id: str
    start: float
    decoded: float
    trace: "RequestTrace | None" = None


class Handler:
    """Answers the requests for one model.

    Parameters
    ----------
    bundle
        The newest version.
    settings
        The settings of the process.

    Attributes
    ----------
    name
        Name of the model in paths and messages.
    scorer
        Scores candidates.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.name = settings.model_name or bundle.name
        self.scorer = Scorer(bundle, settings, self.name)
        max_bytes = BUDGET_IN_MAX_REQUESTS * settings.max_request_bytes
        self.reader = FairReader(max_bytes)
        self._explainer = Explainer(self.scorer, settings)
        self._settings = settings
        self._bundle = bundle
        self._fields = self.scorer.fields
        self._only_lists = all(isinstance(field, CategoryList) for field in bundle.signature.fields)
        self._budget = ByteBudget(max_bytes)
        self._operations = TracedOperations(self.name, tls=settings.ssl_certfile is not None)

    def decode_v1(self, payload: object, request: type[v1.V1Request] = v1.V1Request) -> v1.V1Request:
        """Decode a V1 request; see `transformer.protocols.v1.decode`."""
        bundle, limit = self._bundle, self._settings.max_candidates
        return v1.decode(payload, bundle.name, limit, bundle.row_name, request, only_lists=self._only_lists)

    def decode_v1_explain(self, payload: object) -> v1.V1Request:
        """Decode a V1 request for explanations."""
        return self.decode_v1(payload, v1.V1ExplainRequest)

    def decode_v2(self, body: bytes, json_length: str | None, version: str | None = None) -> v2.V2Request:
        """Decode a V2 REST request; see `transformer.protocols.v2.decode`.

        Raises
        ------
        UnknownVersion
            If no verified connection leads to the version.
        """
        self.scorer.check_version(version, recently=True)
        return v2.decode(
            body,
            json_length,
            model_name=self.name,
            output_name=self._bundle.name,
            fields=self._fields,
            max_candidates=self._settings.max_candidates,
            row_name=self._bundle.row_name,
            target=self._bundle.target,
            version=version,
        )

    def decode_message(self, message: pb.ModelInferRequest) -> v2.V2Request:
        """Decode a V2 gRPC request; see `transformer.protocols.grpc_messages.decode`.

        Raises
        ------
        UnknownVersion
            If no verified connection leads to the version.
        """
        self.scorer.check_version(message.model_version or None, recently=True)
        return grpc_messages.decode(
            message,
            output_name=self._bundle.name,
            fields=self._fields,
            max_candidates=self._settings.max_candidates,
            row_name=self._bundle.row_name,
            target=self._bundle.target,
        )

    async def predict(
        self,
        kind: Kind,
        decode: Callable[[], _Request],
        encode: Callable[[_Request, Prediction], _Answer],
        headers: Sequence[tuple[str, str]],
        size: int,
    ) -> tuple[_Answer, str]:
        """Answer one request.

        Parameters
        ----------
        kind, decode, headers, size
            As `begin`.
        encode
            Encodes the prediction in the caller's protocol.

        Returns
        -------
        The encoded answer, and the version that gave it.

        Raises
        ------
        ServiceError
            Of the class that says why there is no prediction.
        """
        progress = self.begin(kind, decode, headers, size)
        try:
            await progress.answer
        except Exception as error:
            self.fail(progress, error)
            raise
        except BaseException:
            self.abandon(progress)
            raise
        return self.end(progress, lambda prediction: encode(progress.request, prediction))

    def begin(
        self, kind: Kind, decode: Callable[[], _Request], headers: Sequence[tuple[str, str]], size: int
    ) -> InProgress[_Request]:
        """Begin to answer a request. `end`, `fail` or `abandon` must follow once its answer is done.

        Parameters
        ----------
        kind
            The request's kind, for the metrics.
        decode
            Decodes the request.
        headers
            The request's headers, or at least those that `transformer.headers.forwarded` looks at.
        size
            The request's size in bytes.

        Raises
        ------
        ServiceError
            If it ends without a prediction already.
        Unusual
            If `decode` raises it.
        """
        tracing = self.tracing
        trace = None if tracing is None else tracing.request(self._operations.by_kind[kind], headers)
        try:
            forward = forwarded(headers) if headers else {}
            if trace is not None:
                forward = TracedHeaders(forward, trace)
            self._budget.reserve(size)
            try:
                start = perf_counter()
                request = decode()
                decoded = perf_counter()
                if trace is not None and request.version and kind is V2_INFER:
                    trace.names_version(self._operations.of_version(request.version))
                answer, release = self._submit(request, forward)
            except BaseException:
                self._budget.release(size)
                raise
        except Unusual:
            # The span never ends, so it is not exported: the other route begins its own.
            raise
        except Exception as error:
            self._count_failure(kind, error, trace)
            raise
        request_id = forward.get("x-request-id", "N.A.")
        return InProgress(kind, request, answer, release, size, request_id, start, decoded, trace)

    def _submit(
        self, request: Request, headers: Mapping[str, str]
    ) -> tuple[asyncio.Future[Prediction], Callable[[], object]]:
        """Return the future answer, and a function that drops the request."""
        if request.explains:
            task = self._explainer.submit(request.candidates, request.explains, headers, request.version)
            return task, task.cancel
        job = self.scorer.submit(request.candidates, headers, request.version)
        return job.answer, partial(self.scorer.release, job)

    def end(
        self, progress: InProgress[_Request], encode: Callable[[Prediction], _Answer]
    ) -> tuple[_Answer, str]:
        """Return the answer to a request whose future answer is done, and the version that gave it.

        Raises
        ------
        ServiceError
            If there is no prediction.
        """
        try:
            scored = perf_counter()
            prediction = progress.answer.result()
            answer = encode(prediction)
        except Exception as error:
            self.fail(progress, error)
            raise
        if progress.trace is not None:
            progress.trace.answered(prediction.version, prediction.rows)
        self.abandon(progress)
        self._observe(progress, scored, prediction)
        return answer, prediction.version

    def fail(self, progress: InProgress[_Request], error: BaseException) -> None:
        """Drop a request that ends with an error."""
        self._count_failure(progress.kind, error, progress.trace)
        self.abandon(progress)

    def abandon(self, progress: InProgress[_Request]) -> None:
        """Drop a request that gets no answer."""
        self._budget.release(progress.size)
        progress.release()
        if progress.trace is not None:
            progress.trace.abandoned()

    def ready(self, version: str | None = None) -> bool:
        """Return True if a prediction, by a version if one is named, would succeed.

        Raises
        ------
        UnknownVersion
            If no verified connection leads to the version.
        """
        self.scorer.start()
        self.scorer.check_version(version)
        return self.scorer.ready and (version is None or version in self.scorer.versions)

    def metadata(self, version: str | None = None) -> dict[str, Any]:
        """Return the model's metadata.

        Raises
        ------
        UnknownVersion
            If no verified connection leads to the version.
        """
        self.scorer.check_version(version)
        return v2.model_metadata(
            self.name,
            self.scorer.versions,
            self._bundle.signature,
            self._bundle.name,
            explains=self._explainer.available,
            target=self._bundle.target,
        )

    @property
    def metadata_headers(self) -> dict[str, str]:
        """Headers of the response with the model's metadata."""
        lists = [field.name for field in self._bundle.signature.fields if isinstance(field, CategoryList)]
        return {LIST_FIELDS_HEADER: json.dumps(lists)} if lists else {}

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI description; see `transformer.protocols.openapi.describe`."""
        return openapi.describe(
            self.name,
            self._bundle.name,
            self._bundle.version,
            self._bundle.signature,
            max_candidates=self._settings.max_candidates,
            max_explained_candidates=self._settings.max_explained_candidates,
            row_name=self._bundle.row_name,
            unknown_category=self._settings.unknown_category,
            explains=self._explainer.available,
            target=self._bundle.target,
        )

    @cached_property
    def monitor(self) -> Monitor:
        """Counts requests and candidates.

        Made when a server starts, because a handler is pickled for the worker processes before. Prometheus
        then sees all series before the first request.
        """
        return Monitor(self.name, self._bundle, self._settings.groups)

    @cached_property
    def tracing(self) -> "Tracing | None":
        """Traces requests; None if tracing is off. Made when a server starts, as `monitor`."""
        return start_tracing(self.name, self._settings.max_batch_rows)

    async def close(self) -> None:
        """Close the connections to the predictor, and export the last spans."""
        await self.scorer.close()
        if self.tracing is not None:
            await self.tracing.close()

    def flush_metrics(self) -> None:
        """Bring the metrics of this process up to date."""
        self.monitor.flush()
        for state, rows in self.scorer.queued().items():
            QUEUED.labels(state).set(rows)

    @contextlib.asynccontextmanager
    async def flushing_metrics(self) -> AsyncIterator[None]:
        """Bring the metrics up to date at intervals while the block runs, for scrapes of other processes."""
        try:
            async with periodically(FLUSH_INTERVAL_S, self.flush_metrics):
                yield
        finally:
            self.flush_metrics()

    def _count_failure(self, kind: Kind, error: BaseException, trace: "RequestTrace | None") -> None:
        if trace is not None:
            trace.failed(error)
        status = error.status if isinstance(error, ServiceError) else HTTPStatus.INTERNAL_SERVER_ERROR
        self.monitor.failed(kind, status.value)

    def _observe(self, progress: InProgress[_Request], scored: float, prediction: Prediction) -> None:
        decoded = progress.decoded
        durations = decoded - progress.start, scored - decoded, perf_counter() - scored
        explained = prediction.explanation is not None
        if explained:
            prediction = replace(prediction, explanation=None)
        self.monitor.answered(progress.kind, durations, prediction, explained=explained)
        if self._settings.enable_latency_logging:
            trace_logger.info(
                "requestId: %s, preprocess_ms: %.3f, predict_ms: %.3f, postprocess_ms: %.3f",
                printable(progress.request_id),
                *(1000 * seconds for seconds in durations),
            )
