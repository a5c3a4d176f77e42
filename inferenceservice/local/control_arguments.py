"""Arguments of the control server's operations: their types, and the errors for wrong ones."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformer.errors import shortened

_MAX_SHOWN = 60


class ArgumentError(Exception):
    """An argument is missing, unknown or has a wrong value; the message says which, and what is expected."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of an operation.

    Attributes
    ----------
    expected
        The valid values, in words.
    accepts
        Returns True for a valid value.
    """

    expected: str
    accepts: Callable[[Any], bool]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def _is_percent(value: object) -> bool:
    return type(value) is int and 0 < value < 100


def _is_path(value: object) -> bool:
    return isinstance(value, str) and _is_text(value) and Path(value).is_absolute()


def _is_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


_URI = Argument("the URI of a version, as `placement train` prints it (a string)", _is_text)
_TEXT = Argument("a string that is not empty and has no control characters", _is_text)

#: Arguments of each operation that has some.
ARGUMENTS: Mapping[str, Mapping[str, Argument]] = MappingProxyType(
    {
        "read_bundle": {"uri": _URI},
        "set_transformer": {"uri": _URI},
        "set_predictor": {"uri": _URI},
        "set_both": {"uri": _URI},
        "set_canary": {"uri": _URI, "percent": Argument("a whole number from 1 to 99", _is_percent)},
        "score": {"candidates": Argument("an array of objects", _is_objects), "name": _TEXT},
        "apply": {"file": Argument("the absolute path of a spec (a string)", _is_path)},
        "hold": {"change": _TEXT, "id": _TEXT},
        "release": {"id": _TEXT},
    }
)


def check_arguments(operation: str, given: Mapping[str, Any]) -> None:
    """Raise ArgumentError if an operation's arguments are wrong."""
    expected = ARGUMENTS.get(operation, {})
    for name, argument in expected.items():
        if name not in given:
            raise ArgumentError(f"{operation}: {name}: is required, expected {argument.expected}")
        if not argument.accepts(given[name]):
            raise ArgumentError(
                f"{operation}: {name}: expected {argument.expected}, got {_shown(given[name])}"
            )
    for name in given:
        if name not in expected:
            known = ", ".join(expected) or "none"
            raise ArgumentError(
                f"{operation}: unknown argument {shortened(name, _MAX_SHOWN)!r}, expected {known}"
            )


def _shown(value: object) -> str:
    """Return a value as JSON; of an object or array, which may hold candidates, only the type."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return shortened(json.dumps(value), _MAX_SHOWN)
