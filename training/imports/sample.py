"""Sample of an imported model: rows as they come from a file, for the types and ranges of the fields."""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data import DataError, Table, finite_number, table_text
from transformer.bundle.signature import same_spelling, spelling

#: Texts of booleans, which DictVectorizer encodes as numbers.
_BOOLEANS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Sample:
    """Rows of a file; texts of a CSV file, values of a JSON file.

    Attributes
    ----------
    columns
        Names of all columns, in the file's order.
    rows
        Values of each row by column, without those that are missing.
    """

    source: str
    sha256: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]

    def column_of(self, names: Iterable[str]) -> dict[str, str]:
        """Return the column of each name; case, blanks and separators count only where they must."""
        names = list(names)
        like = {name: column for column, name in same_spelling(self.columns, names).items()}
        return {name: name if name in self.columns else like.get(name, name) for name in names}

    def values(self, column: str) -> list[Any]:
        """Return the values of a column in all rows that have one."""
        return [row[column] for row in self.rows if column in row]


def read_sample(path: str | os.PathLike[str]) -> Sample:
    """Read a CSV file, a JSON array of objects, a V1 request, or JSON lines.

    Raises
    ------
    DataError
        If the file cannot be read, or is none of these.
    """
    source = os.fspath(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(source, [str(error.strerror)]) from error
    digest = hashlib.sha256(content).hexdigest()
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        rows = _json_rows(source, content)
        columns = tuple(dict.fromkeys(name for row in rows for name in row))
    else:
        table = Table(source, table_text(io.BytesIO(content)))
        columns = tuple(filter(None, table.header))
        rows = [row.values for row in table.rows(dict.fromkeys(columns, str.strip))]
    if not rows:
        raise DataError(source, ["must have at least one row, got none"])
    present = [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]
    return Sample(Path(path).name, digest, columns, present)


def _json_rows(source: str, content: bytes) -> list[dict[str, Any]]:
    text = content.decode("utf-8-sig", "replace")
    try:
        try:
            parsed = json.loads(text)
        except json.JSONDecodeError:
            parsed = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(source, [f"is neither JSON nor JSON lines: {error.msg}"]) from error
    rows = parsed.get("instances", [parsed]) if isinstance(parsed, dict) else parsed
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(source, [f"row {number}: must be an object of fields and values"])
    return list(rows)


def as_number(value: object) -> float:
    """Return a value of a numeric field; a boolean is 0 or 1, as in DictVectorizer.

    Raises
    ------
    ValueError
        If it is no finite number.
    """
    text = str(value)
    return _BOOLEANS[text.lower()] if text.lower() in _BOOLEANS else finite_number(text)


def as_category(value: object, categories: Sequence[str], spelled: Mapping[str, str]) -> str | None:
    """Return the category that a value is, or None.

    Parameters
    ----------
    spelled
        Category of each spelling, see `spellings`.
    """
    text = str(value)
    if text in categories:
        return text
    if isinstance(value, float) and value.is_integer() and str(int(value)) in categories:
        return str(int(value))
    return spelled.get(spelling(text))


def spellings(categories: Sequence[str]) -> dict[str, str]:
    """Return the only category with each spelling, without case, blanks and separators."""
    counts = Counter(map(spelling, categories))
    return {one: category for category in categories if counts[one := spelling(category)] == 1}
