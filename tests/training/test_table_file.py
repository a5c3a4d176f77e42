"""Files are read as spreadsheet programs and notebooks write them: every format gives the same rows."""

import argparse
import base64
import bz2
import codecs
import gzip
import io
import json
import lzma
import pickle
import subprocess
import sys

import pandas as pd
import pytest

from training.candidates import Task
from training.cells import with_decimal_point
from training.data import read_dataset
from training.drafting import draft
from training.table import DataError
from training.table_file import Reading
from transformer.bundle.signature import Category, Number, Signature

TASK = Task(
    signature=Signature(
        fields=(
            Number(name="age", minimum=0, maximum=120),
            Category(name="town", categories=("Bern", "Zürich", "7"), default="Bern"),
        )
    ),
    label="answer",
    classes=("no", "yes"),
    positive_class="yes",
)
CANDIDATES = [{"age": 30.5, "town": "Zürich"}, {"age": 31.0, "town": "Bern"}]
FRAME = pd.DataFrame([{**one, "answer": label} for one, label in zip(CANDIDATES, ("yes", "no"), strict=True)])
CSV = "age,town,answer\n30.5,Zürich,yes\n31,Bern,no\n"
ROWS = FRAME.to_dict("records")


@pytest.fixture
def read(tmp_path):
    """Write a file, and read it."""

    def read(content, name="a.csv", **reading):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_dataset(path, TASK, Reading(**reading))

    return read


def check(dataset, candidates=CANDIDATES, labels=("yes", "no")):
    assert (dataset.candidates, tuple(dataset.labels)) == (candidates, labels)


@pytest.mark.parametrize(
    ("content", "passed_over"),
    [
        ("age,town,answer,,\n30.5,Zürich,yes,,\n31,Bern,no,,\n", "2 columns without a name"),
        ("age,town,answer,,\n30.5,Zürich,yes,x,\n31,Bern,no\n", "2 columns without a name"),
        (",age,town,answer\n0,30.5,Zürich,yes\n1,31,Bern,no\n", "1 column without a name"),
        ("age,town,answer\n30.5,Zürich,yes,,\n31,Bern,no, \n", ""),
        ("x,age,town,answer,x\na,30.5,Zürich,yes,b\n,31,Bern,no,\n", "1 other column (x)"),
        (
            'id,age,town,answer,"a note"\n1,30.5,Zürich,yes,-\n2,31,Bern,no,-\n',
            "2 other columns (id, a note)",
        ),
        ("age,town,answer\n30.5,Zürich,yes\n,,\n , ,\n31,Bern,no\n,,\n", "3 empty rows"),
        (",,\nage,town,answer\n30.5,Zürich,yes\n31,Bern,no\n", ""),
        ("\n\nage,town,answer\n\n30.5,Zürich,yes\n\n31,Bern,no\n", ""),
        (" age ,\ttown,answer \n 30.5 , Zürich ,yes\n31,\xa0Bern\xa0,no \n", ""),
        ('"age", "town", "answer"\n"30.5", "Zürich", "yes"\n"31", "Bern", "no"\n', ""),
        (
            ",x,age,town,x,answer,\n1,,30.5,Zürich,,yes,\n,,,,,,\n2,,31,Bern,,no,\n",
            "2 columns without a name, 1 other column (x), 1 empty row",
        ),
    ],
)
def test_what_is_no_value_is_passed_over_and_counted(read, content, passed_over):
    dataset = read(content)
    check(dataset)
    assert dataset.passed_over == passed_over


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_are_recognised(read, separator):
    check(read(CSV.replace(",", separator)))
    check(read(f"sep={separator}\r\n" + CSV.replace(",", separator)))


def test_a_separator_is_the_one_that_gives_the_known_names(read):
    check(read("age;town;answer;a,b,c,d,e,f\n30.5;Zürich;yes;1\n31;Bern;no;\n"))
    check(read("town,age,answer,a;b;c;d;e;f\nZürich,30.5,yes,1\nBern,31,no,\n"))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("30,5", 30.5),
        (" -0,5 ", -0.5),
        ("3,0", 3.0),
        ("007", "007"),
        ("12345678901234567890", "12345678901234567890"),
        (" 7 ", "7"),
        ("1.234,5", "1.234,5"),
        ("Ulm, Neu-Ulm", "Ulm, Neu-Ulm"),
        (30.5, 30.5),
        (None, None),
    ],
)
def test_only_a_text_with_a_decimal_comma_becomes_a_number(cell, expected):
    found = with_decimal_point(cell, ",")
    assert (type(found), found) == (type(expected), expected)


