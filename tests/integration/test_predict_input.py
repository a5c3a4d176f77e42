"""`placement predict` reads files in constant memory, and reports problems by their place in the file."""

import asyncio
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from inferenceservice.gateway import GatewayError
from placement import candidate_file, predict_command
from placement.client import Busy, ClientError, Refused, connect
from placement.predictions_file import OutputError
from tests.support.validating_client import ValidatingClient
from training.candidates import SAMPLE, SIGNATURE
from training.table import Content, DataError, Table
from transformer.bundle.signature import Number, Signature

FIELDS = SIGNATURE.datatypes
ROW = {name: str(value) for name, value in SAMPLE.items()}
#: A signature with a field that may be missing.
WITH_DEFAULT = Signature(
    fields=tuple(
        field.model_copy(update={"default": 60.0}) if field.name == "mba_p" else field
        for field in SIGNATURE.fields
    )
)


@pytest.fixture(params=["v1", "v2", "grpc"])
def protocol(request):
    return request.param


def table(*rows, columns=None, separator=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(ROW), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def test_each_row_gets_its_prediction(predict, write, protocol):
    result = predict(write(table(*[ROW] * 1234)), "--json", protocol=protocol)
    assert (result.status, result.err) == (0, "")
    assert (
        json.loads(result.out)
        == [{"placement": True, "placement_probability": 0.5, "model_version": "v1"}] * 1234
    )


def test_a_request_to_a_busy_service_is_sent_again(predict, write, monkeypatch):
    busy = iter([True, True, False])
    real = ValidatingClient.predict

    async def sometimes(self, candidates):
        if next(busy):
            raise Busy("the queue is full", after_s=0.0)
        return await real(self, candidates)

    monkeypatch.setattr(ValidatingClient, "predict", sometimes)
    done = predict(write(table(ROW)), "--json")
    assert (done.status, done.asked) == (0, 1)


def test_the_command_gives_up_on_a_service_that_stays_busy(predict, write, monkeypatch):
    async def never(_, __):
        raise Busy("the queue is full", after_s=0.0)

    monkeypatch.setattr(ValidatingClient, "predict", never)
    done = predict(write(table(ROW)))
    assert done.status == 1
    assert "the queue is full" in done.err


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + table(ROW),
        table(ROW, columns=sorted(ROW, reverse=True)),
        table({"sl_no": "1", **ROW}, columns=["sl_no", *ROW]),
        table(ROW).replace("\r\n", "\n\n"),
        table(ROW).replace("\r\n", "\r"),
    ],
    ids=["byte order mark", "another order", "a foreign column", "empty lines", "carriage returns"],
)
def test_every_table_that_training_reads_is_read(predict, write, content):
    path = write(content)
    result = predict(path)
    assert (result.status, result.asked) == (0, 1)
    assert result.err == (f"{path}: passed over: 1 other column (sl_no)" if "sl_no" in content else "")
    assert len(result.out.splitlines()) == 2


@pytest.mark.parametrize("name", ["a.csv", "a.json", "b.json"])
def test_a_file_without_rows_is_an_error_as_it_is_in_the_service(predict, write, name):
    content = {"a.csv": table(), "a.json": "[]", "b.json": '{"instances": []}'}[name]
    path = write(content, name)
    result = predict(path, "--json")
    assert (result.status, result.out, result.asked) == (1, "", 0)
    assert result.err == f"{path}: must have at least one row, got none"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("7_1", "must be a finite number, got '7_1'"),
        ("nan", "must be a finite number, got 'nan'"),
        ("-inf", "must be a finite number, got '-inf'"),
        ("1e999", "must be a finite number, got '1e999'"),
        ("many", "must be a finite number, got 'many'"),
        ("58,66", "must be a finite number, got '58,66'; for decimal commas add --decimal ,"),
        ("9" * 1000 + "x", "must be a finite number, got '" + "9" * 38 + "…"),
    ],
)
def test_a_cell_that_is_not_a_number_is_refused_before_any_request(predict, write, value, message):
    path = write(table(ROW, {**ROW, "ssc_p": value}))
    result = predict(path)
    assert (result.status, result.out, result.asked) == (1, "", 0)
    assert result.err == f"{path}: row 2 (line 3), column 'ssc_p': {message}"


