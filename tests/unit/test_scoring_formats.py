"""Parts of a file hold all of its rows once, and a cell means what it means in training."""

import csv
import json
import resource

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring import file_format
from scoring.batch import CANDIDATES
from scoring.csv_format import ROW_BYTES, Csv
from scoring.errors import ScoringError
from scoring.part import score_part
from tests.support.scored_files import (
    files,
    invalid_rows,
    numbered_candidates,
    plan_job,
    read_rows,
    total_counts,
    write_candidates,
)
from training.cells import LIST


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(file_format, "PART_BYTES", 2000)


def score(inputs, output, bundle):
    job, parts = plan_job(inputs, output, bundle)
    for part in parts:
        score_part(job, part)
    return parts


def csv_rows(directory):
    paths = sorted(directory.glob("part-*.csv"))
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths]
    return [row for table in tables for row in table.to_dict("records")]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_parts_hold_all_rows_once_and_in_order(tmp_path, trained_bundle, sklearn_reference, suffix):
    candidates = numbered_candidates(250)
    inputs = write_candidates(tmp_path / f"in{suffix}", candidates)
    parts = score(inputs, tmp_path / "out", trained_bundle)
    assert len(parts) > 2
    rows = csv_rows(tmp_path / "out") if suffix == ".csv" else read_rows(tmp_path / "out")
    assert [int(row["id"]) for row in rows] == list(range(250))
    fields = [{name: one[name] for name in one if name != "id"} for one in candidates]
    assert [float(row["probability"]) for row in rows] == sklearn_reference.probabilities(fields)
    assert total_counts(tmp_path / "out") == {"valid": 250, "invalid": 0}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_a_file_that_cannot_be_written_to_its_end_leaves_nothing(tmp_path, trained_bundle, suffix):
    candidates = [{**one, "note": f"{row}x" * 1000} for row, one in enumerate(numbered_candidates(20))]
    job, parts = plan_job(
        write_candidates(tmp_path / f"in{suffix}", candidates), tmp_path / "out", trained_bundle
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ScoringError, match=rf"in{suffix} \(part-000000\): \[Errno 27\] File too large"):
            score_part(job, parts[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    # Counts without an output are those of no part.
    assert files(tmp_path / "out").keys() - {"_counts/part-000000.json"} == {"_job.json"}


def test_parquet_columns_keep_their_types_and_metadata(tmp_path, trained_bundle):
    table = pa.Table.from_pylist(numbered_candidates(50)).replace_schema_metadata({"owner": "sales"})
    for name, kind in (
        ("id", pa.int16()),
        ("gender", pa.dictionary(pa.int32(), pa.string())),
        ("hsc_s", pa.large_string()),
    ):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].cast(kind))
    pq.write_table(table, tmp_path / "in.parquet")
    (part,) = score(tmp_path / "in.parquet", tmp_path / "out", trained_bundle)
    scored = pq.read_table(tmp_path / "out" / f"{part.name}.parquet")
    added = [("prediction", pa.bool_()), ("probability", pa.float64()), ("version", pa.string())]
    assert scored.schema == pa.schema([*table.schema, *added])
    assert scored.schema.metadata == table.schema.metadata
    assert scored.select(table.column_names).equals(table)


def test_a_line_end_inside_quotes_ends_no_row(tmp_path, trained_bundle):
    candidates = [
        {"note": 'a "quoted"\nline, or\r\ntwo' * (row % 3), **one}
        for row, one in enumerate(numbered_candidates(120))
    ]
    inputs = write_candidates(tmp_path / "in.csv", candidates)
    assert len(score(inputs, tmp_path / "out", trained_bundle)) > 5
    rows = csv_rows(tmp_path / "out")
    assert [(row["note"], row["id"]) for row in rows] == [(one["note"], str(one["id"])) for one in candidates]


def test_a_header_with_a_line_end_inside_quotes_is_no_row(tmp_path, trained_bundle):
    candidates = [{"a\nnote": "x", **one} for one in numbered_candidates(3)]
    score(write_candidates(tmp_path / "in.csv", candidates), tmp_path / "out", trained_bundle)
    assert len(csv_rows(tmp_path / "out")) == 3


def test_a_cell_that_is_no_number_goes_to_the_side_output_and_others_stay_as_written(
    tmp_path, trained_bundle
):
    candidates = [{**one, "ssc_p": f" {one['ssc_p']:.3f}0"} for one in numbered_candidates(4)]
    candidates[1]["ssc_p"], candidates[2]["ssc_p"], candidates[3]["ssc_p"] = "7x", " ", "nan"
    score(write_candidates(tmp_path / "in.csv", candidates), tmp_path / "out", trained_bundle)
    assert [row["ssc_p"] for row in csv_rows(tmp_path / "out")] == [candidates[0]["ssc_p"]]
    invalid = csv_rows(tmp_path / "out" / "_invalid")
    assert [row["id"] for row in invalid] == ["1", "2", "3"]
    assert invalid[0]["error"] == "instances[0].ssc_p: must be a number, 0 to 100, got a string '7x'"
    assert invalid[1]["error"].startswith("instances[0].ssc_p: is required")
    assert invalid[2]["error"] == "instances[0].ssc_p: must be a number, 0 to 100, got a string 'nan'"


