"""The settings of one transformer process: typed, made once by `transformer.options.parse`, never changed."""

from dataclasses import dataclass
from typing import Literal

from transformer.bundle.validation import UnknownCategory

PredictorProtocol = Literal["v1", "v2", "grpc-v2"]
Verify = Literal["connection", "request"]
UnknownModel = Literal["serve", "refuse"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings and their defaults. Names are those of the command line's arguments.

    Attributes
    ----------
    predictor_host
        The predictor's ``host[:port]``.
    predictor_protocol
        Inference protocol of the hop to the predictor.
    predictor_output
        V2 output of the predictor that holds `predict_proba`.
    predictor_use_ssl
        Speak TLS to the predictor.
    predictor_headers
        Names and values of headers (gRPC: metadata) in every call to the predictor, for a proxy's routes.
    predictor_request_timeout_seconds
        Deadline of a request. KServe's own default is 600.
    predictor_connections
        Connections to the predictor. Each carries one call at a time.
    predictor_connection_age
        Seconds after which a connection is renewed, plus or minus 20 %. New replicas get their share, and a
        predictor that leaves its Service loses its connections during its preStop pause: MLServer 1.7 never
        answers requests that it holds when it is told to stop. A renewal costs about 30 ms.
    verify
        When the version behind the predictor is verified: once for each connection, or in every call.
    unknown_model
        Serve a model that matches a known encoding and no known version, or refuse it.
    unknown_category
        Refuse a category that the signature does not list, or encode it as zeros like DictVectorizer.
    max_batch_rows
        Maximum candidates per predictor call.
    max_waiting_rows
        Maximum candidates in the queue.
    max_candidates
        Maximum candidates per request.
    max_explained_candidates
        Maximum candidates per request for explanations; 0 turns explanations off.
    max_explanation_rows
        Maximum rows that are scored for exact contributions of one candidate. With more fields, contributions
        are estimated from permutations.
    max_waiting_explanation_rows
        Maximum rows that explanations in progress need.
    fixed_fields
        Fields that explanations never propose to change.
    max_request_bytes
        Maximum bytes of a REST body or a gRPC message.
    client_timeout_seconds
        Seconds a REST client has for a request's head, for each 10,000 bytes of its body, and to read each
        10,000 bytes of responses.
    shutdown_delay_seconds
        Seconds after SIGTERM in which requests are still accepted, and REST responses close connections.
    groups
        Fields whose values are counted by decision in the metrics.
    model_name
        Name under which the model is served; the bundle's name if None.
    host
        Address to listen on; all if None.
    workers
        Processes that serve REST.
    max_asyncio_workers, event_loop, timeout_keep_alive, ssl_certfile, ssl_keyfile
        As KServe's arguments of these names.
    enable_docs_url
        Serve ``/docs``.
    enable_latency_logging
        Log the time of each request.
    access_log_format
        Format of an access log line; needs the package asgi-logger.
    log_config_file
        Logging configuration, as `kserve.logging.configure_logging` takes it.
    """

    predictor_host: str
    predictor_protocol: PredictorProtocol = "v1"
    predictor_output: str = "predict_proba"
    predictor_use_ssl: bool = False
    predictor_headers: tuple[tuple[str, str], ...] = ()
    predictor_request_timeout_seconds: float = 10
    predictor_connections: int = 4
    predictor_connection_age: float = 5.0
    verify: Verify = "connection"
    unknown_model: UnknownModel = "serve"
    unknown_category: UnknownCategory = "refuse"

    max_batch_rows: int = 256
    max_waiting_rows: int = 50_000
    max_candidates: int = 10_000
    max_explained_candidates: int = 16
    max_explanation_rows: int = 65_536
    max_waiting_explanation_rows: int = 262_144
    fixed_fields: tuple[str, ...] = ()
    max_request_bytes: int = 8 * 2**20
    client_timeout_seconds: float = 20.0
    shutdown_delay_seconds: float = 0.0
    groups: tuple[str, ...] = ()

    model_name: str | None = None
    host: str | None = None
    http_port: int = 8080
    grpc_port: int = 8081
    enable_grpc: bool = True
    workers: int = 1
    max_asyncio_workers: int | None = None
    event_loop: str = "auto"
    timeout_keep_alive: int = 65
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    enable_docs_url: bool = False
    enable_latency_logging: bool = False
    access_log_format: str | None = None
    log_config_file: str | None = None
