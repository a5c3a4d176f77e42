"""The local service with real processes: changes without failed requests, interrupted clients, shutdown."""

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import pickle
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from inferenceservice.local.control_client import LocalTarget
from inferenceservice.local.control_file import CONTROL_FILE
from inferenceservice.local.control_server import ControlServer
from inferenceservice.local.local_service import LocalService
from inferenceservice.local.running_process import LocalServiceError
from inferenceservice.rollout import rollout
from inferenceservice.rollout_target import Canary, State, TargetError
from inferenceservice.spec import InferenceService
from tests.support.async_processes import RENEW_SOON, running_local_service
from tests.support.bundle_copies import damaged_copy, file_sha256
from tests.support.in_memory_target import ignore_progress
from tests.support.inference_service import SPEC
from tests.support.load import Tally, under_load
from tests.support.version_pairs import VersionPair
from transformer.bundle.format import BUNDLE_FILE, MODEL_FILE

#: The spec of the collocated overlay.
ONE_POD = dataclasses.replace(
    SPEC, collocated=True, transformer_args=(*SPEC.transformer_args, f"--model_name={SPEC.name}")
)
#: Number of answers between changes.
SOME = 60


@pytest.fixture(scope="module")
def unrelated(pair: VersionPair, tmp_path_factory: pytest.TempPathFactory) -> VersionPair:
    """Two versions of which neither knows the other; their encodings have the same width."""
    storage = tmp_path_factory.mktemp("unrelated")
    return dataclasses.replace(pair, new=changed(pair.new, storage / "v2", previous=[]))


def changed(version: Path, copy: Path, **content: object) -> Path:
    """Copy a version, and change the content of its bundle."""
    shutil.copytree(version, copy)
    bundle = json.loads((copy / BUNDLE_FILE).read_text())
    (copy / BUNDLE_FILE).unlink()
    (copy / BUNDLE_FILE).write_text(json.dumps({**bundle, **content}))
    return copy


def unloadable(version: Path, copy: Path) -> Path:
    """Create a version with the right digest and a model that no server can load."""
    (copy.parent / "model").write_bytes(b"no model")
    model = json.loads((version / BUNDLE_FILE).read_text())["model"]
    changed(version, copy, model={**model, "sha256": file_sha256(copy.parent / "model")})
    (copy.parent / "model").replace(copy / MODEL_FILE)
    return copy


def serving(
    uri: Path, run: Path, service: InferenceService = SPEC
) -> contextlib.AbstractAsyncContextManager[LocalService]:
    arguments = (*service.transformer_args, RENEW_SOON)
    changed = dataclasses.replace(service, storage_uri=str(uri), transformer_args=arguments)
    return running_local_service(changed, run)


async def some_more(tally: Tally, version: str) -> None:
    enough = tally.answered[version] + SOME
    await tally.reach(lambda now: now.answered[version] >= enough)


def family() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def listening(pids: set[int]) -> set[str]:
    """Return the addresses that processes listen on."""
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for pid in pids
        for connection in psutil.Process(pid).connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }


async def test_changing_both_components_at_once_fails_no_request(unrelated, tmp_path):
    """Neither version knows the other, so a transformer of one is never ready with the other's predictor."""
    old, new = str(unrelated.old), str(unrelated.new)
    # Other tests of this process may have left servers running that they share.
    others = family()
    async with (
        serving(unrelated.old, tmp_path) as local,
        under_load(unrelated, local.url, local.grpc_address, clients=1) as tally,
    ):
        processes = len(family())
        assert listening(family() - others) == {"127.0.0.1"}
        await some_more(tally, "v1")
        await local.set_both(new, ignore_progress)
        assert await local.state() == State(new, new, old)
        assert len(family()) == processes, "what was replaced has ended"
        await some_more(tally, "v2")
        await local.set_both(old, ignore_progress)
        assert await local.state() == State(old, old, None)
        await some_more(tally, "v1")
    assert dict(tally.failed) == {}
    assert tally.wrong == []


async def test_applying_a_collocated_spec_fails_no_request(unrelated, tmp_path):
    old, new = str(unrelated.old), str(unrelated.new)
    async with (
        serving(unrelated.old, tmp_path, ONE_POD) as local,
        under_load(unrelated, local.url, local.grpc_address, clients=1) as tally,
    ):
        await some_more(tally, "v1")
        await local.apply(dataclasses.replace(ONE_POD, storage_uri=new), ignore_progress)
        assert await local.state() == State(new, new, old, collocated=True)
        with pytest.raises(
            LocalServiceError, match="spec is that of salary, but the service that runs here is placement"
        ):
            await local.apply(dataclasses.replace(ONE_POD, name="salary"), ignore_progress)
        await some_more(tally, "v2")
    assert dict(tally.failed) == {}
    assert tally.wrong == []


