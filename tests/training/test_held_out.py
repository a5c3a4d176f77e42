"""Held-out candidates are the same in each run, and never among those that a version is fitted on."""

import dataclasses
from functools import partial

import pytest

from pipelines.data import read_task, validate
from pipelines.held_out import read, split, write
from pipelines.step import PipelineError
from storage.errors import StorageError
from tests.support.kinds import QUESTIONS, dataset_of
from training.candidates import PLACEMENT, Candidate
from training.data import DataError
from training.generator import generate
from transformer.bundle.signature import Boolean, Category, CategoryList, Number, Signature

DATASET = generate(500, 3)


def keys(dataset):
    return {tuple(candidate.values()) for candidate in dataset.candidates}


def test_a_candidate_is_on_the_same_side_in_each_run():
    training, held_out = split(DATASET, 0.2)
    assert len(training.labels) + len(held_out.labels) == 500
    assert 70 <= len(held_out.labels) <= 130
    more = generate(100, 4)
    joined = dataclasses.replace(
        DATASET,
        candidates=[*more.candidates, *reversed(DATASET.candidates)],
        labels=[*more.labels, *reversed(DATASET.labels)],
    )
    again = split(joined, 0.2)
    assert keys(training) <= keys(again[0])
    assert keys(held_out) <= keys(again[1])


def test_equal_candidates_are_on_one_side():
    twice = dataclasses.replace(
        DATASET, candidates=DATASET.candidates * 2, labels=[*DATASET.labels, *DATASET.labels]
    )
    training, held_out = split(twice, 0.2)
    assert not keys(training) & keys(held_out)


def test_a_larger_share_holds_out_the_same_candidates_and_more():
    assert keys(split(DATASET, 0.2)[1]) < keys(split(DATASET, 0.4)[1])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(PipelineError, match=f"held_out_share: must be more than 0 .* got {share:g}"):
        split(DATASET, share)


def test_too_few_held_out_candidates_of_a_class_are_refused():
    with pytest.raises(
        PipelineError, match="generated, seed 3, held-out part: must have at least 10 candidates of class"
    ):
        split(DATASET, 0.01)


def test_a_file_has_the_same_values_again(tmp_path):
    signature = Signature(
        fields=(
            Number(name="x"),
            Boolean(name="b"),
            Category(name="c", categories=("1", "1.0", 'é, "')),
            CategoryList(name="l", categories=("p|q", "r")),
        )
    )
    task = PLACEMENT.model_copy(update={"signature": signature, "classes": (0, 1), "positive_class": 1})
    candidates: list[Candidate] = [
        {"x": 0.1 + 0.2, "b": True, "c": "1", "l": ("p|q", "r")},
        {"x": -1e-300, "b": False, "c": 'é, "', "l": ()},
        {"x": 3.0, "b": False, "c": "1.0", "l": ("r",)},
    ]
    dataset = dataclasses.replace(DATASET, task=task, candidates=candidates, labels=[0, 1, 1])
    write(dataset, tmp_path / "part")
    again = read(tmp_path / "part", task, "campus.csv, training part")
    assert again.candidates == candidates
    assert again.labels == [0, 1, 1]
    assert again.source == "campus.csv, training part"


def test_data_and_groups_are_checked_before_the_training(tmp_path):
    check = partial(validate, rows=300, seed=0, share=0.2)
    with pytest.raises(PipelineError, match=r"groups: 'sex' is unknown, expected .*: gender, "):
        check("", PLACEMENT, groups=["sex"])
    with pytest.raises(PipelineError, match="groups: 'ssc_p' is unknown"):
        check("", PLACEMENT, groups=["ssc_p"])
    (tmp_path / "bad.csv").write_text("gender,status\nF,Placed\n")
    with pytest.raises(DataError, match="missing"):
        check(str(tmp_path / "bad.csv"), PLACEMENT, groups=[])
    with pytest.raises(PipelineError, match=r"s3://b/data.csv: must be a path, file:// or pvc://"):
        check("s3://b/data.csv", PLACEMENT, groups=[])
    with pytest.raises(StorageError, match="scheme 'http' is not supported"):
        read_task("http://host/task.json")
    other = dataset_of(QUESTIONS["a number"]).task
    with pytest.raises(PipelineError, match="data: is required with a task"):
        check("", other, groups=[])
    training, held_out = check("", PLACEMENT, groups=["gender"])
    assert len(training.labels) + len(held_out.labels) == 300
