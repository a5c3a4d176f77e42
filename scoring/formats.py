"""Formats of files by their endings."""

from collections.abc import Mapping

from scoring.csv_format import Csv
from scoring.file_format import Format
from scoring.json_lines_format import JsonLines
from scoring.parquet_format import Parquet

#: Formats by the ending of a file's name.
FORMATS: Mapping[str, Format] = {
    ".parquet": Parquet(),
    ".csv": Csv(),
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
}