@pytest.mark.parametrize("wrong", [{}, {"price": "7x"}, {"garden": "maybe"}, {"tags": "[1"}])
def test_cells_are_read_as_in_training(tmp_path, wrong):
    """With a cell that is not of its type, the others of its block are read in another way."""
    fields = {"price": "FP64", "garden": "BOOL", "tags": LIST, "town": "BYTES"}
    rows = [
        {"price": " 1e3", "garden": "YES", "tags": "new| big", "town": " Bonn ", "note": "7"},
        {"price": "", "garden": "0", "tags": '["a|b"]', "town": "yes", "note": ""},
        {"price": "2", "garden": " ", "tags": " ", "town": "1", "note": "x"},
    ]
    expected: list[dict[str, object]] = [
        {"price": 1000.0, "garden": True, "tags": ["new", "big"], "town": "Bonn", "note": "7"},
        {"price": None, "garden": False, "tags": ["a|b"], "town": "yes", "note": None},
        {"price": 2.0, "garden": None, "tags": None, "town": "1", "note": "x"},
    ]
    if wrong:
        rows.append({**rows[0], **wrong})
        expected.append({**expected[0], **wrong})
    inputs = write_candidates(tmp_path / "in.csv", rows)
    (part,) = Csv().parts(inputs)
    ((batch, candidates),) = Csv().read(inputs, part, 10, fields)
    assert batch.to_pylist() == rows
    assert isinstance(candidates, pa.RecordBatch)
    found = [*map(json.loads, candidates[CANDIDATES].to_pylist())] if wrong else candidates.to_pylist()
    assert found == expected


def test_json_lines_stay_as_written_and_bad_ones_are_kept(tmp_path, trained_bundle):
    candidate = {"id": 10**30, **numbered_candidates(1)[0]}
    first = json.dumps({**candidate, "nested": {"a": [1.0, 1e5]}})
    lines = [first, "", '{"ssc_p": 3}', "no json", "[]", " {} "]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    score(tmp_path / "in.jsonl", tmp_path / "out", trained_bundle)
    (text,) = (tmp_path / "out" / "part-000000.jsonl").read_text().splitlines()
    assert text.startswith(first[:-1] + ',"prediction":')
    invalid = invalid_rows(tmp_path / "out")
    assert [row.get("line", row.get("ssc_p")) for row in invalid] == [3, "no json", "[]", None]
    assert all(row["error"].startswith("instances[0]") for row in invalid)


def test_a_row_with_other_cells_than_the_header_goes_to_the_side_output_with_its_line(
    tmp_path, trained_bundle
):
    candidates = [{"note": "a\nb", **one} for one in numbered_candidates(90)]
    inputs = write_candidates(tmp_path / "in.csv", candidates)
    lines = inputs.read_text().splitlines(keepends=True)
    long = "y" * (csv.field_size_limit() + 1)
    added = ['few,"7,\n"\n', "\n", f"many{lines[0].strip()},x,y\n", f"{long},2\n"]
    inputs.write_text("".join([*lines[:101], *added, *lines[101:]]))
    assert len(score(inputs, tmp_path / "out", trained_bundle)) > 2
    assert [row["id"] for row in csv_rows(tmp_path / "out")] == [*map(str, range(90))]
    invalid = csv_rows(tmp_path / "out" / "_invalid")
    expected = ["line 103: must have 14 cells, got 2", "line 105: must have 14 cells, got 16"]
    assert [row["error"] for row in invalid] == [*expected, "line 106: must have 14 cells, got 2"]
    assert (invalid[0]["note"], invalid[0]["id"], invalid[0]["gender"]) == ("few", "7,\n", "")
    assert (invalid[1]["note"], invalid[1]["workex"]) == ("manynote", "workex,x,y")
    assert invalid[2]["note"] == f"{long},2"