def test_twenty_problems_are_listed_and_the_rest_is_counted(predict, write):
    rows = [ROW] * 700 + [{**ROW, "mba_p": "?", "ssc_p": "?"}] * 700
    lines = predict(write(table(*rows))).err.splitlines()
    assert len(lines) == 21
    assert "row 701 (line 702), column 'ssc_p': must be a finite number" in lines[0]
    assert "row 701 (line 702), column 'mba_p': must be a finite number" in lines[1]
    assert lines[-1] == "and 1380 more problems"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have a line of column names and at least one row"),
        ("ssc_p," + table(ROW), "duplicate column 'ssc_p'"),
        (table(ROW) + "M,71\n", "row 2 (line 3): must have 12 cells, got 2"),
        (table(ROW).rstrip() + ",more\n", "row 1 (line 2): must have 12 cells, got 13"),
        (
            table(ROW, {**ROW, "gender": "ä"}).encode("latin-1"),
            "line 3: must be UTF-8; name its encoding, for example --encoding latin-1",
        ),
        (b"\xff\xfea\x00,", "line 1: must be UTF-16-LE"),
        (
            table({**ROW, "gender": "M" * 200_000}),
            "line 2: a cell has more than 131,072 characters; is a closing quote missing?",
        ),
        (table(ROW) + '"open', "line 3: a quoted cell has no closing quote"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 80 else "",
)
def test_a_malformed_table_is_refused_in_one_line(predict, write, content, message):
    path = write(content)
    result = predict(path)
    assert (result.status, result.asked) == (1, 0)
    assert result.err == f"{path}: {message}"


def test_a_table_with_other_columns_is_refused(predict, write):
    result = predict(write("a,b\n1,2\n"))
    (line,) = result.err.splitlines()
    assert line.endswith("a.csv: columns " + ", ".join(map(repr, ROW)) + " are missing, found: a, b")


@pytest.mark.parametrize("name", ["MBA_P", "mba p", "mba-p", "mbaP"])
def test_a_column_that_differs_from_a_fields_only_in_spelling_is_refused(predict, write, name):
    columns = [name if column == "mba_p" else column for column in ROW]
    path = write(table(dict(zip(columns, ROW.values(), strict=True)), columns=columns))
    result = predict(path, signature=WITH_DEFAULT)
    assert (result.status, result.asked) == (1, 0)
    assert result.err == f"{path}: column {name!r} must be spelled 'mba_p'"


def test_a_key_that_differs_from_a_fields_only_in_spelling_is_refused(predict, write, protocol):
    """Without this, the prediction would be that of the default."""
    candidate = {**SAMPLE, "MBA_P": 61.3}
    del candidate["mba_p"]
    path = write(json.dumps([SAMPLE, candidate]), "a.json")
    result = predict(path, protocol=protocol, signature=WITH_DEFAULT)
    assert (result.status, result.asked) == (1, 0)
    assert result.err == f"{path}: row 2, field 'mba_p': must be spelled 'mba_p', got 'MBA_P'"


def test_a_column_passed_over_beside_a_field_without_one_is_a_warning(predict, write):
    columns = ["percentage" if column == "mba_p" else column for column in ROW]
    path = write(table(dict(zip(columns, ROW.values(), strict=True)), columns=columns))
    result = predict(path, signature=WITH_DEFAULT)
    assert result.status == 0
    assert result.err.splitlines() == [
        f"{path}: WARNING: all rows get the default of 'mba_p'; columns passed over: 'percentage'",
        f"{path}: passed over: 1 other column (percentage)",
    ]


def test_a_missing_file_is_refused(predict, tmp_path):
    for name in ("none.csv", "none.json"):
        assert predict(tmp_path / name).err == f"{tmp_path / name}: No such file or directory"


# Problems that the service finds


def test_problems_from_the_service_are_reported_by_row_and_column(predict, write, protocol):
    bad = {**ROW, "ssc_p": "710", "gender": "X; instances[3].mba_p: n"}
    path = write(table(*[ROW] * 1200, bad, {**ROW, "mba_p": ""}))
    result = predict(path, protocol=protocol)
    assert result.status == 1
    assert result.err.splitlines() == [
        f"{path}: row 1201 (line 1202), column 'gender': must be one of M, F, got 'X; instances[3].mba_p: n'",
        f"{path}: row 1201 (line 1202), column 'ssc_p': must be 0 to 100, got 710.0",
        f"{path}: row 1202 (line 1203), column 'mba_p': is required, expected 0 to 100",
    ]