def test_decimal_commas_are_read_where_an_option_says_so(read):
    check(read("age;town;answer\n30,5;Zürich;yes\n31;Bern;no\n", decimal=","))
    check(read('age,town,answer\n"30,5",Zürich,yes\n31,Bern,no\n', decimal=","))
    with pytest.raises(DataError, match=r"row 1 \(line 2\), column 'age': .*'30,5'; for decimal commas add"):
        read("age;town;answer\n30,5;Zürich;yes\n")
    with pytest.raises(DataError, match=r"'1\.234'; with --decimal , a number has a decimal comma"):
        read("age;town;answer\n1.234;Zürich;yes\n", decimal=",")


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (CSV.encode("utf-8-sig"), None),
        (CSV.encode("utf-8-sig"), "utf-8"),
        (CSV.encode("utf-16"), None),
        (codecs.BOM_UTF16_BE + CSV.encode("utf-16-be"), None),
        (CSV.encode("utf-32"), None),
        (CSV.encode("utf-16"), "utf-16"),
        (CSV.encode("utf-16-le"), "utf-16-le"),
        (CSV.encode("latin-1"), "latin-1"),
        (CSV.encode("cp1252"), "cp1252"),
        (CSV.replace(",", "\t").encode("utf-16"), None),
    ],
)
def test_encodings_are_recognised_or_named(read, content, encoding):
    check(read(content, encoding=encoding))


