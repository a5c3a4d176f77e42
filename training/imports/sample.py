"""Sample of an imported model: rows as they come from a file, for the types and ranges of the fields."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from training.cells import cell_texts, finite_number, is_empty, with_decimal_point
from training.table import EMPTY, DataError
from training.table_file import AUTOMATIC, Reading, read_whole
from transformer.bundle.signature import same_spelling, spelling

#: A number, or a text without case, blanks and separators.
Spelling = str | float
#: Texts of booleans, which DictVectorizer encodes as numbers.
_BOOLEANS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Sample:
    """Rows of a file: texts of CSV, values of JSON and Parquet.

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


def read_sample(path: str | os.PathLike[str], reading: Reading = AUTOMATIC) -> Sample:
    """Read a file of any format that `training.table_file` knows; ``-`` is standard input.

    Raises
    ------
    DataError
        If the file is no table, or has no rows.
    """
    table, content = read_whole(path, reading=reading)
    columns = table.foreign(())
    parse = partial(with_decimal_point, decimal=reading.decimal)
    rows = [row.values for row in table.rows(dict.fromkeys(columns, parse))]
    if not rows:
        raise DataError(table.source, [EMPTY])
    present = [{name: value for name, value in row.items() if not is_empty(value)} for row in rows]
    return Sample(Path(table.source).name, hashlib.sha256(content).hexdigest(), columns, present)


def as_number(value: object) -> float:
    """Return a value of a numeric field; a boolean is 0 or 1, as in DictVectorizer.

    Raises
    ------
    ValueError
        If it is no finite number.
    """
    text = str(value)
    return _BOOLEANS[text.lower()] if text.lower() in _BOOLEANS else finite_number(text)


def is_boolean(value: object) -> bool:
    """Return True for a boolean, also as a text."""
    return str(value).lower() in _BOOLEANS


def as_category(value: object, known: Mapping[Spelling, str]) -> str | None:
    """Return the category that a value is, or None.

    Parameters
    ----------
    known
        Category of each text and spelling, see `spellings`.
    """
    found = (known.get(one) for one in (*cell_texts(value), spelling_of(str(value))))
    return next((one for one in found if one is not None), None)


def spellings(categories: Sequence[str]) -> dict[Spelling, str]:
    """Return the category of each text, and of each spelling that only one category has."""
    counts = Counter(map(spelling_of, categories))
    only = {one: category for category in categories if counts[one := spelling_of(category)] == 1}
    return only | {category: category for category in categories}


def spelling_of(text: str) -> Spelling:
    """Return what texts of one meaning share: the number that they are, or all but case and separators."""
    try:
        return finite_number(text)
    except ValueError:
        return spelling(text)