@pytest.mark.parametrize(("rows", "count"), [(50, "and 30 more problems"), (21, "and 1 more problem")])
def test_the_services_count_of_further_problems_is_reported(rows, count, predict, write, protocol):
    lines = predict(write(table(*[{**ROW, "ssc_p": "710"}] * rows)), protocol=protocol).err.splitlines()
    assert len(lines) == 21
    assert lines[19].endswith("row 20 (line 21), column 'ssc_p': must be 0 to 100, got 710.0")
    assert lines[20] == count


def test_a_missing_column_is_reported_once(predict, write, protocol):
    columns = [name for name in ROW if name not in ("ssc_p", "workex")]
    row = {name: ROW[name] for name in columns}
    path = write(table(*[{**row, "gender": "X"}] * 30, columns=columns))
    found = ", ".join(columns)
    assert predict(path, protocol=protocol).err.splitlines() == [
        f"{path}: columns 'ssc_p', 'workex' are missing, found: {found}",
    ]


def test_a_column_with_a_default_may_be_missing(predict, write, protocol):
    columns = [name for name in ROW if name != "mba_p"]
    content = table({name: ROW[name] for name in columns}, columns=columns)
    result = predict(write(content), protocol=protocol, signature=WITH_DEFAULT)
    assert (result.status, result.err) == (0, "")


def test_problems_of_a_json_list_are_reported_by_candidate_and_field(predict, write, protocol):
    path = write(json.dumps([SAMPLE] * 1200 + [{**SAMPLE, "ssc_p": "high"}]), "a.json")
    told = predict(path, protocol=protocol).err
    assert told.startswith(f"{path}: row 1201, field 'ssc_p': must be a number, ")
    assert told.endswith(", got a string 'high'")


@pytest.mark.parametrize(
    "value",
    ["x'; instances[0].mba_p: \"", "\\" * 60, "'" * 60, "é" * 60, '"; inputs.ssc_p[2]: ', "a" * 38 + "\\'b"],
)
def test_a_value_that_looks_like_an_error_message_is_reported_once(predict, write, protocol, value):
    path = write(json.dumps([{**SAMPLE, "gender": value, "workex": value}]), "a.json")
    lines = predict(path, protocol=protocol).err.splitlines()
    assert [line.partition(": must")[0] for line in lines] == [
        f"{path}: row 1, field 'gender'",
        f"{path}: row 1, field 'workex'",
    ]


def json_file(fields):
    table = Table("a.json", Content([], [], 0, is_json=True))
    return candidate_file.CandidateFile(table, iter(()), 0, fields)


def test_field_names_with_special_characters_are_found_in_messages():
    source = json_file({"a": "FP64", "a.b": "FP64", "(": "BYTES"})
    chunk = [candidate_file.LocatedCandidate("row 1, field", {})]
    text = "instances[0].a.b: is required; inputs.([0]: is required; inputs.candidates[0].a: is required"
    assert candidate_file.locate_problems(text, chunk, source).splitlines() == [
        "a.json: row 1, field 'a.b': is required",
        "a.json: row 1, field '(': is required",
        "a.json: row 1, field 'a': is required",
    ]


@pytest.mark.parametrize(
    "message", ["the predictor is not ready: see instances[0].ssc_p: x", "instances[7].ssc_p: x", ""]
)
def test_a_message_that_names_no_candidate_is_unchanged(message):
    source = json_file(FIELDS)
    assert candidate_file.locate_problems(message, [], source) == message


# JSON


def test_a_candidate_a_list_and_a_v1_request_are_read(predict, write):
    for content in (SAMPLE, [SAMPLE], {"instances": [SAMPLE]}):
        assert predict(write(json.dumps(content), "a.json")).asked == 1
    assert predict(write("\ufeff" + json.dumps(SAMPLE), "a.json")).asked == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is not JSON: depth limit exceeded"),
        (
            b'[{"ssc_p": NaN}]',
            "is not JSON: NaN at line 1 column 12: JSON has no such number; send null for a missing value",
        ),
        (b'[{"ssc_p": 1e999}]', "is not JSON: number is infinity"),
        (b'[{"gender": "\xff"}]', "is not JSON: must be UTF-8"),
        (b"", "is not JSON: "),
        (b"7", "must be an object of fields and values, a list of them, JSON lines, "),
        (b'{"instances": 7}', "must be an object of fields and values, a list of them, JSON lines, "),
        (b"[{}, 7]", "row 2: must be an object of fields and values"),
    ],
    ids=["deep", "NaN", "infinity", "latin-1", "empty", "a number", "no instances", "a number in a list"],
)
def test_a_file_that_is_not_json_of_candidates_is_refused_in_one_line(
    predict, write, monkeypatch, content, message
):
    path = write(content, "a.json")
    result = predict(path)
    assert (result.status, result.asked) == (1, 0)
    assert result.err.startswith(f"{path}: {message}")
    assert len(result.err.splitlines()) == 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert predict("-").err.startswith(f"standard input: {message}")


