"""A rollout takes its steps in the safe order, stops where it should, and goes back by itself."""

import asyncio
import json
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from inferenceservice.local.control import CONTROL_FILE, ControlEndpoint, LocalTarget, NotRunningError
from inferenceservice.rollout import Canary, RolloutError, Scored, State, TargetError, rollback, rollout
from tests.coherence import local_service
from tests.pairs import Pair, make_pair
from transformer.bundle import Bundle, read


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair("category_renamed", tmp_path_factory.mktemp("pair"))


def quiet(_: str) -> None:
    """Progress that nobody watches."""


class MemoryTarget:
    """A target that remembers its steps, and fails at one if it is told to."""

    def __init__(self, uri: str, fail: str | None = None) -> None:
        self.now = State(uri, uri)
        self.fail = fail
        self.steps: list[str] = []
        self.scores: Callable[[Bundle], tuple[float, ...]] = lambda bundle: bundle.reference.probabilities

    def _step(self, name: str, uri: str = "") -> None:
        self.steps.append(f"{name} {Path(uri).name}".strip())
        if self.fail == self.steps[-1]:
            self.fail = None
            raise TargetError(f"{name} failed")

    async def state(self) -> State:
        return self.now

    async def read_bundle(self, uri: str) -> Bundle:
        try:
            return read(uri)
        except Exception as error:
            raise TargetError(str(error)) from error

    async def set_transformer(self, uri: str, progress: Any) -> None:
        self._step("transformer", uri)
        self.now = State(uri, self.now.predictor_uri, self.now.previous_uri, self.now.canary)

    async def set_predictor(self, uri: str, progress: Any) -> None:
        self._step("predictor", uri)
        self.now = State(self.now.transformer_uri, uri, self.now.predictor_uri)

    async def check_canary(self) -> None:
        self._step("check canary")

    async def set_canary(self, canary: Canary, progress: Any) -> None:
        self._step("canary", canary.uri)
        self.now = State(self.now.transformer_uri, self.now.predictor_uri, self.now.previous_uri, canary)

    async def end_canary(self, progress: Any) -> None:
        self._step("end canary")
        self.now = State(self.now.transformer_uri, self.now.predictor_uri, self.now.previous_uri)

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scored:
        uri = self.now.canary.uri if self.now.canary else self.now.predictor_uri
        bundle = read(uri)
        return Scored(self.scores(bundle), bundle.version)


async def test_out_the_transformer_goes_first_and_back_last(pair):
    target = MemoryTarget(str(pair.old))
    assert await rollout(target, str(pair.new), quiet) == "v2"
    assert await rollback(target, quiet) == "v1"
    assert target.steps == ["transformer v2", "predictor v2", "predictor v1", "transformer v1"]


@pytest.mark.parametrize(
    ("fail", "steps"),
    [
        ("transformer v2", ["transformer v2"]),
        ("predictor v2", ["transformer v2", "predictor v2", "transformer v1"]),
    ],
)
async def test_a_step_that_fails_is_undone_and_told(fail, steps, pair):
    target = MemoryTarget(str(pair.old), fail)
    before = target.now
    with pytest.raises(RolloutError, match=r"all is as before: \w+ failed"):
        await rollout(target, str(pair.new), quiet)
    assert target.steps == steps
    assert target.now == before


async def test_a_version_that_scores_otherwise_than_its_bundle_says_is_taken_back(pair):
    target = MemoryTarget(str(pair.old))
    target.scores = lambda bundle: tuple(1 - p for p in bundle.reference.probabilities)
    with pytest.raises(RolloutError, match="gives its reference rows other scores"):
        await rollout(target, str(pair.new), quiet)
    assert (target.now.transformer_uri, target.now.predictor_uri) == (str(pair.old), str(pair.old))


async def test_an_interrupted_rollout_is_undone(pair):
    target = MemoryTarget(str(pair.old))

    async def never(*_: object) -> Scored:
        raise asyncio.CancelledError

    target.score = never
    with pytest.raises(asyncio.CancelledError):
        await rollout(target, str(pair.new), quiet)
    assert (target.now.transformer_uri, target.now.predictor_uri) == (str(pair.old), str(pair.old))


async def test_a_bundle_that_does_not_know_what_serves_is_refused_with_what_mends_it(pair):
    # The old version was trained without --previous.
    target = MemoryTarget(str(pair.new))
    with pytest.raises(RolloutError, match=f"placement train --previous {pair.new}") as raised:
        await rollout(target, str(pair.old), quiet)
    assert "--force" in str(raised.value)
    assert target.steps == []
    assert await rollout(target, str(pair.old), quiet, force=True) == "v1"


