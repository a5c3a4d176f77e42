"""Errors name the field and say what came, without a library's words."""

import json
import re

import jsonschema_rs
import pytest

from tests.support.paths import ROOT
from training.candidates import Task, TaskError

AGE = {"name": "age", "type": "number", "minimum": 0, "maximum": 120}
TOWN = {"name": "town", "type": "category", "categories": ["A", "B"]}
TASK = {
    "signature": {"fields": [AGE, TOWN]},
    "label": "answer",
    "classes": ["no", "yes"],
    "positive_class": "yes",
}
#: Words of pydantic, and positions or tags that no user wrote.
FOREIGN = ("Input", "input", "Value error", "validation", "Tuple", "tag", "Field required", "signature.")


def _with_field(**changes):
    return {"signature": {"fields": [{**AGE, **changes}, TOWN]}}


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (_with_field(maximum="x"), ["age.maximum: must be a number, got a string 'x'"]),
        (_with_field(minimum=200), ["age: minimum 200 is above maximum 120"]),
        (_with_field(default=200), ["age: default 200 is not 0 to 120"]),
        (_with_field(minimun=0), ["age.minimun: is not known; did you mean 'minimum'?"]),
        (_with_field(type="int"), ["age.type: must be 'number' or 'integer' or 'boolean' or 'category' or "
                                   "'categories', got 'int'"]),
        ({"classes": ["no", ["x"]]}, ["classes[1]: must be a text, a number or a boolean, got an array"]),
        ({"positive_class": {}}, ["positive_class: must be a text, a number or a boolean, got an object"]),
        ({"kind": "counting"},
         ["kind: must be 'binary', 'multiclass' or 'regression', got a string 'counting'"]),
        (_with_field(name=""), ["signature.fields[0].name: must not be empty"]),
        (_with_field(name="town"), ["signature: duplicate field name 'town'"]),
        ({"signature": {"fields": [{"name": "age"}]}}, ["age.type: is required"]),
        ({"signature": {"fields": [{**TOWN, "categories": ["A", 1]}]}},
         ["town.categories[1]: must be a string, got the number 1"]),
        ({"signature": {"fields": [{**TOWN, "categories": []}]}},
         ["town.categories: must have 1 or more items, got 0"]),
        ({"signature": {"fields": [{**TOWN, "categories": ["A", "A"]}]}}, ["town: duplicate category 'A'"]),
        ({"signature": {"fields": [{"name": "town", "type": "category"}]}},
         ["town.categories: is required"]),
        ({"signature": {"fields": [3]}}, ["signature.fields[0]: must be an object, got the number 3"]),
        ({"signature": {"fields": []}}, ["signature.fields: must have 1 or more items, got 0"]),
        ({"label": None, "lable": "x"}, ["label: must be a string, got null",
                                         "lable: is not known; did you mean 'label'?"]),
        ({"label": ""}, ["label: must not be empty"]),
        ({"classes": "yes"}, ["classes: must be a list, got a string 'yes'"]),
        ({"row_name": "a1"}, ["row_name: must match ^[A-Za-z][A-Za-z -]{0,30}$, got a string 'a1'"]),
    ],
)  # fmt: skip
def test_a_wrong_task_file_names_each_field(tmp_path, change, problems):
    path = tmp_path / "task.json"
    path.write_text(json.dumps({**TASK, **change}))
    with pytest.raises(TaskError) as raised:
        Task.read(path)
    lines = str(raised.value).splitlines()
    assert lines == [f"{path}: {problem}" for problem in problems]
    assert not any(word in line.replace("signature.fields", "") for line in lines for word in FOREIGN)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"label": }', "line 1: is not JSON: Expecting value"),
        (b"", "line 1: is not JSON: Expecting value"),
        (b"\xff", "must be UTF-8"),
        (b"[]", "content: must be an object, got an array"),
    ],
)
def test_a_file_that_is_no_task_is_refused(tmp_path, content, problem):
    path = tmp_path / "task.json"
    path.write_bytes(content)
    with pytest.raises(TaskError) as raised:
        Task.read(path)
    assert str(raised.value) == f"{path}: {problem}"


def test_a_task_file_may_have_remarks_classes_in_any_order_and_no_ranges(tmp_path):
    path = tmp_path / "task.json"
    bare = {"name": "age", "type": "number", "comment": "in years"}
    content = {
        **TASK, "$schema": "task.schema.json", "comment": "a task",
        "signature": {"fields": [bare, TOWN]}, "classes": ["yes", "no"],
    }  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    task = Task.read(path)
    assert task.classes == ("no", "yes")
    assert (task.signature.names, task.row_name) == (("age", "town"), "row")
    assert task.signature.fields[0].expected == "a finite number"


# The page and the schema of task files


def test_the_committed_schema_is_that_of_the_code():
    assert json.loads((ROOT / "docs/task.schema.json").read_text()) == Task.json_schema()


def test_the_example_of_the_page_is_a_task_by_the_code_and_by_the_schema(tmp_path):
    (example,) = re.findall(
        r"<!-- task -->\n```json\n(.*?)```", (ROOT / "docs/task_file.md").read_text(), re.DOTALL
    )
    (tmp_path / "task.json").write_text(example)
    assert Task.read(tmp_path / "task.json").row_name == "customer"
    jsonschema_rs.validate(Task.json_schema(), json.loads(example))


@pytest.mark.parametrize(
    "change",
    [
        {"colour": 1}, {"label": ""}, {"classes": ["a"]}, {"classes": ["a", "a"]}, {"row_name": "1"},
        {"signature": {"fields": []}}, _with_field(minimun=0), _with_field(maximum="x"),
        _with_field(type="int"), {"signature": {"fields": [{"name": "age"}]}},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_code_refuses(change, tmp_path):
    content = {**TASK, **change}
    assert jsonschema_rs.is_valid(Task.json_schema(), TASK)
    assert not jsonschema_rs.is_valid(Task.json_schema(), content)
    (tmp_path / "task.json").write_text(json.dumps(content))
    with pytest.raises(TaskError):
        Task.read(tmp_path / "task.json")