def test_a_value_that_is_nested_too_deep_is_refused(predict, write, protocol):
    path = write(b'{"gender": ' + b"[" * 900 + b"]" * 900 + b"}", "a.json")
    assert predict(path, protocol=protocol).err == (
        "a candidate cannot be sent as JSON: Recursion limit reached"
    )


# Memory and start


def test_a_long_table_is_read_in_constant_memory(write):
    path = write(table(*[ROW] * 20_000))
    size = path.stat().st_size
    with ExitStack() as stack:
        source = candidate_file.open_candidates(str(path), FIELDS, stack)
        tracemalloc.start()
        try:
            assert sum(1 for _ in source.candidates) == source.total == 20_000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < size / 5


def test_predictions_start_before_the_whole_file_is_read(write, monkeypatch):
    async def first() -> int:
        read = itertools.count()
        with ExitStack() as stack:
            source = candidate_file.open_candidates(str(write(table(*[ROW] * 9000))), FIELDS, stack)
            rows = (located for located, _ in zip(source.candidates, read, strict=False))
            counted = dataclasses.replace(source, candidates=rows)
            async with contextlib.aclosing(
                predict_command._answers(ValidatingClient("v1", SIGNATURE), counted)
            ) as answers:
                await anext(answers)
        return next(read)

    assert asyncio.run(first()) == predict_command.CHUNK_SIZE * predict_command.IN_FLIGHT


