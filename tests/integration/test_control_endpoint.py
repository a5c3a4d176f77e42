"""The local service's control endpoint answers on loopback, and only to the owner of its token."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from hmac import compare_digest
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from inferenceservice.local.control_client import LocalTarget
from inferenceservice.local.control_file import CONTROL_FILE
from inferenceservice.local.control_server import ControlServer
from inferenceservice.local.local_service import LocalService
from inferenceservice.rollout_target import TargetError
from predictor.process import free_ports
from tests.support.in_memory_target import ignore_progress
from tests.support.inference_service import SPEC
from tests.support.waiting import wait_until


@contextlib.asynccontextmanager
async def not_started(directory: Path) -> AsyncIterator[LocalService]:
    port, grpc_port = free_ports(2)
    async with LocalService(
        SPEC, port=port, grpc_port=grpc_port, logs=directory, progress=ignore_progress
    ) as local:
        yield local


async def test_a_control_file_of_another_service_is_left_alone(tmp_path):
    file = tmp_path / CONTROL_FILE
    async with not_started(tmp_path) as local:
        first, second = ControlServer(local, file), ControlServer(local, file)
        await first.start()
        await second.start()
        written = file.read_text()
        await first.close()
        assert file.read_text() == written
        await second.close()
        assert not file.exists()


# Access to the control endpoint


@dataclasses.dataclass(frozen=True)
class Control:
    """The content of the control file."""

    address: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}


@pytest.fixture
async def control(tmp_path) -> AsyncIterator[Control]:
    file = tmp_path / CONTROL_FILE
    async with not_started(tmp_path) as local, ControlServer(local, file):
        yield Control(**json.loads(file.read_text()))


async def ask(control: Control, headers: dict[str, str | None], **how: Any) -> tuple[int, str]:
    """Send a request with further headers, and return status and text of the response."""
    given = {name: value for name, value in {**control.headers, **headers}.items() if value is not None}
    method, path, body = (
        how.get("method", "POST"),
        how.get("path", "/wait_until_idle"),
        how.get("body", b"{}"),
    )
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{control.address}{path}", data=body, headers=given) as response,
    ):
        assert not any(name.lower().startswith("access-control-") for name in response.headers)
        return response.status, await response.text()


async def test_the_control_endpoint_listens_only_on_loopback(control):
    port = int(control.address.rpartition(":")[2])
    sockets = psutil.Process().connections(kind="tcp")
    ours = [one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN and one.laddr.port == port]
    assert ours == ["127.0.0.1"]
    assert await ask(control, {}) == (200, '{"result": null}\n')


#: Host names that DNS rebinding can point to this machine, and origins of web pages.
ELSEWHERE = [
    {"host": "rebound.example:{port}"},
    {"host": "127.0.0.1.rebound.example:{port}"},
    {"host": "127.0.0.1@rebound.example:{port}"},
    {"host": "rebound.example"},
    {"host": "localhost:{port}"},
    {"host": "127.0.0.1"},
    {"host": "[::1]:{port}"},
    {"origin": "http://rebound.example"},
    {"origin": "http://127.0.0.1:{port}"},
    {"origin": "null"},
    {"origin": ""},
]


@pytest.mark.parametrize("headers", ELSEWHERE, ids=lambda headers: " ".join(*headers.items()))
async def test_the_control_endpoint_refuses_requests_from_web_pages(headers, control):
    port = control.address.rpartition(":")[2]
    headers = {name: value.format(port=port) for name, value in headers.items()}
    error = f"the host must be {control.address}, and requests from web pages are refused"
    refused_with = (403, json.dumps({"error": error}))
    assert await ask(control, headers) == refused_with
    assert await ask(control, {**headers, "authorization": None}) == refused_with
    asked_first = {**headers, "access-control-request-method": "POST", "authorization": None}
    assert await ask(control, asked_first, method="OPTIONS", body=None) == refused_with


WRONG_TOKENS = {
    "none": lambda _: None,
    "empty": lambda _: "",
    "another": lambda token: f"Bearer {token[::-1]}",
    "its beginning": lambda token: f"Bearer {token[:-1]}",
    "more": lambda token: f"Bearer {token}x",
    "another scheme": lambda token: f"Basic {token}",
    "no scheme": lambda token: token,
    "no ASCII": lambda token: f"Bearer {token}\u00e9",
}


@pytest.mark.parametrize("wrong", WRONG_TOKENS)
async def test_the_control_endpoint_refuses_requests_without_its_token(wrong, control, monkeypatch):
    """The token is compared in constant time."""
    compared = []

    def compare(given: bytes, expected: bytes) -> bool:
        compared.append(expected)
        return compare_digest(given, expected)

    monkeypatch.setattr("hmac.compare_digest", compare)
    given = {"authorization": WRONG_TOKENS[wrong](control.token)}
    refused_with = (401, json.dumps({"error": "authorization: must be the token of the control file"}))
    assert await ask(control, given) == refused_with
    assert await ask(control, given, path="/nothing") == refused_with, "nor what there is"
    assert await ask(control, given, method="GET", body=None) == refused_with
    assert compared == [f"Bearer {control.token}".encode()] * 3


async def test_a_token_that_is_not_text_is_refused(control):
    host, port = control.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST /wait_until_idle HTTP/1.0\r\nhost: {control.address}\r\nauthorization: ".encode())
    writer.write(b"Bearer \xff\xfe\r\ncontent-length: 0\r\n\r\n")
    assert (await reader.readline()).split()[1] == b"401"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("body", "message"), [(b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[]", "must be an object")]
)
async def test_a_malformed_step_is_refused(body, message, control):
    assert await ask(control, {}, body=body) == (400, json.dumps({"error": f"body: {message}"}))


URI = "the URI of a version, as `placement train` prints it (a string)"
TEXT = "a string that is not empty and has no control characters"
WRONG_ARGUMENTS = [
    ("set_transformer", {}, f"uri: is required, expected {URI}"),
    ("set_transformer", {"uri": None}, f"uri: expected {URI}, got null"),
    ("set_predictor", {"uri": 5}, f"uri: expected {URI}, got 5"),
    ("set_both", {"uri": ["v1"]}, f"uri: expected {URI}, got an array"),
    ("read_bundle", {"uri": {"a": 1}}, f"uri: expected {URI}, got an object"),
    ("read_bundle", {"uri": ""}, f'uri: expected {URI}, got ""'),
    ("read_bundle", {"uri": "a\0b"}, f'uri: expected {URI}, got "a\\u0000b"'),
    ("read_bundle", {"uri": "\ud800"}, f'uri: expected {URI}, got "\\ud800"'),
    ("read_bundle", {"uri": "v1", "url": "v1"}, "unknown argument 'url', expected uri"),
    ("state", {"uri": "v1"}, "unknown argument 'uri', expected none"),
    ("set_canary", {"uri": "v1"}, "percent: is required, expected a whole number from 1 to 99"),
    (
        "set_canary",
        {"uri": "v1", "percent": "ten"},
        'percent: expected a whole number from 1 to 99, got "ten"',
    ),
    ("set_canary", {"uri": "v1", "percent": True}, "percent: expected a whole number from 1 to 99, got true"),
    ("set_canary", {"uri": "v1", "percent": 10.5}, "percent: expected a whole number from 1 to 99, got 10.5"),
    ("set_canary", {"uri": "v1", "percent": 100}, "percent: expected a whole number from 1 to 99, got 100"),
    ("score", {"candidates": {}, "name": "a"}, "candidates: expected an array of objects, got an object"),
    ("score", {"candidates": [1], "name": "a"}, "candidates: expected an array of objects, got an array"),
    ("score", {"candidates": [], "name": 1}, f"name: expected {TEXT}, got 1"),
    ("apply", {"file": True}, "file: expected the absolute path of a spec (a string), got true"),
    ("apply", {"file": "a.yaml"}, 'file: expected the absolute path of a spec (a string), got "a.yaml"'),
    ("hold", {"change": 1, "id": "a"}, f"change: expected {TEXT}, got 1"),
    ("release", {}, f"id: is required, expected {TEXT}"),
]


@pytest.mark.parametrize(("operation", "given", "error"), WRONG_ARGUMENTS)
async def test_a_wrong_argument_is_named_with_what_came_and_what_is_expected(
    operation, given, error, control, caplog
):
    refused_with = (400, json.dumps({"error": f"{operation}: {error}"}))
    assert await ask(control, {}, path=f"/{operation}", body=json.dumps(given).encode()) == refused_with
    assert caplog.records == []


async def test_a_wrong_value_is_shown_only_in_part(control):
    status, text = await ask(control, {}, path="/read_bundle", body=b'{"uri": %s}' % (b"1" * 3000))
    assert status == 400
    assert len(text) < 250


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"uri": ' * 100_000])
async def test_a_deeply_nested_body_is_refused(body, control, caplog):
    assert await ask(control, {}, body=body) == (400, json.dumps({"error": "body: is not JSON"}))
    assert caplog.records == []


async def test_the_client_reports_a_refused_argument(control, tmp_path):
    target = LocalTarget(tmp_path / CONTROL_FILE)
    with pytest.raises(TargetError) as refused:
        await target.set_transformer("", ignore_progress)
    assert str(refused.value) == f'set_transformer: uri: expected {URI}, got ""'


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (
            "none/v9",
            "none/v9: no version here, bundle.json is missing; use a URI that `placement train` printed",
        ),
        ("a" * 5000, f"{'a' * 5000}/bundle.json: File name too long"),
    ],
    ids=["missing", "too long"],
)
async def test_an_unreadable_version_is_an_error_without_a_traceback(path, error, control, tmp_path, caplog):
    with pytest.raises(TargetError) as failed:
        await LocalTarget(tmp_path / CONTROL_FILE).read_bundle(path)
    assert str(failed.value) == error
    assert caplog.records == []


# Rollouts at the same time


async def test_a_second_change_is_refused_and_named_until_the_first_ends(control, tmp_path):
    first, second = (LocalTarget(tmp_path / CONTROL_FILE) for _ in range(2))
    message = "a rollout of v2 is in progress; wait until it ends, then see `placement status`"
    for _ in range(3):
        async with first.exclusive("a rollout of v2"):
            with pytest.raises(TargetError) as refused:
                async with second.exclusive("a rollback"):
                    pass
            assert str(refused.value) == message
            with pytest.raises(TargetError) as not_applied:
                await second.apply(tmp_path / "spec.yaml", ignore_progress)
            assert str(not_applied.value) == message
        async with second.exclusive("a rollback"):
            pass


async def test_a_client_that_disconnects_does_not_hold_the_service(control, tmp_path):
    """As if its process had been killed."""
    body = json.dumps({"change": "a rollout of v2", "id": "1"}).encode()
    async with aiohttp.ClientSession() as session:
        holding = await session.post(f"http://{control.address}/hold", data=body, headers=control.headers)
        assert await holding.content.readline() == b'{"progress": "held"}\n'
        with pytest.raises(TargetError, match="a rollout of v2 is in progress"):
            async with LocalTarget(tmp_path / CONTROL_FILE).exclusive("a rollback"):
                pass
        holding.close()

    async def is_free() -> bool:
        with contextlib.suppress(TargetError):
            async with LocalTarget(tmp_path / CONTROL_FILE).exclusive("a rollback"):
                return True
        return False

    await wait_until(is_free)


async def test_a_server_that_closes_ends_a_hold(tmp_path):
    file = tmp_path / CONTROL_FILE
    async with not_started(tmp_path) as local:
        async with ControlServer(local, file):
            target = LocalTarget(file)
            hold = target.exclusive("a rollout of v2")
            await hold.__aenter__()
        await hold.__aexit__(None, None, None)
        async with ControlServer(local, file), LocalTarget(file).exclusive("a rollback"):
            pass


async def test_every_start_has_a_new_token(tmp_path):
    file = tmp_path / CONTROL_FILE
    tokens = []
    async with not_started(tmp_path) as local:
        for _ in range(2):
            async with ControlServer(local, file):
                tokens.append(json.loads(file.read_text())["token"])
                assert file.stat().st_mode & 0o777 == 0o600
    assert len(set(tokens)) == 2
    assert min(map(len, tokens)) >= 43, "256 bits"
