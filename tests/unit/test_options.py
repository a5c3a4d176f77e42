"""The transformer refuses a wrong command line when it starts."""

import dataclasses
import re

import pytest
from kserve.model_server import parser as kserve_parser

from transformer.bundle.format import BundleError, load_bundle
from transformer.bundle.signature import Signature
from transformer.options import REFUSED, check_fields, parse, parser
from transformer.settings import Settings
from transformer.upstream.client import PredictorAddress, RestClient, host_and_port

HOSTS = {
    "placement-predictor.default": ("placement-predictor.default", 80),
    "placement-predictor.default:8080": ("placement-predictor.default", 8080),
    "Localhost:1": ("localhost", 1),
    "10.0.0.7": ("10.0.0.7", 80),
    "[::1]:8085": ("::1", 8085),
    "[FE80::1]": ("fe80::1", 80),
    "a_name.svc.cluster.local.:65535": ("a_name.svc.cluster.local.", 65535),
}


@pytest.mark.parametrize(("host", "expected"), HOSTS.items(), ids=HOSTS)
def test_the_predictors_host_is_parsed(host, expected):
    assert parse([f"--predictor_host={host}"]).predictor_host == host
    assert host_and_port(host, use_ssl=False) == expected
    assert host_and_port(host, use_ssl=True)[1] in {expected[1], 443}


@pytest.mark.parametrize(
    "host",
    [
        "http://a", "dns:///a:1", "a/v1", "a:", ":8080", "a:http", "a:0", "a:65536", "a:080000", "a:-1",
        "a:1:2", "::1", "[::1", "[localhost]:80", "user@a", "a b", "a,b", "a#b", "a\n", " ", "a:\u0661",
    ],
    ids=ascii,
)  # fmt: skip
def test_an_invalid_predictor_host_is_refused_at_the_start(host, capsys):
    for arguments in ([], ["--predictor_protocol=grpc-v2"], ["--predictor_use_ssl=true"]):
        with pytest.raises(SystemExit) as ended:
            parse([f"--predictor_host={host}", *arguments])
        assert ended.value.code == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.endswith(f"error: --predictor_host: must be the predictor's host[:port], got {host!r}")


def test_the_predictors_client_accepts_the_same_hosts():
    with pytest.raises(ValueError, match=r"must be the predictor's host\[:port\], got 'http://a'"):
        RestClient(PredictorAddress("http://a", "v1", "placement", "predict_proba"), reconnects=False)