def test_predicting_does_not_import_numpy_or_scikit_learn():
    code = (
        "import sys, placement.cli, placement.predict_command, training.data; "
        "print(*sorted({'numpy', 'pandas', 'scipy', 'sklearn', 'joblib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_requests_that_fail_together_are_reported_once(write, caplog, predict):
    result = predict(write(table(*[{**ROW, "ssc_p": "710"}] * 5000)))
    import gc

    gc.collect()
    assert len(result.err.splitlines()) == 21
    assert not caplog.records


# Addresses of the service


@pytest.mark.parametrize("url", ["localhost:8180", "http://", "ftp://host", "127.0.0.1", "http:/host"])
def test_a_rest_url_must_have_a_scheme(url):
    with pytest.raises(ClientError, match=rf"--url {url}: must start with http:// or https://, for example"):
        connect(url, "placement", "v1")


@pytest.mark.parametrize("url", ["http://localhost:8081", "localhost", "grpc://host:1", "host:port"])
def test_a_grpc_address_must_not_have_a_scheme(url):
    with pytest.raises(
        ClientError, match=f"--url {url}: must be host:port for gRPC, for example 127.0.0.1:8081"
    ):
        connect(url, "placement", "grpc")


@contextlib.asynccontextmanager
async def answering(content: bytes) -> AsyncIterator[str]:
    """Run a server with one response to all requests; return its ``host:port``."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(content)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def refusal(url: str, protocol: str = "v1") -> str:
    client = connect(url, "placement", protocol)
    try:
        with pytest.raises(ClientError) as raised:
            await client.fields()
    finally:
        await client.close()
    return str(raised.value)


async def test_a_port_that_is_not_http_is_reported_without_its_response():
    async with answering(b"SSH-2.0-OpenSSH_9.6\r\n\x00\xff\r\n\r\n") as address:
        assert await refusal(f"http://{address}") == (
            f"the response of http://{address}/v2/models/placement is not that of a placement service; set "
            "--url to its REST port (or add --protocol grpc for its gRPC port)"
        )
        told = await refusal(address, "grpc")
    assert told == f"{address} does not answer over gRPC; set --url"


@pytest.mark.parametrize(
    "content", [{}, [], {"inputs": [{}]}, {"inputs": 7}, "<html>", None], ids=orjson.dumps
)
@pytest.mark.parametrize("status", [200, 404])
async def test_another_http_service_is_reported(content, status):
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(content, status=status)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(application) as server:
        url = str(server.make_url("")).rstrip("/")
        assert "is not that of a placement service; set --url" in await refusal(url)


async def test_an_address_without_a_server_is_reported():
    async with answering(b"") as address:
        pass
    assert "does not answer; start it with `make run`, start `kubectl port-forward` again" in await refusal(
        f"http://{address}"
    )
    assert await refusal(address, "grpc") == f"{address} does not answer over gRPC; set --url"


def test_the_command_reports_data_errors():
    assert set(predict_command.COMMAND.errors()) == {*(ClientError, DataError, GatewayError, OutputError)}
    assert issubclass(Refused, ClientError)
    assert all(isinstance(field, Number) == (FIELDS[field.name] == "FP64") for field in SIGNATURE.fields)


# Writing predictions


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_predictions_are_written_beside_the_columns_of_the_table(predict, write, tmp_path):
    columns = ["id", *ROW, "note"]
    rows = [{"id": f"{number:04}", **ROW, "note": 'a "b", c'} for number in range(2345)]
    output = tmp_path / "out.csv"
    path = write(table(*rows, columns=columns))
    result = predict(path, "-o", output)
    assert (result.status, result.out) == (0, "")
    assert result.err == f"{path}: passed over: 2 other columns (id, note)"
    header, *written = read(output)
    assert header == [*columns, "prediction", "probability", "version"]
    assert written == [[*row.values(), "true", "0.5", "v1"] for row in rows]


def test_predictions_are_written_beside_the_keys_of_json(predict, write, tmp_path):
    rows = [SAMPLE, {**SAMPLE, "id": 7, "tags": ["é", None], "note": None}]
    assert predict(write(json.dumps(rows), "a.json"), "-o", tmp_path / "out.csv").status == 0
    header, first, second = read(tmp_path / "out.csv")
    assert header == [*SAMPLE, "id", "tags", "note", "prediction", "probability", "version"]
    assert first[-6:] == ["", "", "", "true", "0.5", "v1"]
    assert second[-6:] == ["7", '["é", null]', "", "true", "0.5", "v1"]


def test_the_input_itself_may_be_replaced_and_is_kept_when_a_row_is_refused(predict, write, tmp_path):
    path = write(table(ROW, {**ROW, "ssc_p": "710"}))
    before = path.read_bytes()
    assert predict(path, "-o", path).status == 1
    assert path.read_bytes() == before
    path = write(table(ROW))
    assert predict(path, "-o", path).status == 0
    assert len(read(path)) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["a.csv"], "no partial file is left"


@pytest.mark.parametrize("name", ["prediction", "probability", "version"])
def test_a_column_of_the_input_is_never_overwritten(predict, write, tmp_path, name):
    path = write(table({**ROW, name: "x"}, columns=[*ROW, name]))
    result = predict(path, "-o", tmp_path / "out.csv")
    assert (result.status, result.asked) == (1, 0)
    assert result.err.endswith(f"the input has the column {name!r} already; rename it or leave it out")


def test_an_output_that_cannot_be_written_is_named(predict, write, tmp_path):
    result = predict(write(table(ROW)), "-o", tmp_path / "none/out.csv")
    assert (result.status, result.err) == (1, f"{tmp_path}/none/out.csv: No such file or directory")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_an_error_without_a_file(predict, write, tmp_path, monkeypatch):
    real = Path.open

    def full(path, *arguments, **options):
        return (
            real(Path("/dev/full"), "w") if path.suffix == ".partial" else real(path, *arguments, **options)
        )

    monkeypatch.setattr(Path, "open", full)
    result = predict(write(table(*[ROW] * 500)), "-o", tmp_path / "out.csv")
    assert (result.status, result.err) == (1, f"{tmp_path}/out.csv: No space left on device")
    assert not (tmp_path / "out.csv").exists()


async def test_the_only_model_of_a_service_needs_no_name():
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        content = {"models": names} if request.path == "/v1/models" else {"inputs": []}
        return web.json_response(content)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    for names in (["churn"], ["churn", "placement"], []):
        async with TestServer(application) as server:
            client = connect(str(server.make_url("")), None, "v2")
            try:
                if len(names) == 1:
                    assert await client.fields() == {}
                    assert asked == ["/v1/models", "/v2/models/churn"]
                else:
                    with pytest.raises(ClientError, match=f"has the models {', '.join(names)}; choose one"):
                        await client.fields()
            finally:
                await client.close()
