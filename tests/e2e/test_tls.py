"""TLS to the predictor and for the server; only certificates of the configured authority are trusted."""

import asyncio
import contextlib
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from kserve.constants.constants import KSERVE_TLS_CERT_FILE_ENV

from inferenceservice.local.launch import TransformerProcess
from predictor.process import PredictorProcess
from predictor.runtimes import get_runtime
from tests.support.certificate_authority import DAY, Authority
from tests.support.connected_transformer import transformer_log
from tests.support.endpoints import V1_PREDICT
from tests.support.in_process_transformer import in_process_transformer
from tests.support.protocol_clients import over_grpc, over_v1
from tests.support.sync_processes import running_predictor, running_transformer
from tests.support.waiting import wait_until
from training.generator import generate
from transformer.batching import pool

HERE = "127.0.0.1"


@dataclass
class Terminator:
    """Terminates TLS in front of a model server, which does not speak TLS.

    Attributes
    ----------
    port
        Port of the terminator.
    heard
        Number of bytes that clients have sent, which they do only after they trusted the certificate.
    """

    to_port: int
    port: int = 0
    heard: int = 0
    _context: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def show(self, files: tuple[Path, Path]) -> None:
        """Use another certificate for new connections."""
        self._context.load_cert_chain(*files)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Terminator"]:
        # A gRPC client requires HTTP/2 in ALPN.
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        async with await asyncio.start_server(self._handle, HERE, 0, ssl=self._context) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection(HERE, self.to_port)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(reader, back, self._hear))
                both.create_task(_pass_on(there, writer, lambda _: None))

    def _hear(self, data: bytes) -> None:
        self.heard += len(data)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Callable[[bytes], None]
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(2**16):
            note(data)
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "another")


@pytest.fixture(scope="module")
def candidates() -> list[dict[str, Any]]:
    return generate(10, seed=7).candidates


@pytest.fixture(scope="module")
def sklearnserver(trained_bundle: Path) -> Iterator[PredictorProcess]:
    stock = get_runtime("kserve-sklearnserver")
    with running_predictor(stock, trained_bundle, env=stock.probability_env) as process:
        yield process


# To the predictor

#: A model server for each protocol of the hop.
HOPS = {"v1": "sklearnserver", "v2": "mlserver", "grpc-v2": "mlserver"}


@pytest.fixture
def predictor_port(request: pytest.FixtureRequest, hop: str) -> int:
    """Port of the model server."""
    process: PredictorProcess = request.getfixturevalue(HOPS[hop])
    return process.grpc_port if hop == "grpc-v2" else process.http_port


@pytest.mark.parametrize("hop", HOPS)
def test_a_predictor_with_a_certificate_of_the_authority_is_trusted(
    hop, predictor_port, authority, trained_bundle, sklearn_reference, candidates, tmp_path
):
    """KServe sets an argument, and the authority's file in the environment."""
    arguments = (f"--predictor_protocol={hop}", "--predictor_use_ssl=true")
    environment = {"REQUESTS_CA_BUNDLE": str(authority.file)}
    terminator = Terminator(predictor_port)
    terminator.show(authority.certificate(HERE))
    log = tmp_path / "transformer.log"
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(terminator.running()):
        ports = (terminator.port, terminator.port)
        with running_transformer(ports, trained_bundle, log, *arguments, env=environment) as process:
            url, address = f"http://{HERE}:{process.http_port}", f"{HERE}:{process.grpc_port}"
            expected = pytest.approx(sklearn_reference.probabilities(candidates), abs=1e-12)
            assert over_v1(url, candidates)[1] == expected
            assert over_grpc(address, candidates, sklearn_reference.bundle.signature)[1] == expected
    assert terminator.heard > 0