def test_a_shutdown_has_no_delay_unless_one_is_given():
    assert parse(["--predictor_host=a"]).shutdown_delay_seconds == 0
    assert parse(["--predictor_host=a", "--shutdown_delay_seconds=0"]).shutdown_delay_seconds == 0
    assert parse(["--predictor_host=a", "--shutdown_delay_seconds=2.5"]).shutdown_delay_seconds == 2.5


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_a_shutdown_delay_must_be_a_number_of_seconds(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--predictor_host=a", f"--shutdown_delay_seconds={seconds}"])
    assert ended.value.code == 2
    assert "--shutdown_delay_seconds" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_must_be_a_positive_number_of_seconds(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--predictor_host=a", f"--client_timeout_seconds={seconds}"])
    assert ended.value.code == 2
    assert "--client_timeout_seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "fields"), [("gender", ("gender",)), ("gender,workex", ("gender", "workex"))]
)
def test_fixed_fields_are_separated_by_commas(value, fields):
    assert parse(["--predictor_host=a"]).fixed_fields == ()
    assert parse(["--predictor_host=a", f"--fixed_fields={value}"]).fixed_fields == fields


@pytest.mark.parametrize("argument", ["--fixed_fields", "--groups"])
def test_a_field_that_an_argument_names_must_be_one_of_a_version(argument, trained_bundle):
    bundle = load_bundle(trained_bundle)
    check_fields(parse(["--predictor_host=a", f"{argument}=gender,workex"]), bundle)
    settings = parse(["--predictor_host=a", f"{argument}=gendr"])
    with pytest.raises(BundleError, match=rf"^{argument}: must be some of gender, .*, got 'gendr'$"):
        check_fields(settings, bundle)


@pytest.mark.parametrize("argument", ["--fixed_fields", "--groups"])
def test_an_argument_may_name_a_field_that_the_newest_version_dropped(argument, trained_bundle):
    before = load_bundle(trained_bundle)
    fields = tuple(field for field in before.signature.fields if field.name != "gender")
    newest = before.model_copy(
        update={"version": "v2", "signature": Signature(fields=fields), "previous": (before,)}
    )
    check_fields(parse(["--predictor_host=a", f"{argument}=gender"]), newest)


@pytest.mark.parametrize(
    ("argument", "least"), [("max_explained_candidates", 0), ("max_explanation_rows", 1)]
)
def test_limits_of_explanations_have_a_minimum(argument, least, capsys):
    assert getattr(parse(["--predictor_host=a", f"--{argument}={least}"]), argument) == least
    for value in (least - 1, "many"):
        with pytest.raises(SystemExit):
            parse(["--predictor_host=a", f"--{argument}={value}"])
        assert f"must be {least} or more, got {value}" in capsys.readouterr().err


def test_an_access_log_format_without_its_package_is_refused_at_the_start(capsys):
    with pytest.raises(SystemExit):
        parse(["--predictor_host=a", "--access_log_format=%(R)s"])
    assert "--access_log_format: needs the package asgi-logger" in capsys.readouterr().err


@pytest.mark.parametrize("argument", REFUSED)
def test_an_argument_of_kserve_that_has_no_effect_is_refused(argument, capsys):
    value = [] if argument == "--enable_predictor_health_check" else ["1"]
    with pytest.raises(SystemExit) as ended:
        parse(["--predictor_host=a", argument, *value])
    assert ended.value.code == 2
    assert f"{argument}: has no effect here; {REFUSED[argument]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--workers", "0"),
        ("--workers", "-1"),
        ("--max_asyncio_workers", "0"),
        ("--predictor_request_timeout_seconds", "0"),
        ("--http_port", "65536"),
        ("--grpc_port", "0"),
        ("--timeout-keep-alive", "-1"),
        ("--max_batch_rows", "0"),
    ],
)
def test_a_number_out_of_range_is_refused_with_what_is_allowed(argument, value, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--predictor_host=a", f"{argument}={value}"])
    assert ended.value.code == 2
    assert re.search(rf"{argument}: .*must be .*, got {value}(;|$)", capsys.readouterr().err.strip())


def test_every_setting_is_an_argument_with_the_same_default():
    settings = parse(["--predictor_host=a"])
    for field in dataclasses.fields(Settings):
        if field.default is not dataclasses.MISSING:
            assert getattr(settings, field.name) == field.default, field.name


def test_every_argument_of_kserve_is_a_setting_or_refused():
    names = {field.name for field in dataclasses.fields(Settings)}
    refused = {argument.removeprefix("--") for argument in REFUSED}
    # KServe's server reads this argument itself.
    others = {action.dest for action in kserve_parser._actions} - names - refused
    assert others == {"configure_logging"}


def test_settings_cannot_be_changed():
    settings = parse(["--predictor_host=a"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.workers = 2  # type: ignore[misc]


def test_the_help_names_no_default_where_there_is_none():
    text = " ".join(parser().format_help().split())
    assert "default: None" not in text
    assert "(default: connection; for grpc-v2 request)" in text


def test_headers_for_the_predictor_have_names_in_lower_case():
    options = [
        "--predictor_host=a",
        "--predictor_header=Seldon-Model:placement",
        "--predictor_header=x-a: b: c ",
    ]
    assert parse(options).predictor_headers == (("seldon-model", "placement"), ("x-a", "b: c"))


HEADERS = {
    "seldon-model": "must be name:value in ASCII, such as seldon-model:placement, got 'seldon-model'",
    "a:": "must be name:value in ASCII, such as seldon-model:placement, got 'a:'",
    "a b:c": "must be name:value in ASCII, such as seldon-model:placement, got 'a b:c'",
    "a:b\r\nc:d": "must be name:value in ASCII, such as seldon-model:placement, got 'a:b\\r\\nc:d'",
    "a:\xe9": "must be name:value in ASCII, such as seldon-model:placement, got 'a:\xe9'",
    "x-bin:b": "must be name:value in ASCII, such as seldon-model:placement, got 'x-bin:b'",
    "grpc-timeout:1S": "must be name:value in ASCII, such as seldon-model:placement, got 'grpc-timeout:1S'",
    "Host:b": "host: the transformer sets or forwards it itself, expected another",
    "content-length:1": "content-length: the transformer sets or forwards it itself, expected another",
    "traceparent:1": "traceparent: the transformer sets or forwards it itself, expected another",
    "x-b3-sampled:1": "x-b3-sampled: the transformer sets or forwards it itself, expected another",
}


@pytest.mark.parametrize(("header", "told"), HEADERS.items(), ids=map(ascii, HEADERS))
def test_an_invalid_header_for_the_predictor_is_refused_at_the_start(header, told, capsys):
    with pytest.raises(SystemExit):
        parse(["--predictor_host=a", f"--predictor_header={header}"])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: argument --predictor_header: {told}")