def test_json_in_another_encoding_is_read(read):
    text = FRAME.to_json(orient="records", force_ascii=False)
    check(read(text.encode("utf-8-sig"), "a.json"))
    check(read(text.encode("utf-16"), "a.json"))
    check(read(text.encode("latin-1"), "a.json", encoding="latin-1"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (CSV.encode("latin-1"), "line 2: must be UTF-8; name its encoding, for example --encoding latin-1"),
        (CSV.encode("utf-16")[:-1], "line 3: must be UTF-16-LE"),
        (b"PK\x03\x04...", "is a spreadsheet or ZIP file; save it as CSV"),
        (b"\xd0\xcf\x11\xe0", "is an old Excel file; save it as CSV"),
        (bz2.compress(CSV.encode()), "is compressed with bzip2; decompress it, or use gzip"),
        (lzma.compress(CSV.encode()), "is compressed with xz; decompress it, or use gzip"),
        (b"\x28\xb5\x2f\xfd\0", "is compressed with Zstandard; decompress it, or use gzip"),
        (
            gzip.compress(gzip.compress(CSV.encode(), mtime=0), mtime=0),
            "is compressed twice; decompress it once",
        ),
        (b"ARROW1\0\0", "is an Arrow or Feather file; save it as Parquet"),
        (pickle.dumps(FRAME), "is a pickle; save it as CSV or Parquet"),
        (CSV.encode("utf-16-le"), "line 1: has a NUL character; if it is UTF-16, add --encoding utf-16-le"),
        (b"age,answer\n1,yes\0\n", "line 2: has a NUL character"),
        (b'age,answer\n1,"yes\n', "line 2: a quoted cell has no closing quote"),
        (b'age,answer\n1,"y"es\n', "line 2: after a cell's closing quote, the separator or the line's end"),
        (
            b'age,answer\n1,"' + 200_000 * b"x",
            "line 2: a cell has more than 131,072 characters; is a closing",
        ),
        (gzip.compress(CSV.encode(), mtime=0)[:-9], "is damaged: Compressed file ended before"),
        (b"\x1f\x8bnoise noise noise", "is damaged: Unknown compression method"),
        (b",,\n;;\n", "must have a line of column names and at least one row"),
        (b"age,town,age,answer\n1,Bern,2,yes\n", "duplicate column 'age'"),
        (b"age,Answer\n1,yes\n", "column 'Answer' must be spelled 'answer'"),
        (b"age,answer\n1\n", r"row 1 (line 2): must have 2 cells, got 1"),
        (b"age,answer\n1,yes,x\n", r"row 1 (line 2): must have 2 cells, got 3"),
        (b"age,answer\n1,yes\n,,\n,no\n", "row 2 (line 4), column 'age': must be 0 to 120, got ''"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(read, content, problem):
    with pytest.raises(DataError) as error:
        read(content)
    assert f"a.csv: {problem}" in str(error.value)


ORIENTS = ["records", "columns", "index", "split", "table"]


@pytest.mark.parametrize("orient", ORIENTS)
def test_every_orient_of_pandas_is_read(read, orient):
    check(read(FRAME.to_json(orient=orient), "a.json"))
    two = FRAME.set_axis(["b", "a"], axis=0)
    check(read(two.to_json(orient=orient), "a.json"))


INPUTS = [
    {"name": "age", "datatype": "FP64", "shape": [2, 1], "data": [[30.5], [31]]},
    {"name": "town", "datatype": "BYTES", "shape": [2], "data": ["Zürich", "Bern"]},
    {"name": "answer", "datatype": "BYTES", "shape": [2], "data": ["yes", "no"]},
]
IN_BASE64 = {
    **INPUTS[1],
    "parameters": {"content_type": "base64"},
    "data": [base64.b64encode(text.encode()).decode() for text in ("Zürich", "Bern")],
}
OBJECTS = {"name": "candidates", "datatype": "BYTES", "shape": [2], "data": [json.dumps(row) for row in ROWS]}


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        FRAME.to_dict("list"),
        {"instances": ROWS},
        {"inputs": ROWS},
        {"instances": [FRAME.to_dict("list")]},
        {"id": "7", "inputs": INPUTS, "outputs": [{"name": "answer"}]},
        {"inputs": [INPUTS[0], IN_BASE64, INPUTS[2]]},
        {"inputs": [OBJECTS]},
        [{"age": "30.5", "town": "Zürich", "answer": "yes"}, {"age": "31", "town": None, "answer": "no"}],
    ],
    ids=lambda content: json.dumps(content)[:40],
)
def test_json_and_saved_requests_are_read(read, content):
    check(read(json.dumps(content, indent=1), "a.json"))


def test_json_lines_are_read_and_problems_have_their_lines(read):
    lines = FRAME.to_json(orient="records", lines=True)
    for name in ("a.jsonl", "a.ndjson", "a.json"):
        check(read(lines, name))
    check(read(lines.replace("\n", "\r\n\r\n"), "a.jsonl"))
    with pytest.raises(DataError, match=r"row 2 \(line 3\): is not JSON: NaN at line 1 column 8"):
        read('{"age": 1, "answer": "no"}\n\n{"age":NaN}\n', "a.jsonl")
    with pytest.raises(
        DataError, match=r"row 2 \(line 2\), field 'age': must be 0 to 120, got the number 710"
    ):
        read('{"age": 1, "answer": "no"}\n{"age": 710, "answer": "no"}\n', "a.jsonl")
    with pytest.raises(DataError, match=r"row 2 \(line 2\): must be an object of fields and values"):
        read('{"age": 1, "answer": "no"}\n7\n', "a.jsonl")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([[1, 2]], "has rows without field names; write it with another orient than 'values'"),
        ({"age": [1, 2], "answer": ["yes"]}, "equally many values for each field, got age 2, answer 1"),
        ({"inputs": [{"name": "age", "datatype": "FP64", "shape": [1]}]}, "tensor 'age': must have data"),
        ({"inputs": [{**IN_BASE64, "data": ["?"]}]}, "tensor 'town': must be UTF-8 in base64"),
        ({"inputs": [INPUTS[0], INPUTS[0]]}, "duplicate tensor name"),
        ([{"age": 1}], "field 'answer' is missing, found: age"),
        ([{"age": True, "answer": "yes"}], "row 1, field 'age': must be 0 to 120, got a boolean true"),
        (
            [{"age": 1, "answer": "yes"}, {"Age": 1, "answer": "no"}],
            "row 2, field 'age': must be spelled 'age'",
        ),
        ([{"age": 1, "answer": ["yes"]}], "row 1, field 'answer': must be one of no, yes, got an array"),
    ],
    ids=lambda content: json.dumps(content)[:40],
)
def test_what_is_wrong_in_json_is_named(read, content, problem):
    with pytest.raises(DataError) as error:
        read(json.dumps(content), "a.json")
    assert problem in str(error.value)


