"""`make soak` keeps its figures whatever happens in a run, and reports what went wrong."""

import json
import random
from pathlib import Path

import pytest

from tests.soak import run
from tests.soak.outages import Record, Survived
from tests.soak.rollouts import Outcome, Situation
from tests.support.async_clients import TRY_AGAIN
from tests.support.load import Tally
from tests.support.version_pairs import VersionPair

PAIR = VersionPair("category_renamed", Path("v1"), Path("v2"), [], [])


async def goes_well(pair: VersionPair, run: Path, requests: int) -> Outcome:
    tally = Tally(several=requests)
    tally.answered["v1"] += requests
    tally.failed[TRY_AGAIN] += 2
    return Outcome(tally)


async def answers_wrongly(pair: VersionPair, run: Path, requests: int) -> Outcome:
    tally = Tally(several=1, faults={"wrong": ["one"], "mixed": ["another"]})
    tally.answered["v1"] += 2
    return Outcome(tally)


async def raises(pair: VersionPair, run: Path, requests: int) -> Outcome:
    (run / "transformer.log").touch()
    raise TimeoutError("no more requests")


async def outages(pair: VersionPair, run: Path, requests: int) -> Survived:
    tally = Tally()
    tally.failed[TRY_AGAIN] += 3
    record = Record(memory=[(2**27, 2**27)], pace=[(400.0, 401.0)], calls=5)
    record.count("hiccups", 2, tally)
    return Survived(tally, record=record)


@pytest.fixture
def all_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run `make soak` with given situations; return its exit status and its figures."""

    async def no_control(*_: object) -> int:
        return 3

    # The command seeds the generator that other tests use.
    state = random.getstate()
    monkeypatch.setattr(run, "make_pair", lambda name, storage: PAIR)
    monkeypatch.setattr(run, "control_experiment", no_control)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def main(*situations: Situation, arguments: tuple[str, ...] = ()) -> tuple[int, dict[str, object]]:
        monkeypatch.setattr(run, "SITUATIONS", situations)
        file = tmp_path / "figures.json"
        once = ("--only=category_renamed", "--requests=5", "--seed=7", f"--json={file}", "--once")
        monkeypatch.setattr("sys.argv", ["soak", *once, *arguments])
        return run.main(), json.loads(file.read_text())

    yield main
    random.setstate(state)


def test_a_good_run_is_counted_and_leaves_no_logs(all_of, tmp_path, capsys):
    status, figures = all_of(goes_well)
    assert (status, figures["bad"]) == (0, [])
    assert figures["all"]["requests"] == 7
    assert figures["all"]["try_again"] == 2
    said = capsys.readouterr().out
    assert "| goes well | 1 | 7 | 0 | 0 | 0 | 2 |" in said
    assert "| **all** | 1 | 7 | 0 | 0 | 0 | 2 |" in said
    assert "| *the documented transformer* | 1 | 10 | 3 | 0 | 0 | 0 |" in said
    assert "goes_well, category_renamed, seed 7, 0 s: 7 requests" in said
    assert [one.name for one in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize(
    ("situation", "reason"),
    [(answers_wrongly, "1 answers were wrong"), (raises, "TimeoutError: no more requests")],
)
def test_a_bad_run_is_reported_and_its_logs_are_kept(situation, reason, all_of, tmp_path, capsys):
    status, figures = all_of(situation, goes_well)
    assert status == 1
    (bad,) = figures["bad"]
    assert reason in bad
    said = capsys.readouterr().out
    assert "| goes well | 1 | 7 | 0 | 0 | 0 | 2 |" in said
    assert said.rstrip().endswith(bad)
    assert Path(bad.rpartition("logs in ")[2]).is_dir()


def test_one_situation_can_be_chosen(all_of):
    _, figures = all_of(raises, goes_well, arguments=("--situation=goes_well",))
    assert [one["situation"] for one in figures["situations"]] == ["goes_well", run.CONTROL]


def test_outages_have_their_own_table_by_fault(all_of, capsys):
    status, figures = all_of(goes_well, outages)
    assert status == 0
    assert figures["all"]["requests"] == 7
    assert figures["outages"]["faults"] == {
        "hiccups": {"times": 1, "met": 2, "requests": 3, "wrong": 0, "200": 0, "503": 3}
    }
    said = capsys.readouterr().out
    assert "| hiccups | 1 | 2 | 3 | 0 | 0 | 0 | 0 | 0 | 3 | 0 | 0 | 0 |" in said
    assert (
        "memory, before and after: 128 → 128 MiB; answers a second, after all and of a new one: 400, 401"
        in said
    )
    assert "| outages |" not in said
