"""The transformer's command line: KServe's arguments and its own."""

import argparse
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from kserve.model_server import parser as kserve_parser

from transformer.batching.pool import PoolSettings
from transformer.bundle.format import BundleError
from transformer.upstream.client import host_and_port

#: Where KServe's storage initializer puts the bundle.
MOUNT = "/mnt/models"
#: Seconds that the predictor has for one request; KServe's own default is 600.
PREDICTOR_TIMEOUT_S = 10


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m transformer``."""
    parser = argparse.ArgumentParser(
        prog="python -m transformer",
        parents=[kserve_parser],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Serve a bundle's encoding in front of a stock sklearn predictor, on KServe.",
        epilog="The bundle is read from the directory that the environment variable STORAGE_URI names "
        f"({MOUNT} if it is not set): KServe's storage initializer puts it there.",
    )
    parser.set_defaults(
        model_name=None, predictor_request_timeout_seconds=PREDICTOR_TIMEOUT_S, enable_latency_logging=False
    )
    own = parser.add_argument_group("the transformer's own")
    own.add_argument(
        "--host", help="address to listen to, over REST and gRPC; every one of this machine if not given"
    )
    own.add_argument(
        "--predictor_output",
        default="predict_proba",
        help="V2 output of the predictor that holds the probabilities: predict_proba for kserve-mlserver, "
        "output-0 for kserve-sklearnserver",
    )
    own.add_argument(
        "--predictor_connections",
        type=_positive,
        default=PoolSettings.connections,
        help="connections to the predictor, each of which carries one call at a time",
    )
    own.add_argument(
        "--predictor_connection_age",
        type=_seconds,
        default=PoolSettings.max_age_s,
        help="seconds after which a connection is renewed, give or take a fifth: new replicas get a share, "
        "and a predictor is left during its preStop pause, which must be longer",
    )
    own.add_argument(
        "--verify",
        choices=["connection", "request"],
        help="when it is verified which version is behind: once for each connection (default), or with every "
        "request, for predictors behind a proxy that balances requests (Knative, a mesh) and for grpc-v2, "
        "where it is the default",
    )
    own.add_argument(
        "--unknown_model",
        choices=["serve", "refuse"],
        default=PoolSettings.unknown_model,
        help="what becomes of a predictor whose encoding is known and whose model is not: its answers are "
        "labelled unverified, or it is not used",
    )
    own.add_argument(
        "--unknown_category",
        choices=["refuse", "ignore"],
        default="refuse",
        help="what becomes of a value that the signature does not list: an error, or encoded as none",
    )
    own.add_argument(
        "--max_batch_rows",
        type=_positive,
        default=PoolSettings.max_batch_rows,
        help="candidates that one call to the predictor may carry: whatever waits goes together",
    )
    own.add_argument(
        "--max_waiting_rows",
        type=_positive,
        default=PoolSettings.max_waiting_rows,
        help="candidates that may wait for the predictor; more get 503",
    )
    own.add_argument(
        "--max_candidates", type=_positive, default=10_000, help="candidates that one request may carry"
    )
    own.add_argument(
        "--max_request_bytes",
        type=_positive,
        default=8 * 2**20,
        help="bytes that one request's body or message may have",
    )
    own.add_argument(
        "--client_timeout_seconds",
        type=_seconds,
        default=20.0,
        help="seconds that a REST client has for a request's head and for each 10,000 bytes of its body "
        "(else 408), and to take each 10,000 bytes of its answers",
    )
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line (or `arguments`).

    An error ends the process with status 2, as argparse does.
    """
    options = parser().parse_args(arguments)
    if not options.predictor_host:
        parser().error("--predictor_host: is required, expected the predictor's host[:port]")
    try:
        host_and_port(options.predictor_host, use_ssl=options.predictor_use_ssl)
    except ValueError as error:
        parser().error(f"--predictor_host: {error}")
    if options.access_log_format and find_spec("asgi_logger") is None:
        parser().error("--access_log_format: needs the package asgi-logger, which is not installed")
    over_grpc = options.predictor_protocol == "grpc-v2"
    if over_grpc and options.verify == "connection":
        parser().error("--verify: must be request for grpc-v2, whose connections cannot be told apart")
    options.verify = options.verify or ("request" if over_grpc else "connection")
    return options


def bundle_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """The directory that `STORAGE_URI` names.

    Raises
    ------
    BundleError
        If it names something that is not on this machine.
    """
    uri = environment.get("STORAGE_URI") or MOUNT
    parts = urlsplit(uri)
    if parts.scheme not in {"", "file"}:
        raise BundleError(
            f"STORAGE_URI: must be a directory here, got {uri}; "
            "in a cluster KServe's storage initializer downloads it and rewrites the variable"
        )
    return Path(parts.path)


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return int(text)
