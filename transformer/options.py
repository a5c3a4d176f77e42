"""The command line of ``python -m transformer``: KServe's arguments and its own, read into `Settings`."""

import argparse
import copy
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from kserve.model_server import parser as kserve_parser

from transformer.bundle.format import Bundle, BundleError
from transformer.headers import predictor_header
from transformer.settings import Settings
from transformer.upstream.client import host_and_port

#: Directory that KServe's storage initializer downloads the bundle to.
MOUNT = "/mnt/models"
#: KServe's arguments that have no effect here, and what to do instead. Giving one is an error.
REFUSED = {
    "--protocol": "set --predictor_protocol",
    "--grpc_max_send_message_length": "set --max_candidates, which bounds the size of responses",
    "--grpc_max_receive_message_length": "set --max_request_bytes, which limits bodies and messages",
    "--predictor_request_retries": "remove it; a retry budget bounds the retries of dropped calls",
    "--enable_predictor_health_check": "remove it; readiness always includes the predictor",
    "--max_threads": "remove it; gRPC calls are answered in the event loop",
}
#: Settings that are lists of fields, and all that are lists.
_FIELDS = ("fixed_fields", "groups")
_LISTS = (*_FIELDS, "predictor_headers")
_FLAGS = {"--enable_predictor_health_check"}
_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Settings)
    if field.default is not dataclasses.MISSING
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m transformer",
        # A copy, because the parser takes over the actions of its parents and changes them.
        parents=[copy.deepcopy(kserve_parser)],
        conflict_handler="resolve",
        formatter_class=_HelpFormatter,
        description="Serve a bundle's encoding in front of a stock sklearn predictor, on KServe.",
        epilog="The environment variable STORAGE_URI names the bundle's directory "
        f"(default: {MOUNT}). In a cluster, KServe's storage initializer downloads the bundle to it.",
    )
    # KServe reads the certificate's default from the environment, and the default of `verify` depends. The
    # help would show () as the default of a list.
    kept = {"ssl_certfile", "ssl_keyfile", "verify", *_LISTS}
    parser.set_defaults(**{name: value for name, value in _DEFAULTS.items() if name not in kept})
    for argument, instead in REFUSED.items():
        parser.add_argument(
            argument,
            action=_Refused,
            instead=instead,
            nargs=0 if argument in _FLAGS else None,
            help=f"refused: {instead}",
            default=argparse.SUPPRESS,
        )
    _add_own_arguments(parser.add_argument_group("the transformer's own"))
    return parser


