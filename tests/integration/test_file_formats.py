"""`placement predict`, `explain` and `train` read every format with the same options."""

import gzip
import io
import json
import sys
from contextlib import ExitStack

import pandas as pd
import pytest

from placement import cli, explain_command
from placement.candidate_file import open_candidates
from placement.client import Answer
from training.candidates import SAMPLE
from training.generator import generate

FRAME = pd.DataFrame([SAMPLE, {**SAMPLE, "ssc_p": 58.66}])


def parquet(frame):
    content = io.BytesIO()
    frame.to_parquet(content)
    return content.getvalue()


FILES = {
    "a.csv": (FRAME.to_csv(index=False).encode(), ()),
    "index.csv": (FRAME.to_csv().encode(), ()),
    "semicolons.csv": (FRAME.to_csv(sep=";", decimal=",").encode(), ("--decimal", ",")),
    "tabs.tsv": (FRAME.to_csv(sep="\t").encode("utf-16"), ()),
    "latin.csv": (FRAME.assign(note="é").to_csv().encode("latin-1"), ("--encoding", "latin-1")),
    "a.csv.gz": (gzip.compress(FRAME.to_csv().encode()), ()),
    "a.jsonl": (FRAME.to_json(orient="records", lines=True).encode(), ()),
    "columns.json": (FRAME.to_json().encode(), ()),
    "split.json": (FRAME.to_json(orient="split").encode(), ()),
    "a.parquet": (parquet(FRAME), ()),
    "v1.json": (json.dumps({"instances": FRAME.to_dict("records")}).encode(), ()),
    "no_ending": (FRAME.to_csv().encode(), ()),
}


@pytest.mark.parametrize("name", FILES)
def test_predict_reads_every_format(predict, write, name, monkeypatch):
    content, options = FILES[name]
    done = predict(write(content, name), "--json", *options)
    assert (done.status, done.asked) == (0, 2), done.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    form = name.split(".")[1] if "." in name else "csv"
    done = predict("-", "--json", "--format", form, *options)
    assert (done.status, done.asked) == (0, 2), done.err


def test_predict_counts_what_it_passes_over(predict, write):
    path = write(FRAME.assign(id=1, note="x").to_csv() + ",,,,,,,,,,,,,,\n" * 3)
    assert (
        predict(path).err
        == f"{path}: passed over: 1 column without a name, 2 other columns (id, note), 3 empty rows"
    )


def test_explain_reads_every_format(write, monkeypatch, capsys):
    class Client:
        async def fields(self):
            return {name: "FP64" if isinstance(value, float) else "BYTES" for name, value in SAMPLE.items()}

        async def explain(self, candidates):
            asked.extend(candidates)
            explanation = {"placement": True, "placement_probability": 0.5, "baseline": 0.5, "exact": True}
            return Answer([{**explanation, "contributions": dict.fromkeys(SAMPLE, 0.0)}], "v1")

        async def close(self):
            pass

    monkeypatch.setattr(explain_command, "connect_rest", lambda *_, **__: Client())
    for name, (content, options) in FILES.items():
        asked: list[dict] = []
        assert cli.main(["explain", str(write(content, name)), "--json", *options]) == 0
        assert asked == FRAME.to_dict("records"), name
    capsys.readouterr()


def test_train_reads_a_spreadsheets_file_and_report_reads_it_again(tmp_path, capsys):
    dataset = generate(60)
    frame = pd.DataFrame(dataset.candidates).assign(status=dataset.labels, note="é")
    path = tmp_path / "data.csv"
    content = frame.to_csv(sep=";", decimal=",", index=False) + ";" * 13 + "\n"
    path.write_bytes(content.encode("latin-1"))
    reading = ["--data", str(path), "--decimal", ",", "--encoding", "latin-1"]
    train = ["train", *reading, "--storage", str(tmp_path), "--estimator", "forest-50"]
    assert cli.main(train) == 0
    assert "passed over: 1 other column (note), 1 empty row" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "placement/v1"), *reading]) == 0


def test_a_cell_is_read_in_the_datatype_of_its_field(write):
    fields = {"flag": "BOOL", "count": "INT64", "size": "FP64", "code": "BYTES"}
    path = write("flag,count,size,code\nTrue,3,3,7\nno,4.0,0.5, x \nmaybe,,1e3,\n")
    with ExitStack() as stack:
        rows = [one.candidate for one in open_candidates(str(path), fields, stack).candidates]
    assert rows == [
        {"flag": True, "count": 3, "size": 3.0, "code": "7"},
        {"flag": False, "count": 4, "size": 0.5, "code": "x"},
        {"flag": "maybe", "size": 1000.0},
    ]
    assert [type(row["count"]) for row in rows[:2]] == [int, int]