def test_a_part_with_malformed_rows_only_is_scored(tmp_path, trained_bundle):
    inputs = write_candidates(tmp_path / "in.csv", numbered_candidates(1))
    inputs.write_text(inputs.read_text().splitlines()[0] + "\n1,2\n")
    score(inputs, tmp_path / "out", trained_bundle)
    assert csv_rows(tmp_path / "out") == []
    assert total_counts(tmp_path / "out") == {"valid": 0, "invalid": 1}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_only_a_quote_at_the_start_of_a_cell_quotes_it(tmp_path, trained_bundle, line_end):
    notes = ['5" pipe', "two\nlines", "a\rb", '"so"', 'so "he said"', "", '"', ',"']
    escaped = [one.replace('"', '""') for one in notes]
    cells = [
        f'"{one}"' if set(one) & set("\n\r,") or one[:1] == '"' else notes[row]
        for row, one in enumerate(escaped)
    ]
    lines = write_candidates(tmp_path / "in.csv", numbered_candidates(160)).read_text().splitlines()
    rows = [f"{cells[row % len(cells)]},{line}" for row, line in enumerate(lines[1:])]
    malformed = ['1,"2"', "   ", "3\r4"]
    text = [f"note,{lines[0]}", *rows[:90], "", *malformed, *rows[90:], ""]
    (tmp_path / "in.csv").write_text(line_end.join(text), newline="")
    assert len(score(tmp_path / "in.csv", tmp_path / "out", trained_bundle)) > 5
    scored = csv_rows(tmp_path / "out")
    expected = [(notes[row % len(notes)], str(row)) for row in range(160)]
    assert [(row["note"], row["id"]) for row in scored] == expected
    first = line_end.join(text[:92]).count("\n") + 2
    errors = [row["error"] for row in csv_rows(tmp_path / "out" / "_invalid")]
    places = [(first, 2), (first + 1, 1), (first + 2, 1), (first + 2, 1)]
    assert errors == [f"line {line}: must have 14 cells, got {cells}" for line, cells in places]


def test_a_text_that_is_not_utf8_stops_the_job(tmp_path, trained_bundle):
    inputs = write_candidates(tmp_path / "in.csv", numbered_candidates(3))
    inputs.write_bytes(inputs.read_bytes() + b"1,caf\xe9\n")
    with pytest.raises(ScoringError) as raised:
        score(inputs, tmp_path / "out", trained_bundle)
    expected = "line 5: must be UTF-8, got the byte 0xe9"
    assert str(raised.value) == f"{inputs} (part-000000): {expected}"
    assert not list((tmp_path / "out").glob("part-*"))
    assert not [name for name in files(tmp_path / "out") if name.endswith(".partial")]


@pytest.mark.parametrize(
    ("header", "added", "message"),
    [
        ("", b'1,"2\n\n', "line 5: a quoted cell has no closing quote"),
        ("", b"x" * ROW_BYTES + b"\n", f"line 5: a row has more than {ROW_BYTES:,} bytes"),
        (
            "",
            b'"' + b"x\n" * ROW_BYTES,
            f"line 5: a row has more than {ROW_BYTES:,} bytes; is a closing quote missing?",
        ),
        ("caf\xe9,", b"", "line 1: must be UTF-8, got the byte 0xe9"),
        ("a\r", b"", "line 1: must end with a line feed, got a carriage return only"),
        ("ssc_p,", b"", "duplicate column 'ssc_p'"),
    ],
)
def test_a_text_that_cannot_be_cut_into_rows_is_refused_before_any_is_scored(
    tmp_path, trained_bundle, header, added, message
):
    inputs = write_candidates(tmp_path / "in.csv", numbered_candidates(3))
    inputs.write_bytes(header.encode("latin-1") + inputs.read_bytes() + added)
    with pytest.raises(ScoringError) as raised:
        plan_job(inputs, tmp_path / "out", trained_bundle)
    assert str(raised.value) == f"{inputs}: {message}"
    assert not (tmp_path / "out").exists()


def test_a_row_may_be_almost_as_long_as_a_block(tmp_path, trained_bundle):
    candidates = [
        {"note": "x" * (ROW_BYTES - 300) * (row % 2), **one} for row, one in enumerate(numbered_candidates(6))
    ]
    score(write_candidates(tmp_path / "in.csv", candidates), tmp_path / "out", trained_bundle)
    assert [row["note"] for row in csv_rows(tmp_path / "out")] == [one["note"] for one in candidates]


def test_parquet_with_a_duplicate_column_is_refused(tmp_path, trained_bundle):
    table = pa.Table.from_pylist(numbered_candidates(3))
    pq.write_table(table.append_column("ssc_p", table["ssc_p"]), tmp_path / "in.parquet")
    with pytest.raises(ScoringError, match=r"in\.parquet: duplicate column 'ssc_p'"):
        plan_job(tmp_path / "in.parquet", tmp_path / "out", trained_bundle)


def test_a_byte_order_mark_or_a_carriage_return_inside_a_json_line_changes_no_row(tmp_path, trained_bundle):
    lines = [json.dumps(one) for one in numbered_candidates(3)]
    content = "\ufeff" + "\r\n".join([lines[0], lines[1].replace(", ", ",\r"), "[]", lines[2]])
    (tmp_path / "in.jsonl").write_text(content, newline="")
    score(tmp_path / "in.jsonl", tmp_path / "out", trained_bundle)
    rows = (tmp_path / "out" / "part-000000.jsonl").read_bytes().split(b"\n")[:-1]
    assert [json.loads(row)["id"] for row in rows] == [0, 1, 2]
    assert [row["line"] for row in invalid_rows(tmp_path / "out")] == ["[]"]
