"""Columns and rows of a CSV file, as spreadsheet programs write it.

The separator is that of the line with the column names. Lines before it that have no value, and the line
``sep=;`` of Excel, are skipped.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from training.table import NO_ROWS, Content, DataError
from transformer.bundle.signature import spelling

#: Separators that are recognised; of equals, the first one.
SEPARATORS = (",", ";", "\t", "|")

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


def csv_content(source: str, lines: Iterable[str], known: Sequence[str] = ()) -> Content:
    """Read the column names of a CSV file; its rows are read when they are asked for.

    Parameters
    ----------
    source
        Name of the file in messages.
    lines
        Lines with their ends.
    known
        Names of some columns that the file may have.

    Raises
    ------
    DataError
        If no line has a value. A malformed row raises when it is read.
    """
    lines = iter(lines)
    separator, first, skipped = None, "", 0
    for first in lines:
        declared = _SEPARATOR_LINE.fullmatch(first)
        if declared and not skipped:
            separator = declared[1]
        elif first.strip("".join(SEPARATORS) + ' \t\r\n"'):
            break
        skipped += 1
    else:
        raise DataError(source, [NO_ROWS])
    separator = separator or _separator(first, known)
    rows = _rows(source, chain([first], lines), separator, skipped)
    _, header = next(rows)
    return Content(header, rows)


def _separator(line: str, known: Sequence[str]) -> str:
    """Return the separator that gives the most known names, then the most names."""
    wanted = set(map(spelling, known))

    def names(separator: str) -> tuple[int, int]:
        found = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        return len(wanted.intersection(map(spelling, found))), len(found)

    return max(SEPARATORS, key=names)


def _rows(
    source: str, lines: Iterable[str], separator: str, skipped: int
) -> Iterator[tuple[int | None, list[str]]]:
    """Yield line number and cells of each row; an empty line has no cells."""
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            yield reader.line_num + skipped, cells
    except csv.Error as error:
        raise DataError(source, [f"line {reader.line_num + skipped}: {_problem(error)}"]) from error


def _problem(error: csv.Error) -> str:
    """Describe an error of the csv module."""
    text = str(error)
    if text == "unexpected end of data":
        return "a quoted cell has no closing quote"
    if "expected after" in text:
        return "after a cell's closing quote, the separator or the line's end must follow"
    if "field limit" in text:
        return f"a cell has more than {csv.field_size_limit():,} characters; is a closing quote missing?"
    return text
