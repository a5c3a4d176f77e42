"""Files of candidates to score, and the output of scoring jobs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.job import COUNTS_DIRECTORY, INVALID_DIRECTORY, Job, Part, plan
from scoring.predictor import BundleSource, Source
from training.generator import generate
from transformer.bundle.format import load_bundle
from transformer.bundle.signature import Number


def numbered_candidates(count: int) -> list[dict[str, Any]]:
    """Return generated candidates with an id."""
    return [{"id": number, **one} for number, one in enumerate(generate(count, 7).candidates)]


def write_candidates(path: Path, candidates: Sequence[Mapping[str, Any]], row_group_size: int = 100) -> Path:
    """Write candidates in the format of the path's name."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in candidates))
    elif path.suffix == ".csv":
        pd.DataFrame(candidates).to_csv(path, index=False)
    else:
        pq.write_table(pa.Table.from_pylist(list(candidates)), path, row_group_size=row_group_size)
    return path


def source_of(bundle: Path) -> BundleSource:
    """Return a trained version as the source of predictors."""
    content = load_bundle(bundle)
    return BundleSource.of(str(bundle), content)


def plan_job(
    inputs: Path, output: Path, bundle: Path, source: Source | None = None
) -> tuple[Job, list[Part]]:
    """Plan a job for a trained version."""
    fields = load_bundle(bundle).signature.datatypes
    return plan(source or source_of(bundle), fields, inputs, output)


def files(output: Path) -> dict[str, bytes]:
    """Return the content of all files of an output by their names, also of hidden ones."""
    found = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of Parquet or JSON lines files in a directory, in the order of the files' names."""
    rows: list[dict[str, Any]] = []
    for path in sorted(directory.glob("part-*")):
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        else:
            rows += map(json.loads, path.read_text().splitlines())
    return rows


def invalid_rows(output: Path) -> list[dict[str, Any]]:
    """Return the rows of the side output."""
    return read_rows(output / INVALID_DIRECTORY)


def total_counts(output: Path) -> dict[str, int]:
    """Return the sum of the parts' counts."""
    counts = [json.loads(path.read_bytes()) for path in (output / COUNTS_DIRECTORY).iterdir()]
    return {name: sum(one[name] for one in counts) for name in ("valid", "invalid")}


def spoiled(bundle: Path, candidates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return candidates of which every seventh misses a field, or has a number out of its range."""
    number = next(one.name for one in load_bundle(bundle).signature.fields if isinstance(one, Number))
    return [
        {**one, number: None if row % 2 else 710.0} if row % 7 == 0 else dict(one)
        for row, one in enumerate(candidates)
    ]