async def test_a_canary_has_its_own_transformer_and_keeps_it_when_it_takes_over(unrelated, tmp_path):
    old, new = str(unrelated.old), str(unrelated.new)
    file = tmp_path / CONTROL_FILE
    async with serving(unrelated.old, tmp_path) as local, ControlServer(local, file):
        target = LocalTarget(file)
        assert set(await target.metrics()) == {"transformer"}
        await target.set_canary(Canary(new, 50), ignore_progress)
        metrics = await target.metrics()
        assert set(metrics) == {"transformer", "canary"}
        assert 'version="v1"' in metrics["transformer"]
        assert 'version="v2"' in metrics["canary"]
        async with aiohttp.ClientSession(local.url) as client:
            for version in ("v1", "v2") * 5:
                async with client.get(f"/v2/models/placement/versions/{version}/ready") as response:
                    assert response.status == 200, "the ingress asks the side that has the version"
        both = family()
        await target.set_both(new, ignore_progress)
        assert await target.state() == State(new, new, old)
        assert family() < both, "nothing was started"
        assert (await target.score(unrelated.candidates[:1], "placement")).version == "v2"
        with pytest.raises(TargetError, match="the response is not a prediction of model salary"):
            await target.score(unrelated.candidates[:1], "salary")
        broken = str(damaged_copy(unrelated.old, tmp_path / "v3"))
        with pytest.raises(TargetError, match=r"v3/model.joblib: SHA-256 is .*: the file was changed"):
            await rollout(target, broken, ignore_progress, force=True)
        assert await target.state() == State(new, new, old), "it was not loaded"


async def test_a_model_that_is_exchanged_after_its_digest_was_checked_is_not_loaded(
    pair, tmp_path, monkeypatch
):
    """The processes load private copies, whose digest was checked."""
    loaded = tmp_path / "loaded"
    storage = tmp_path / "storage"
    shutil.copytree(pair.new, storage / "v2")

    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (loaded,)

    def exchange(step: str) -> None:
        if "predictor" in step and "loading" in step:
            with (storage / "v2" / MODEL_FILE).open("wb") as file:
                pickle.dump(Forged(), file)
            exchanged.append(step)

    exchanged: list[str] = []
    async with serving(pair.old, tmp_path) as local:
        await local.set_transformer(str(pair.new), ignore_progress)
        await local.set_predictor(str(storage / "v2"), exchange)
        assert len(exchanged) == 1
        scores = await local.score(pair.candidates[:3], "placement")
        assert scores.version == "v2"
        assert scores.answers == pytest.approx(pair.references["v2"].probabilities(pair.candidates[:3]))
        with pytest.raises(LocalServiceError, match="the file was changed; restore it"):
            await local.set_predictor(str(storage / "v2"), ignore_progress)
    assert not loaded.exists()


async def leave(step: Callable[[Callable[[str], None]], Coroutine[Any, Any, None]]) -> None:
    """Start a step as a client, and disconnect at its first line of progress, as with Ctrl-C."""
    begun = asyncio.Event()
    client = asyncio.create_task(step(lambda _: begun.set()))
    await begun.wait()
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client


async def test_a_step_whose_client_disconnects_is_finished(unrelated, tmp_path, caplog):
    """A client can wait for its end, and nothing is logged."""
    caplog.set_level(logging.WARNING)
    old, new = str(unrelated.old), str(unrelated.new)
    file = tmp_path / CONTROL_FILE
    async with serving(unrelated.old, tmp_path) as local, ControlServer(local, file):
        target = LocalTarget(file)
        await leave(lambda progress: target.set_both(new, progress))
        await target.wait_until_idle()
        assert await target.state() == State(new, new, old)
        broken = str(unloadable(unrelated.new, tmp_path / "v9"))
        processes = family()
        await leave(lambda progress: target.set_predictor(broken, progress))
        await target.wait_until_idle()
        assert await target.state() == State(new, new, old)
        assert family() == processes
    gc.collect()
    await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_service_that_stops_during_a_step_tells_the_client_and_leaves_no_process(unrelated, tmp_path):
    before = family()
    file = tmp_path / CONTROL_FILE
    begun = asyncio.Event()
    async with serving(unrelated.old, tmp_path) as local:
        async with ControlServer(local, file):
            target = LocalTarget(file)
            step = asyncio.create_task(target.set_both(str(unrelated.new), lambda _: begun.set()))
            await begun.wait()
        with pytest.raises(TargetError, match="the local service was stopped"):
            await step
    assert family() == before
    assert not file.exists()
