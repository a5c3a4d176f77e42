"""Generated candidates are repeatable, valid, and distributed as the statistics say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import statistics
from training.candidates import PLACEMENT, SIGNATURE, Task
from training.data import DataError
from training.generator import generate
from training.statistics import Statistics, describe
from transformer.bundle.signature import Category, Number, Signature


@settings(max_examples=20)
@given(rows=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_generated_candidates_are_repeatable_and_valid(rows, seed):
    dataset = generate(rows, seed)
    assert dataset == generate(rows, seed)
    assert len(dataset.candidates) == len(dataset.labels) == rows
    for candidate, label in zip(dataset.candidates, dataset.labels, strict=True):
        assert tuple(candidate) == SIGNATURE.names
        assert label in PLACEMENT.classes
        for field in SIGNATURE.fields:
            if isinstance(field, Number):
                value = candidate[field.name]
                assert isinstance(value, float)
                assert field.range[0] <= value <= field.range[1]
            else:
                assert isinstance(field, Category)
                assert candidate[field.name] in field.categories


def test_another_seed_gives_other_candidates():
    assert generate(50, 1).candidates != generate(50, 2).candidates
    assert generate(50, 1).sha256 != generate(50, 2).sha256


def test_generated_candidates_have_the_statistics_that_they_are_made_from():
    expected, found = Statistics.committed(), describe(generate(20_000))
    for cell, drawn in zip(expected.cells, found.cells, strict=True):
        assert (cell.label, cell.given) == (drawn.label, drawn.given)
        assert drawn.share == pytest.approx(cell.share, abs=0.01)
        for name, mean in cell.means.items():
            # The cut at 100 % changes the means of the widest distributions a little.
            assert drawn.means[name] == pytest.approx(mean, abs=1.3)
        np.testing.assert_allclose(drawn.correlations, cell.correlations, atol=0.12)
        for name, frequencies in cell.frequencies.items():
            assert drawn.frequencies[name] == pytest.approx(frequencies, abs=0.05)


def test_no_rows_is_an_error():
    with pytest.raises(DataError, match="rows must be at least 1, got 0"):
        generate(0)


def test_a_negative_seed_is_an_error():
    with pytest.raises(DataError, match="seed must be at least 0, got -1"):
        generate(10, -1)


def task_of(*fields: Number | Category, without: str = "", **changes) -> Task:
    new = {field.name: field for field in fields}
    kept = [new.pop(field.name, field) for field in SIGNATURE.fields if field.name != without]
    return PLACEMENT.model_copy(update={"signature": Signature(fields=(*kept, *new.values())), **changes})


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (task_of(Number(name="age", minimum=0, maximum=120)), "number 'age' is not described"),
        (
            task_of(Category(name="town", categories=("A", "B"))),
            "category 'town' must be one of A, B, described here: none",
        ),
        (
            task_of(Category(name="workex", categories=("Yes", "No", "Some"))),
            "category 'workex' must be one of Yes, No, Some, described here: Yes, No",
        ),
        (task_of(Category(name="ssc_p", categories=("A",))), "category 'ssc_p' must be one of A"),
        (task_of(without="mba_p"), "field 'mba_p' is not one of the candidate's fields"),
        (task_of(without="hsc_s"), "field 'hsc_s' is not one of the candidate's fields"),
        (
            task_of(Number(name="ssc_p", minimum=0, maximum=1)),
            r"number 'ssc_p' must be 0 to 1, its mean here is \d+",
        ),
        (task_of(classes=("Placed", "Refused")), "classes differ in Not Placed, Refused"),
    ],
    ids=["number", "category", "value", "type", "no number", "no category", "bounds", "classes"],
)
def test_statistics_of_other_candidates_are_refused_with_what_to_do(task, problem):
    with pytest.raises(DataError, match=problem) as error:
        generate(10, task=task)
    assert (
        str(error.value)
        .splitlines()[-1]
        .startswith("statistics.json: recompute it with `python -m training.statistics FILE.csv")
    )
    assert error.value.count == 2


def test_fields_may_come_in_another_order():
    order = tuple(reversed(SIGNATURE.fields))
    reordered = PLACEMENT.model_copy(update={"signature": Signature(fields=order)})
    assert tuple(generate(20, task=reordered).candidates[0]) == tuple(reversed(SIGNATURE.names))


def test_unreadable_statistics_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "STATISTICS_FILE", tmp_path / "statistics.json")
    with pytest.raises(DataError, match=r"statistics\.json: cannot be read; recompute it"):
        Statistics.committed()
    (tmp_path / "statistics.json").touch()
    with pytest.raises(DataError, match=r"statistics\.json: cannot be read; recompute it"):
        Statistics.committed()


def test_the_command_recomputes_the_statistics(tmp_path, capsys):
    dataset, path = generate(300), tmp_path / "a.csv"
    rows: list[list[object]] = [
        [*c.values(), label] for c, label in zip(dataset.candidates, dataset.labels, strict=True)
    ]
    lines: list[list[object]] = [[*SIGNATURE.names, "status"], *rows]
    path.write_text("\n".join(",".join(map(str, line)) for line in lines))
    assert statistics.main([str(path)]) == 0
    assert Statistics.model_validate_json(capsys.readouterr().out) == describe(dataset)
    assert statistics.main([str(tmp_path / "none.csv")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'none.csv'}: No such file or directory\n"
    assert statistics.main([]) == 2
    with pytest.raises(DataError, match="cells need field 'town', which the candidates do not have"):
        describe(dataset, given="town")
