"""Cells of a table: texts or JSON values, as numbers, booleans, lists and texts."""

import math
import re
from contextlib import suppress
from decimal import Decimal

import orjson

from transformer.bundle.plain_errors import describe

#: Type of a field of several categories, beside the V2 datatypes of other fields. Its tensor has the datatype
#: BYTES; an element is a JSON array.
LIST = "LIST"
#: Maximum length of a cell's text in an error.
MAX_ECHO = 40
#: Texts of booleans, in lower case.
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "0", "0.0"), False),
}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


def is_empty(cell: object) -> bool:
    """Return True for a cell without a value."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def finite_number(cell: object, decimal: str = ".") -> float:
    """Read a cell's number.

    Parameters
    ----------
    cell
        A text, or a JSON value.
    decimal
        Decimal mark of a text, ``.`` or ``,``.

    Raises
    ------
    ValueError
        If the cell is not a finite number.
    """
    value = math.nan
    if isinstance(cell, str):
        # float() accepts 1_000, nan and inf, too; in a table of numbers they are mistakes.
        if "_" not in cell and (decimal == "." or "." not in cell):
            value = _float(cell.replace(decimal, "."))
    elif isinstance(cell, (int, float, Decimal)) and not isinstance(cell, bool):
        value = _float(cell)
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, {got(cell, decimal)}")
    return value


def with_decimal_point(cell: object, decimal: str) -> object:
    """Return a text with a decimal comma as a number, and another text without the blanks around it.

    A text without the comma stays a text, because it may be a code: 007 is no 7. Other values are unchanged.
    """
    if not isinstance(cell, str):
        return cell
    if decimal != "." and decimal in cell:
        with suppress(ValueError):
            return finite_number(cell, decimal)
    return cell.strip()


def _float(value: str | float | Decimal) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def got(cell: object, decimal: str = ".") -> str:
    """Return the end of an error message about a cell: its value, and a hint if it has a decimal comma."""
    if not isinstance(cell, str):
        return f"got {describe(cell)}"
    text = f"got {shortened(repr(cell))}"
    if decimal == "," and "." in cell:
        return f"{text}; with --decimal , a number has a decimal comma and no point"
    if decimal == "." and _DECIMAL_COMMA.fullmatch(cell.strip()):
        return f"{text}; for decimal commas add --decimal ,"
    return text


def boolean_of(cell: object) -> bool | None:
    """Return the boolean that a cell means, or None."""
    found = (_BOOLEANS.get(text.casefold()) for text in cell_texts(cell))
    return next((value for value in found if value is not None), None)


def elements(cell: object) -> list[object]:
    """Read a cell with several categories: an array, its JSON text, or texts separated by ``|``.

    Raises
    ------
    ValueError
        If the text begins with ``[``, but is not a JSON array.
    """
    if isinstance(cell, list | tuple):
        return list(cell)
    if is_empty(cell):
        return []
    text = str(cell).strip()
    if text.startswith("["):
        with suppress(ValueError):
            found = orjson.loads(text)
            if isinstance(found, list):
                return found
        raise ValueError(f"must be a JSON array, or texts separated by |, {got(cell)}")
    return [one.strip() for one in text.split("|")]


def cell_texts(cell: object) -> tuple[str, ...]:
    """Return the spellings of a cell: a whole number with and without decimals."""
    if isinstance(cell, str):
        return (cell, cell.strip())
    if cell is None:
        return ("",)
    if isinstance(cell, float) and cell.is_integer():
        return (str(int(cell)), str(cell))
    return (str(cell), str(cell).lower())


def shortened(text: str, length: int = MAX_ECHO) -> str:
    """Return a text; a long one is cut and ends with ``…``."""
    return text if len(text) <= length else text[: length - 1] + "…"
