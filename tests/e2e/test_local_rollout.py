"""`placement rollout` changes the local service through its control endpoint."""

import asyncio
import json
import stat
import sys
from pathlib import Path

import aiohttp
import pytest

from inferenceservice.local.control_client import LocalTarget, NotRunningError
from inferenceservice.local.control_file import CONTROL_FILE
from inferenceservice.local.control_server import ControlServer
from inferenceservice.rollout import RolloutError, rollback, rollout
from inferenceservice.rollout_target import Canary, State, TargetError
from tests.support.async_processes import running_service
from tests.support.bundle_copies import file_sha256
from tests.support.version_pairs import VersionPair


async def test_the_local_service_is_rolled_out_through_its_control_endpoint(pair, tmp_path):
    """The rollout has a canary and is rolled back; the endpoint requires its token."""
    file = tmp_path / CONTROL_FILE
    async with running_service(pair, tmp_path) as local, ControlServer(local, file):
        mode = file.stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        target = LocalTarget(file)
        assert await target.state() == State(str(pair.old), str(pair.old))
        progress: list[str] = []
        await rollout(target, str(pair.new), progress.append, canary=50)
        assert (await target.state()).canary == Canary(str(pair.new), 50)
        assert "checking the answers of v2 and v1" in progress
        await status_shows_the_canary(pair, tmp_path)
        candidates = pair.candidates[:1]
        versions = [(await target.score(candidates, "placement")).version for _ in range(60)]
        assert 10 <= versions.count("v2") <= 50
        await rollout(target, str(pair.new), progress.append)
        assert await target.state() == State(str(pair.new), str(pair.new), str(pair.old))
        assert any("predictor" in line for line in progress)
        assert 'version="v2"' in (await target.metrics())["transformer"]
        with pytest.raises(RolloutError, match="the previous state is restored"):
            await rollout(target, str(broken_model(pair.new, tmp_path)), progress.append, force=True)
        await only_the_token_opens(json.loads(file.read_text()))
        assert await rollback(target, progress.append) == "v1"
    assert not file.exists()
    with pytest.raises(NotRunningError, match="nothing runs here"):
        LocalTarget(file)


async def test_the_second_of_two_equal_rollouts_changes_nothing(pair, tmp_path):
    """While the first is in progress it is refused; afterwards it finds that the version serves."""
    file = tmp_path / CONTROL_FILE
    async with running_service(pair, tmp_path) as local, ControlServer(local, file):
        results = await asyncio.gather(
            *(rollout(LocalTarget(file), str(pair.new), lambda _: None) for _ in range(3)),
            return_exceptions=True,
        )
        assert results.count("v2") == 1
        refused = {str(one) for one in results if isinstance(one, TargetError)}
        assert refused == {
            f"a rollout of {pair.new} is in progress; wait until it ends, then see `placement status`"
        }
        progress: list[str] = []
        assert await rollout(LocalTarget(file), str(pair.new), progress.append) == "v2"
        assert progress == ["checking that v2 serves"]
        assert await LocalTarget(file).state() == State(str(pair.new), str(pair.new), str(pair.old))


async def status_shows_the_canary(pair: VersionPair, run: Path) -> None:
    """Each transformer's connections lead to its own predictor."""
    command = (Path(sys.executable).with_name("placement"), "status", "--run", run)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    lines = output.decode().splitlines()
    assert lines[:3] == [
        f"transformer  {pair.new}",
        f"predictor    {pair.old}",
        f"canary       {pair.new}, 50 % of the traffic",
    ]
    connections = [line.split()[-4:] for line in lines[3:] if "usable" in line]
    assert ["usable", "v1"] in [words[-2:] for words in connections]
    assert ["usable", "v2", "canary's"] in [words[-3:] for words in connections]


def broken_model(version: Path, tmp_path: Path) -> Path:
    """Create a version with the right digest and a model that no server can load."""
    broken = tmp_path / "broken" / "v9"
    broken.mkdir(parents=True)
    (broken / "model.joblib").write_bytes(b"no model")
    content = json.loads((version / "bundle.json").read_text())
    content["model"]["sha256"] = file_sha256(broken / "model.joblib")
    (broken / "bundle.json").write_text(json.dumps({**content, "version": "v9"}))
    return broken


async def only_the_token_opens(control: dict[str, str]) -> None:
    url = f"http://{control['address']}/state"
    port = control["address"].rpartition(":")[2]
    right = {"authorization": f"Bearer {control['token']}"}
    async with aiohttp.ClientSession() as session:
        for headers, status in (
            (right, 200),
            ({}, 401),
            ({"authorization": "Bearer wrong"}, 401),
            ({**right, "origin": "http://evil.example"}, 403),
            ({**right, "host": f"evil.example:{port}"}, 403),
        ):
            async with session.post(url, json={}, headers=headers) as response:
                assert response.status == status, headers
