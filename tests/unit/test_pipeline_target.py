"""A pipeline finds the version that serves, and checks the answers of the service."""

import dataclasses
import re

import pytest

from inferenceservice.rollout_target import Canary, Scores, State
from pipelines.answers import CHECKED_ROWS, check_answers
from pipelines.step import PipelineError, step
from pipelines.target import check_name, serving_uri, stable_uri
from tests.support.in_memory_target import InMemoryTarget
from training.generator import generate
from training.stored import StoredVersion

CANDIDATES = generate(CHECKED_ROWS + 20, 3).candidates


def answering(uri, version="v1", shift=0.0):
    """Return a service that gives a version's answers, shifted for the last candidate."""
    stored = StoredVersion.load(uri)
    target = InMemoryTarget(uri)

    def scores(bundle, candidates):
        _, found = stored.score(candidates)
        *answers, last = bundle.target.recorded(found)
        return Scores((*answers, last + shift), version)

    target.scores = scores
    return target


async def test_the_answers_that_were_evaluated_pass(trained_bundle):
    assert await check_answers(answering(trained_bundle), str(trained_bundle), CANDIDATES) == CHECKED_ROWS
    assert await check_answers(answering(trained_bundle), str(trained_bundle), CANDIDATES[:7]) == 7


async def test_another_version_or_another_answer_does_not_pass(trained_bundle):
    with pytest.raises(PipelineError, match="v9 answers, expected v1"):
        await check_answers(answering(trained_bundle, "v9"), str(trained_bundle), CANDIDATES)
    with pytest.raises(PipelineError, match="v1 answers 100 held-out candidates differently"):
        await check_answers(answering(trained_bundle, shift=1e-3), str(trained_bundle), CANDIDATES)


def test_a_pipeline_does_not_start_beside_a_rollout():
    stable = State("models/placement/v1", "models/placement/v1")
    assert stable_uri(stable) == "models/placement/v1"
    canary = dataclasses.replace(stable, canary=Canary("models/placement/v2", 10))
    with pytest.raises(PipelineError, match="a rollout of models/placement/v2 is in progress"):
        stable_uri(canary)
    with pytest.raises(PipelineError, match="finish it with `placement rollout models/placement/v3`"):
        stable_uri(dataclasses.replace(stable, transformer_uri="models/placement/v3"))


async def test_a_pipeline_stops_beside_the_service_of_another_model(trained_bundle):
    target, uri = InMemoryTarget(trained_bundle), str(trained_bundle)
    await check_name(target, uri, "placement", ".run")
    expected = f"name: 'placement' serves in .run ({uri}), expected 'churn'; name the directory"
    with pytest.raises(PipelineError, match=re.escape(expected)):
        await check_name(target, uri, "churn", ".run")


async def test_nothing_serves_where_no_service_runs(tmp_path):
    assert await serving_uri("placement", "", str(tmp_path), "models") == ""


def test_a_step_names_itself_in_each_line_of_a_message(capsys):
    with step("find-serving") as say:
        say("v1 serves")
    assert capsys.readouterr().out == "find-serving: v1 serves\n"
    ends = r"^check-gate: ERROR: accuracy: 2\ncheck-gate: ERROR: roc_auc: 3$"
    with pytest.raises(SystemExit, match=ends), step("check-gate"):
        raise PipelineError("accuracy: 2\nroc_auc: 3")
    with pytest.raises(KeyError), step("check-gate"):
        raise KeyError("a fault of the program keeps its traceback")