#: Authority of the certificate, its host, its duration, True if the authority is configured, and the error in
#: the log: of OpenSSL over REST, of BoringSSL over gRPC.
WRONG = {
    "no authority is named": ("ours", HERE, DAY, False, "unable to get local issuer certificate"),
    "another authority": ("another", HERE, DAY, True, "unable to get local issuer certificate"),
    "another host": ("ours", "predictor.example", DAY, True, "IP address mismatch|Hostname Verification"),
    "too old": ("ours", HERE, -DAY, True, "certificate has expired"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("hop", ["v2", "grpc-v2"])
async def test_a_predictor_with_any_other_certificate_is_not_trusted_and_the_log_says_why(
    hop, wrong, predictor_port, authority, another, trained_bundle, candidates, monkeypatch, caplog
):
    by, host, lasts, named, logged_error = WRONG[wrong]
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    if named:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    terminator = Terminator(predictor_port)
    terminator.show({"ours": authority, "another": another}[by].certificate(host, lasts))
    async with terminator.running():
        options = (f"{HERE}:{terminator.port}", f"--predictor_protocol={hop}", "--predictor_use_ssl=true")
        with transformer_log(caplog):
            async with in_process_transformer(trained_bundle, *options, ready=False) as transformer:
                assert (await transformer.http.get("/v2/health/ready")).status_code == 503
                await wait_until(lambda: re.search(logged_error, caplog.text))
                answer = await transformer.http.post(V1_PREDICT, json={"instances": candidates})
                assert answer.status_code == 503
                assert answer.json() == {"error": "no verified predictor connection available"}
                assert (await transformer.http.get("/v2/health/ready")).status_code == 503
    assert terminator.heard == 0, "it was told nothing"


async def test_a_renewed_certificate_is_trusted_without_a_restart(
    mlserver, authority, trained_bundle, sklearn_reference, candidates, monkeypatch
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    terminator = Terminator(mlserver.http_port)
    terminator.show(authority.certificate(HERE, lasts=-DAY))
    async with terminator.running():
        options = (f"{HERE}:{terminator.port}", "--predictor_protocol=v2", "--predictor_use_ssl=true")
        async with in_process_transformer(trained_bundle, *options, ready=False) as transformer:
            assert (await transformer.http.get("/v2/health/ready")).status_code == 503
            terminator.show(authority.certificate(HERE))
            await wait_until(transformer.is_ready, timeout_s=20)
            answer = await transformer.http.post(V1_PREDICT, json={"instances": candidates})
    given = [one["placement_probability"] for one in answer.json()["predictions"]]
    assert given == pytest.approx(sklearn_reference.probabilities(candidates), abs=1e-12)


# For the server


@pytest.mark.parametrize("workers", [1, 2])
def test_with_a_certificate_rest_is_served_only_over_https(
    workers, mlserver, authority, trained_bundle, sklearn_reference, candidates, tmp_path
):
    """gRPC has no TLS, because KServe's server has none for it."""
    certificate, key = authority.certificate(HERE)
    believes = ssl.create_default_context(cafile=authority.file)
    arguments = (f"--ssl_certfile={certificate}", f"--ssl_keyfile={key}", f"--workers={workers}")

    def is_ready(process: TransformerProcess) -> bool:
        with contextlib.suppress(httpx.TransportError):
            url = f"https://{HERE}:{process.http_port}/v2/models/placement/ready"
            return httpx.get(url, verify=believes).status_code == 200
        return False

    ports = (mlserver.http_port, mlserver.grpc_port)
    log = tmp_path / "transformer.log"
    with running_transformer(ports, trained_bundle, log, *arguments, ready=is_ready) as process:
        at = f"{HERE}:{process.http_port}"
        expected = pytest.approx(sklearn_reference.probabilities(candidates), abs=1e-12)
        assert over_v1(f"https://{at}", candidates, verify=believes)[1] == expected
        assert (
            over_grpc(f"{HERE}:{process.grpc_port}", candidates, sklearn_reference.bundle.signature)[1]
            == expected
        )
        with pytest.raises(httpx.TransportError):
            over_v1(f"http://{at}", candidates)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            over_v1(f"https://{at}", candidates)


def test_a_certificate_from_kserves_environment_variable_is_used():
    script = "from transformer.options import parse; print(parse(['--predictor_host=a']).ssl_certfile)"
    environment = {**os.environ, KSERVE_TLS_CERT_FILE_ENV: "/tls.crt"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "/tls.crt"
