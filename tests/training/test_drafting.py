"""The draft of a task fits its data, says what it was drawn from, and leaves out what is no field."""

import csv
import json
from pathlib import Path

import pytest

from placement import cli
from training.candidates import PLACEMENT, Task
from training.data import DataError, read_dataset
from training.drafting import draft, model_name
from training.example import ROWS, example_csv
from training.generator import generate
from training.table_file import Reading
from transformer.bundle.signature import Category, Number


@pytest.fixture
def table(tmp_path):
    """Write a table with one column and the label, 30 rows."""

    def write(cells, label="answer", name="x", classes=("no", "yes")):
        path = tmp_path / "own.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([name, "other", label])
            for number in range(30):
                writer.writerow([cells[number % len(cells)], number % 3, classes[number % len(classes)]])
        return path

    return write


def test_the_draft_of_generated_candidates_is_the_task_of_this_project(tmp_path):
    """The same fields and categories; only the ranges are not known from the data."""
    dataset = generate(500, seed=3)
    path = tmp_path / "candidates.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["sl_no", *PLACEMENT.signature.names, "status"])
        writer.writeheader()
        for number, (candidate, label) in enumerate(zip(dataset.candidates, dataset.labels, strict=True)):
            writer.writerow({"sl_no": number, **candidate, "status": label})
    drafted = draft(path, "status")
    assert drafted.left_out == {"sl_no": "looks like an identifier, 500 different whole numbers"}
    for found, expected in zip(drafted.task.signature.fields, PLACEMENT.signature.fields, strict=True):
        assert (found.name, type(found)) == (expected.name, type(expected))
        if isinstance(found, Category) and isinstance(expected, Category):
            assert set(found.categories) == set(expected.categories)
        if isinstance(found, Number):
            assert 0 <= found.range[0] < found.range[1] <= 150
    assert drafted.task.positive_class == "Placed"
    assert read_dataset(path, drafted.task).labels == dataset.labels


def test_the_example_is_drafted_and_read(tmp_path):
    path = tmp_path / "churn.csv"
    path.write_text(example_csv())
    assert example_csv() == example_csv()
    drafted = draft(path, "churn", "customer")
    (tmp_path / "churn.json").write_text(drafted.text)
    task = Task.read(tmp_path / "churn.json")
    assert task == drafted.task
    assert (task.positive_class, task.row_name) == ("yes", "customer")
    assert list(drafted.left_out) == ["customer_id"]
    fields = {field.name: field for field in task.signature.fields}
    assert fields["totalcharges"].default is not None, "its cells are empty for new customers"
    assert fields["tenure"].default is None
    assert fields["senior"] == Number(name="senior", minimum=0, maximum=1)
    dataset = read_dataset(path, task)
    assert (len(dataset.labels), dataset.defaulted, dataset.ignored) == (ROWS, (), ("customer_id",))


def test_the_file_says_what_each_field_was_drawn_from(tmp_path):
    path = tmp_path / "churn.csv"
    path.write_text(example_csv())
    content = json.loads(draft(path, "churn").text)
    assert all("comment" in field for field in content["signature"]["fields"])
    assert any("customer_id" in remark for remark in content["comment"])


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["0", "1"], (0, 1)),
        (["0.2", "0.75"], (0, 1)),
        (["0", "72"], (0, 150)),
        (["18.25", "118.75"], (0, 200)),
        (["-3", "40"], (-5, 60)),
        (["-40", "-3"], (-60, 0)),
        (["1990", "2020"], (1960, 2050)),
        (["5e8", "9e8"], (1e8, 1.3e9)),
        (["1", "3"], (0, 5)),
    ],
)
def test_ranges_are_widened_to_round_numbers(table, cells, expected):
    number = draft(table(cells), "answer").task.signature.fields[0]
    assert isinstance(number, Number)
    assert number.range == expected


def test_empty_cells_make_a_default(table):
    number = draft(table(["1", "", "3", "8"]), "answer").task.signature.fields[0]
    assert (number.type, number.default) == ("number", 3)
    category = draft(table(["a", " ", "b", "b"]), "answer").task.signature.fields[0]
    assert (category.type, category.default) == ("category", "b")


@pytest.mark.parametrize(
    ("cells", "name", "reason"),
    [
        ([f"C{n}" for n in range(30)], "x", "looks like an identifier or free text, 30 different texts"),
        ([str(n) for n in range(30)], "x", "looks like an identifier, 30 different whole numbers"),
        ([str(7 * n) for n in range(30)], "customerId", "looks like an identifier, 30 different"),
        ([str(7 * n) for n in range(25)], "user_id", "looks like an identifier, 25 different"),
        ([""], "x", "every cell is empty"),
        (["same"], "x", "has only the value 'same'"),
        (["5"], "x", "has only the value '5'"),
    ],
)
def test_a_column_that_is_no_field_is_left_out_and_named(table, cells, name, reason):
    drafted = draft(table(cells, name=name), "answer")
    assert drafted.task.signature.names == ("other",)
    assert drafted.left_out[name].startswith(reason)


