"""Parts of a file hold all of its rows once, and a cell means what it means in training."""

import csv
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring import file_format
from scoring.errors import ScoringError
from scoring.formats import FORMATS
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


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (b'1,"2\n', "a quoted cell has no closing quote, or an unquoted one has a quote"),
        (b"1,caf\xe9\n", "line 5: must be UTF-8, got the byte 0xe9"),
    ],
)
def test_a_text_that_cannot_be_cut_into_rows_stops_the_job(tmp_path, trained_bundle, added, message):
    inputs = write_candidates(tmp_path / "in.csv", numbered_candidates(3))
    inputs.write_bytes(inputs.read_bytes() + added)
    with pytest.raises(ScoringError) as raised:
        score(inputs, tmp_path / "out", trained_bundle)
    assert str(raised.value) == f"{inputs} (part-000000): {message}"
    assert not list((tmp_path / "out").glob("part-*"))
    assert not [name for name in files(tmp_path / "out") if name.endswith(".partial")]


def test_a_header_with_a_duplicate_column_is_refused(tmp_path):
    (tmp_path / "in.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ScoringError, match="duplicate column 'a'"):
        FORMATS[".csv"].columns(tmp_path / "in.csv")