def test_a_number_stands_for_the_category_that_it_names(read):
    for value in (7, 7.0, "7"):
        assert (
            read(json.dumps([{"age": 1, "town": value, "answer": "no"}]), "a.json").candidates[0]["town"]
            == "7"
        )


def test_parquet_is_read(read):
    content = io.BytesIO()
    FRAME.astype({"town": "category"}).assign(id=[1, 2]).to_parquet(content)
    dataset = read(content.getvalue(), "a.parquet")
    check(dataset)
    assert dataset.passed_over == "1 other column (id)"
    check(read(content.getvalue(), "a"))
    content = io.BytesIO()
    FRAME.assign(age=[float("nan"), 1]).to_parquet(content)
    with pytest.raises(DataError, match=r"row 1, column 'age': must be 0 to 120, got null$"):
        read(content.getvalue(), "a.parquet")
    with pytest.raises(DataError, match="is not Parquet"):
        read(b"PAR1", "a.parquet")


def test_parquet_without_pyarrow_says_what_to_install(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DataError, match=r"a\.parquet: is Parquet, which needs pyarrow: .*python -m pip install pyarrow"
    ):
        read(b"PAR1", "a.parquet")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.json.gz", "a.jsonl.gz", "a.csv", "a.gz"])
def test_gzip_is_read(read, name):
    text = FRAME.to_json(orient="records", lines="l." in name) if "json" in name else CSV
    check(read(gzip.compress(text.encode()), name))


@pytest.mark.parametrize("content", [CSV, CSV.replace(",", "\t"), json.dumps(ROWS)])
@pytest.mark.parametrize("name", ["a", "a.txt", "a.data"])
def test_without_a_known_ending_the_content_tells_the_format(read, content, name):
    check(read(content, name))


def test_standard_input_is_read(monkeypatch):
    def read(content, **reading):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return read_dataset("-", TASK, Reading(**reading))

    check(read(CSV.encode()))
    check(read(CSV.encode(), format="csv"))
    check(read(gzip.compress(FRAME.to_json(orient="records", lines=True).encode()), format="jsonl"))
    assert read(CSV.encode()).source == "standard input"
    with pytest.raises(DataError, match="standard input: columns 'age', 'answer' are missing, found: 7"):
        read(b"7\n8\n", format="csv")


def test_a_task_is_drafted_of_any_format(tmp_path):
    frame = pd.concat([FRAME] * 10, ignore_index=True)
    frame.to_csv(tmp_path / "a.csv", sep=";", decimal=",", index=False)
    frame.to_json(tmp_path / "a.json")
    frame.to_parquet(tmp_path / "a.parquet")
    expected = draft(tmp_path / "a.csv", "answer", reading=Reading(decimal=",")).task
    assert [field.name for field in expected.signature.fields] == ["age", "town"]
    assert isinstance(expected.signature.fields[0], Number)
    for name in ("a.json", "a.parquet"):
        assert draft(tmp_path / name, "answer").task == expected


def test_several_columns_of_one_name_are_left_out_of_a_draft(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,age,x,answer\n" + "1,30,2,yes\n3,40,4,no\n" * 10)
    assert draft(path, "answer").left_out == {"x": "several columns have this name"}


def test_options_name_what_a_file_does_not_tell(capsys):
    parser = argparse.ArgumentParser()
    Reading.add_arguments(parser)
    given = ["--format", "csv", "--encoding", "cp1252", "--decimal", ","]
    assert Reading.of(parser.parse_args([])) == Reading()
    reading = Reading.of(parser.parse_args(given))
    assert (reading, reading.arguments) == (Reading("csv", "cp1252", ","), given)
    for name in ("klingon", "base64"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--encoding", name])
        assert f"must be an encoding that Python knows, got {name}" in capsys.readouterr().err


def test_reading_does_not_import_numpy():
    code = "import sys, training.table_file; print({'numpy', 'pandas', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