@pytest.mark.parametrize(
    ("cells", "name"),
    [([str(7 * n) for n in range(30)], "balance"), ([str(n % 25) for n in range(30)], "x"),
     ([str(n / 2) for n in range(30)], "valid")],
)  # fmt: skip
def test_other_numbers_are_fields(table, cells, name):
    assert draft(table(cells, name=name), "answer").task.signature.names[0] == name


@pytest.mark.parametrize(
    ("classes", "label", "positive"),
    [
        (("0.0", "1.0"), "y", "1.0"),
        (("no", "yes"), "churn", "yes"),
        (("0", "1"), "y", "1"),
        (("False", "True"), "left", "True"),
        (("stays", "churned"), "churn", "churned"),
        (("Not Placed", "Placed"), "status", "Placed"),
        (("a", "a", "b"), "kind", "b"),
    ],
)
def test_the_positive_class_says_yes_or_is_named_like_the_label_or_is_rarer(table, classes, label, positive):
    assert draft(table(["1", "2"], label, classes=classes), label).task.positive_class == positive


@pytest.mark.parametrize(
    ("label", "classes", "problem"),
    [
        ("none", ("no", "yes"), "column 'none' is missing, found: x, other, answer"),
        ("answer", ("no",), "column 'answer' must have 2 to 100 classes, got 1: no"),
        ("answer", ("no", "yes", ""), "column 'answer' is empty in 10 rows, first in row 3 (line 4); remove"),
    ],
)
def test_a_label_that_cannot_be_predicted_is_refused(table, label, classes, problem):
    with pytest.raises(DataError) as raised:
        draft(table(["1", "2"], classes=classes), label)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        (("c", "a", "b"), "multiclass", ("a", "b", "c")),
        (("3", "1", "10"), "multiclass", (1, 3, 10)),
        (("1.5", "2", "7"), "regression", ()),
        (("0", "1"), "binary", ("0", "1")),
    ],
)
def test_the_kind_of_question_is_drafted_from_the_label(table, labels, kind, classes):
    path = table(["1", "2"], classes=labels)
    task = draft(path, "answer").task
    assert (task.kind, task.classes) == (kind, classes)
    assert {type(label) for label in read_dataset(path, task).labels} == {
        type(one) for one in classes or (0.5,)
    }


def test_the_label_is_found_in_any_spelling_and_kept_as_the_table_has_it(table):
    path = table(["1", "2"], "Will Churn")
    assert draft(path, "will_churn").task.label == "Will Churn"
    assert read_dataset(path, draft(path, "willchurn").task).labels[:2] == ["no", "yes"]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Churn", "churn"),
        ("Will churn?", "will-churn"),
        ("default payment", "default-payment"),
        ("1", "model-1"),
    ],
)
def test_the_model_is_named_after_the_label(label, name):
    assert model_name(label) == name


# The command


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = cli.main(["init", *arguments])
        return status, *capsys.readouterr()

    return run


def test_init_writes_a_task_and_prints_the_next_command(init):
    assert init("churn.csv", "--example")[1].endswith("\n\n  placement init churn.csv --label churn\n")
    status, out, err = init("churn.csv", "--label", "churn", "--row_name", "customer")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].strip() == "placement train --task churn.json --data churn.csv --name churn"
    assert "left out  customer_id: looks like an identifier" in out
    assert "predicts  the probability of churn = yes" in out
    assert read_dataset("churn.csv", Task.read("churn.json")).task.row_name == "customer"


def test_init_overwrites_nothing(init):
    Path("churn.csv").write_text(example_csv().replace("C0001", "mine"))
    assert init("churn.csv", "--example")[0] == 1
    assert "mine" in Path("churn.csv").read_text()
    assert init("churn.csv", "--label", "churn")[0] == 0
    Path("churn.json").write_text("mine")
    status, _, err = init("churn.csv", "--label", "churn")
    assert status == 1
    assert err == (
        "placement init: churn.json: exists and is not overwritten; remove it, or name another file\n"
    )
    assert Path("churn.json").read_text() == "mine"
    assert init("churn.csv", "--label", "churn", "-o", "other.json")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [([], "FILE is required"), (["none.csv"], "--label is required"),
     (["none.csv", "--label", "y"], "none.csv: No such file or directory")],
)  # fmt: skip
def test_init_says_what_is_missing(init, arguments, problem):
    status, _, err = init(*arguments)
    assert status == 1
    assert err.startswith(f"placement init: {problem}")


@pytest.mark.parametrize("decimal", [".", ","])
def test_labels_with_leading_zeros_are_texts(table, decimal):
    path = table(["1", "2"], "code", classes=("007", "08", "1"))
    task = draft(path, "code", reading=Reading(decimal=decimal)).task
    assert (task.kind, task.classes) == ("multiclass", ("007", "08", "1"))