def _add_own_arguments(own: argparse._ArgumentGroup) -> None:
    def add(argument: str, help_text: str, **how: Any) -> None:  # noqa: ANN401 (argparse's own)
        own.add_argument(argument, default=_DEFAULTS[argument.removeprefix("--")], help=help_text, **how)

    add("--host", "address to listen on, for REST and gRPC; all addresses if not given")
    add(
        "--predictor_output",
        "V2 output of the predictor that holds the probabilities: predict_proba for kserve-mlserver, "
        "output-0 for kserve-sklearnserver",
    )
    own.add_argument(
        "--predictor_header",
        dest="predictor_headers",
        action="append",
        help="a header (gRPC: metadata) in each call to the predictor, for a proxy's routes; can be repeated",
        type=_header,
        metavar="NAME:VALUE",
    )
    add(
        "--predictor_connections",
        "connections to the predictor; each carries one call at a time",
        type=_positive,
    )
    add(
        "--predictor_connection_age",
        "seconds after which a connection is renewed, plus or minus 20%%: new replicas get their share, and "
        "a terminating predictor loses its connections during its preStop pause, which must be longer",
        type=_seconds,
    )
    own.add_argument(
        "--verify",
        choices=["connection", "request"],
        help="when the predictor's version is verified: once for each connection, or in every call, for "
        "predictors behind a proxy that balances requests (Knative, a mesh) and for grpc-v2 (default: "
        "connection; for grpc-v2 request)",
    )
    add(
        "--unknown_model",
        "a model that matches a known encoding but no known version: serve it as `unverified`, or refuse it",
        choices=["serve", "refuse"],
    )
    add(
        "--unknown_category",
        "a category that the signature does not list: refuse it, or ignore it like DictVectorizer",
        choices=["refuse", "ignore"],
    )
    add("--max_batch_rows", "maximum candidates per predictor call", type=_positive)
    add("--max_waiting_rows", "maximum candidates in the queue; beyond it requests get 503", type=_positive)
    add("--max_candidates", "maximum candidates per request", type=_positive)
    add(
        "--max_explained_candidates",
        "maximum candidates per request for explanations; 0 turns explanations off",
        type=_not_negative,
    )
    add(
        "--max_explanation_rows",
        "maximum rows that are scored for exact contributions of one candidate; with more fields, "
        "contributions are estimated from permutations",
        type=_positive,
    )
    add(
        "--max_waiting_explanation_rows",
        "maximum rows that explanations in progress need; beyond it requests for explanations get 503",
        type=_positive,
    )
    own.add_argument(
        "--fixed_fields",
        help="fields that explanations never propose to change, separated by commas; none if not given",
        type=_names,
        metavar="FIELD,FIELD",
    )
    add("--max_request_bytes", "maximum bytes of a REST body or a gRPC message", type=_positive)
    add(
        "--client_timeout_seconds",
        "seconds a REST client has for a request's head, for each 10,000 bytes of its body (else 408), and "
        "to read each 10,000 bytes of responses",
        type=_seconds,
    )
    add(
        "--shutdown_delay_seconds",
        "seconds after SIGTERM in which requests are still accepted, and each REST response closes its "
        "connection; in Kubernetes the pod is removed from all endpoint lists meanwhile",
        type=_delay,
    )
    own.add_argument(
        "--groups",
        help="fields whose values are counted by decision in the metrics, separated by commas; none if not "
        "given",
        type=_names,
        metavar="FIELD,FIELD",
    )


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Read the settings from the command line (or `arguments`).

    An invalid argument ends the process with status 2, as argparse does.
    """
    reader = parser()
    options = vars(reader.parse_args(arguments))
    _check(options, reader.error)
    grpc = options["predictor_protocol"] == "grpc-v2"
    if grpc and options["verify"] == "connection":
        reader.error("--verify: must be request for grpc-v2, because a gRPC channel may use any connection")
    options["verify"] = options["verify"] or ("request" if grpc else "connection")
    options |= {name: tuple(options[name] or ()) for name in _LISTS}
    return Settings(**{field.name: options[field.name] for field in dataclasses.fields(Settings)})


def bundle_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory that `STORAGE_URI` names.

    Raises
    ------
    BundleError
        If it is not a local directory.
    """
    uri = environment.get("STORAGE_URI") or MOUNT
    parts = urlsplit(uri)
    if parts.scheme not in {"", "file"}:
        raise BundleError(
            f"STORAGE_URI: must be a local directory, got {uri}; "
            "in a cluster KServe's storage initializer downloads it and rewrites the variable"
        )
    return Path(parts.path)


def _check(options: Mapping[str, Any], fail: Callable[[str], NoReturn]) -> None:
    """Check KServe's arguments, which its own parser takes with any value."""
    host = options["predictor_host"]
    if not host:
        fail("--predictor_host: required, expected the predictor's host[:port]")
    try:
        host_and_port(host, use_ssl=options["predictor_use_ssl"])
    except ValueError as error:
        fail(f"--predictor_host: {error}")
    if options["workers"] < 1:
        fail(
            f"--workers: must be 1 or more, got {options['workers']}; KServe sets it to containerConcurrency "
            "unless the transformer's args have --workers"
        )
    for name in ("max_asyncio_workers", "predictor_request_timeout_seconds"):
        if options[name] is not None and options[name] < 1:
            fail(f"--{name}: must be 1 or more, got {options[name]}")
    for name in ("http_port", "grpc_port"):
        if not 0 < options[name] < 2**16:
            fail(f"--{name}: must be 1 to 65535, got {options[name]}")
    if options["timeout_keep_alive"] < 0:
        fail(f"--timeout-keep-alive: must be 0 or more, got {options['timeout_keep_alive']}")
    if options["access_log_format"] and find_spec("asgi_logger") is None:
        fail("--access_log_format: needs the package asgi-logger, which is not installed")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an argument, except of arguments without one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Refused(argparse.Action):
    """An argument of KServe's that would have no effect."""

    def __init__(self, *args: Any, instead: str, **kwargs: Any) -> None:  # noqa: ANN401 (argparse's own)
        super().__init__(*args, **kwargs)
        self._instead = instead

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"{self.option_strings[0]}: has no effect here; {self._instead}")


def check_fields(settings: Settings, bundle: Bundle) -> None:
    """Check that the fields that arguments name exist.

    Raises
    ------
    BundleError
        If no version in the bundle has one of them.
    """
    known = {name: None for version in bundle.versions for name in version.signature.names}
    for argument in _FIELDS:
        for name in getattr(settings, argument):
            if name not in known:
                raise BundleError(f"--{argument}: must be some of {', '.join(known)}, got {name!r}")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be different names, separated by commas, got {text!r}")
    return names


def _header(text: str) -> tuple[str, str]:
    try:
        return predictor_header(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def _delay(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return number


def _positive(text: str) -> int:
    return _at_least(1, text)


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more, got {text}")
    return int(text)
