"""Candidates are read from CSV files, and every problem is named with its row and column."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.candidates import PLACEMENT, SAMPLE, SIGNATURE, Task, TaskError
from training.data import DataError, read_dataset
from transformer.bundle.signature import Category, Number, Signature

ROW = {**SAMPLE, "status": "Placed"}
SMALL = Task(
    signature=Signature(
        fields=(
            Number(name="age", minimum=0, maximum=120),
            Category(name="town", categories=("A", "B"), default="B"),
        )
    ),
    label="answer",
    classes=("no", "yes"),
    positive_class="yes",
)


def write(path: Path, *rows: dict, columns: list[str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_columns_may_come_in_any_order(tmp_path):
    path = write(tmp_path / "a.csv", ROW, columns=sorted(ROW, reverse=True))
    dataset = read_dataset(path, PLACEMENT)
    assert (dataset.candidates, dataset.labels) == ([SAMPLE], ["Placed"])
    assert list(dataset.candidates[0]) == list(SIGNATURE.names)
    assert (dataset.source, dataset.generated) == ("a.csv", False)


def test_an_unknown_column_is_ignored_and_reported(tmp_path):
    path = write(tmp_path / "a.csv", {"sl_no": "1", **ROW, "salary": "200000"})
    dataset = read_dataset(path, PLACEMENT)
    assert dataset.candidates == [SAMPLE]
    assert dataset.ignored == ("sl_no", "salary")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ssc_p", "710", "must be 0 to 100, got '710'"),
        ("ssc_p", "-0.1", "must be 0 to 100, got '-0.1'"),
        ("mba_p", "nan", "must be 0 to 100, got 'nan'"),
        ("mba_p", "inf", "must be 0 to 100, got 'inf'"),
        ("etest_p", "5_6", "must be 0 to 100, got '5_6'"),
        ("etest_p", "", "must be 0 to 100, got ''"),
        ("gender", "X", "must be one of M, F, got 'X'"),
        ("etest_p", "9" * 99, "must be 0 to 100, got '" + "9" * 38 + "…"),
        ("hsc_s", "science", "must be one of Science, Commerce, Arts, got 'science'"),
        ("status", "placed", "must be one of Not Placed, Placed, got 'placed'"),
    ],
)
def test_a_wrong_value_is_named_with_row_line_and_column(tmp_path, field, value, message):
    path = write(tmp_path / "a.csv", ROW, {**ROW, field: value})
    with pytest.raises(DataError) as error:
        read_dataset(path, PLACEMENT)
    assert str(error.value) == f"{path}: row 2 (line 3), column {field!r}: {message}"


def test_twenty_problems_are_listed_and_the_rest_is_counted(tmp_path):
    path = write(tmp_path / "a.csv", *[{**ROW, "mba_p": "?", "gender": "?"}] * 15)
    with pytest.raises(DataError) as error:
        read_dataset(path, PLACEMENT)
    lines = str(error.value).splitlines()
    assert len(lines) == 21
    assert "row 1 (line 2), column 'gender'" in lines[0]
    assert "row 1 (line 2), column 'mba_p'" in lines[1]
    assert lines[-1] == "and 10 more problems"
    assert error.value.count == 30


def test_rows_of_another_width_are_reported_with_the_other_problems(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("age,answer\n1,yes\n1\n200,no\n1,no,more\n")
    with pytest.raises(DataError) as error:
        read_dataset(path, SMALL)
    assert str(error.value).splitlines() == [
        f"{path}: row 2 (line 3): must have 2 cells, got 1",
        f"{path}: row 3 (line 4), column 'age': must be 0 to 120, got '200'",
        f"{path}: row 4 (line 5): must have 2 cells, got 3",
    ]


def test_line_numbers_are_those_of_an_editor(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('age,town,answer,"a\nnote"\n\n1,A,yes,"two\nlines"\n200,A,yes,-\n')
    with pytest.raises(DataError, match=r"row 2 \(line 6\), column 'age': must be 0 to 120"):
        read_dataset(path, SMALL)


@pytest.mark.parametrize("name", ["Town", "TOWN", "t_own", "to-wn", "to wn", "town."])
def test_a_column_that_differs_from_a_fields_only_in_spelling_is_refused(tmp_path, name):
    """Without this, the field would have its default in every row, silently."""
    path = tmp_path / "a.csv"
    path.write_text(f"age,{name},answer\n30,A,yes\n")
    with pytest.raises(DataError, match=f"column '{name}' must be spelled 'town'$"):
        read_dataset(path, SMALL)
    path.write_text(f"age,town,{name},answer\n30,A,C,yes\n")
    assert read_dataset(path, SMALL).candidates == [{"age": 30.0, "town": "A"}]


def test_the_labels_column_must_be_spelled_as_in_the_task(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("AGE,town,Answer\n30,A,yes\n")
    with pytest.raises(DataError) as error:
        read_dataset(path, SMALL)
    assert str(error.value).splitlines() == [
        f"{path}: column 'AGE' must be spelled 'age'",
        f"{path}: column 'Answer' must be spelled 'answer'",
    ]


def test_blanks_around_names_and_categories_do_not_count(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(" age ,town, answer\n 30 , A,yes \n")
    dataset = read_dataset(path, SMALL)
    assert (dataset.candidates, dataset.labels) == ([{"age": 30.0, "town": "A"}], ["yes"])


@pytest.mark.parametrize(
    ("content", "defaulted", "ignored"),
    [
        ("age,city,answer\n30,A,yes\n", ("town",), ("city",)),
        ("age,town,answer\n30, ,yes\n31,,no\n", ("town",), ()),
        ("age,town,answer\n30,,yes\n31,A,no\n", (), ()),
        ("age,town,answer\n30,B,yes\n", (), ()),
    ],
)
def test_a_field_with_its_default_in_every_row_is_named(tmp_path, content, defaulted, ignored):
    path = tmp_path / "a.csv"
    path.write_text(content)
    dataset = read_dataset(path, SMALL)
    assert (dataset.defaulted, dataset.ignored) == (defaulted, ignored)


def test_an_empty_cell_or_a_missing_column_gets_the_default(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeffage,town,answer\r\n30,,yes\r\n31,A,no\r\n")
    assert read_dataset(path, SMALL).candidates == [{"age": 30.0, "town": "B"}, {"age": 31.0, "town": "A"}]
    path.write_text("age,answer\n30,yes\n")
    assert read_dataset(path, SMALL).candidates == [{"age": 30.0, "town": "B"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have a line of column names and at least one row"),
        (b"age,answer\n", "must have a line of column names and at least one row"),
        (b"age,age,answer\n1,2,yes\n", "duplicate column 'age'"),
        (b"town,answer\nA,yes\n", "column 'age' is missing, found: town, answer"),
        (b"age,answer\n1,yes,more\n", r"row 1 \(line 2\): must have 2 cells, got 3"),
        (b"age,answer\n1,yes\n\xff,yes\n", "line 3: must be UTF-8"),
        (b"age,answer\n" + b"1" * 200_000 + b",yes\n", "line 2: a cell has more than 131,072 characters"),
        (b'age,answer\n"1"2,yes\n', "line 2: "),
    ],
)
def test_a_malformed_table_is_refused(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.csv: {message}"):
        read_dataset(path, SMALL)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_dataset(tmp_path / "none.csv", SMALL)


@given(
    st.lists(st.tuples(st.floats(0, 120), st.sampled_from("AB"), st.sampled_from(["no", "yes"])), min_size=1)
)
def test_a_written_file_is_read_unchanged(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    write(path, *[dict(zip(("age", "town", "answer"), row, strict=True)) for row in rows])
    dataset = read_dataset(path, SMALL)
    read = [(c["age"], c["town"], label) for c, label in zip(dataset.candidates, dataset.labels, strict=True)]
    assert read == rows


def test_a_custom_task_is_a_json_file(tmp_path):
    path = tmp_path / "task.json"
    path.write_text(SMALL.model_dump_json())
    assert Task.read(path) == SMALL
    assert (PLACEMENT.negative_name, SMALL.negative_name) == ("Not Placed", "no")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "age"}, r"label: must not be one of the fields, got 'age'"),
        ({"classes": ["no"]}, "classes: must be two different classes, got no$"),
        ({"classes": ["no", "no"]}, "classes: must be two different classes, got no, no$"),
        ({"classes": ["no", "yes", "maybe"]}, "classes: must be two different classes, got no, yes, maybe; "),
        ({"kind": "multiclass"}, "classes: must be three or more different classes, got no, yes\n"),
        ({"classes": [0.5, 1.5]}, "classes: must be whole numbers, as scikit-learn takes no others, got 0.5"),
        ({"kind": "regression"}, "classes: must be left out for the kind regression, got no, yes"),
        ({"kind": "regression", "classes": []}, "positive_class: must be left out for the kind regression"),
        ({"classes": ["no", True]}, "classes: must be of one type, got booleans and texts"),
        (
            {"classes": [2**63, 1]},
            r"classes\[0\]: must be a whole number of at most 64 bits, got 9223372036854775808",
        ),
        (
            {"classes": [0, 1], "positive_class": True},
            "positive_class: must be one of 0, 1, got true",
        ),
        (
            {"classes": [0, 1], "positive_class": None},
            "positive_class: is required, expected one of 0, 1",
        ),
        ({"positive_class": "maybe"}, "positive_class: must be one of no, yes, got 'maybe'"),
        ({"colour": "red"}, "colour: is not known$"),
        (
            {
                "signature": {
                    "fields": [
                        {"name": "tags", "type": "categories", "categories": ["a"], "default": "a"},
                        {"name": "more", "type": "categories", "categories": "a"},
                    ]
                }
            },
            r"tags\.default: must be a list, got a string 'a'\n.*more\.categories: must be a list, got a st",
        ),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(tmp_path, change, message):
    import json

    path = tmp_path / "task.json"
    path.write_text(json.dumps(SMALL.model_dump(mode="json") | change))
    with pytest.raises(TaskError, match=message):
        Task.read(path)
    with pytest.raises(TaskError, match="No such file"):
        Task.read(tmp_path / "none.json")