async def test_a_bundle_that_cannot_be_read_changes_nothing(pair, tmp_path):
    target = MemoryTarget(str(pair.old))
    with pytest.raises(TargetError, match=r"bundle\.json"):
        await rollout(target, str(tmp_path), quiet)
    assert target.steps == []


async def test_a_canary_stops_between_and_is_finished_or_undone(pair):
    target = MemoryTarget(str(pair.old))
    await rollout(target, str(pair.new), quiet, canary=10)
    assert target.now.canary == Canary(str(pair.new), 10)
    await rollout(target, str(pair.new), quiet)
    assert target.now == State(str(pair.new), str(pair.new), str(pair.old))
    target = MemoryTarget(str(pair.old))
    await rollout(target, str(pair.new), quiet, canary=10)
    await rollback(target, quiet)
    assert target.now == State(str(pair.old), str(pair.old))
    assert target.steps == ["check canary", "transformer v2", "canary v2", "end canary", "transformer v1"]


async def test_one_canary_at_a_time_and_none_of_what_serves(pair, tmp_path):
    target = MemoryTarget(str(pair.old))
    with pytest.raises(RolloutError, match="serves already"):
        await rollout(target, str(pair.old), quiet, canary=10)
    target.now = State(str(pair.new), str(pair.old), None, Canary(str(tmp_path / "v3"), 10))
    with pytest.raises(RolloutError, match="is under way; finish it with `placement rollout"):
        await rollout(target, str(pair.new), quiet)


async def test_a_rollout_that_died_half_way_is_finished_or_undone(pair):
    target = MemoryTarget(str(pair.old))
    target.now = State(str(pair.new), str(pair.old))
    await rollout(target, str(pair.new), quiet)
    assert target.steps == ["predictor v2"]
    target.now, target.steps = State(str(pair.new), str(pair.old)), []
    await rollback(target, quiet)
    assert target.steps == ["transformer v1"]


async def test_a_way_back_that_fails_is_told_as_well(pair):
    target = MemoryTarget(str(pair.old), "predictor v2")
    failing = iter(["transformer v1"])

    async def set_transformer(uri: str, progress: Any) -> None:
        if uri == str(pair.old):
            raise TargetError(f"{next(failing)} failed")
        target.now = State(uri, target.now.predictor_uri)

    target.set_transformer = set_transformer
    with pytest.raises(RolloutError, match=r"predictor failed.*going back failed: transformer v1 failed"):
        await rollout(target, str(pair.new), quiet)


async def test_a_canary_that_would_split_nothing_is_refused_before_anything_changes(pair):
    target = MemoryTarget(str(pair.old), "check canary")
    with pytest.raises(TargetError, match="check canary failed"):
        await rollout(target, str(pair.new), quiet, canary=10)
    assert target.steps == ["check canary"]


async def test_without_an_earlier_version_there_is_nothing_to_roll_back(pair):
    with pytest.raises(RolloutError, match="no earlier version"):
        await rollback(MemoryTarget(str(pair.old)), quiet)


async def test_the_local_service_is_rolled_out_through_its_control_endpoint(pair, tmp_path):
    """With a canary, and back; the endpoint answers whoever has the token, and nobody else."""
    file = tmp_path / CONTROL_FILE
    async with local_service(pair, tmp_path) as local, ControlEndpoint(local, file):
        mode = file.stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        target = LocalTarget(file)
        assert await target.state() == State(str(pair.old), str(pair.old))
        watching = asyncio.create_task(local.watch())
        told: list[str] = []
        await rollout(target, str(pair.new), told.append, canary=50)
        assert (await target.state()).canary == Canary(str(pair.new), 50)
        candidates = pair.candidates[:1]
        versions = [(await target.score(candidates, "placement")).version for _ in range(60)]
        assert 10 <= versions.count("v2") <= 50
        await rollout(target, str(pair.new), told.append)
        assert await target.state() == State(str(pair.new), str(pair.new), str(pair.old))
        assert any("predictor" in line for line in told)
        assert 'version="v2"' in (await target.metrics())["transformer"]
        with pytest.raises(RolloutError, match="all is as before"):
            await rollout(target, str(broken_model(pair.new, tmp_path)), told.append, force=True)
        await only_the_token_opens(json.loads(file.read_text()))
        assert await rollback(target, told.append) == "v1"
        assert not watching.done(), "a version that cannot be loaded does not end the service"
        watching.cancel()
    assert not file.exists()
    with pytest.raises(NotRunningError, match="no local service runs here"):
        LocalTarget(file)


def broken_model(version: Path, tmp_path: Path) -> Path:
    """A version whose digest is right and whose model no server can load."""
    from transformer.bundle import file_sha256

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
