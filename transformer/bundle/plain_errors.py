"""Plain sentences for the errors of pydantic: the field by its name, what came, and what is allowed."""

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from transformer.errors import MAX_PROBLEMS

#: Maximum characters of a value that an error repeats.
MAX_VALUE_LENGTH = 40
#: Lists whose items are named in errors, not numbered.
_NAMED = "fields"
_JSON_TYPES = {bool: "a boolean", str: "a string", dict: "an object", list: "an array", bytes: "bytes"}


def describe(value: object) -> str:
    """Describe a value of the wrong type: its JSON type, and the value unless it is an object or array."""
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return _JSON_TYPES[type(value)]
    return f"{_JSON_TYPES.get(type(value), 'the number')} {shown(value)}"


def shown(value: object) -> str:
    """Return the beginning of a caller's value, escaped."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    text = ascii(value) if isinstance(value, (str, bytes)) else f"{value}".lower()
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 1] + "…"


def problems(
    error: ValidationError, content: object = None, known: Collection[str] = (), where: str = "content"
) -> list[str]:
    """Return the first problems of an invalid object, each with the path of its value: ``age.maximum: …``.

    Parameters
    ----------
    content
        The object, as parsed JSON or YAML; for the names of its fields.
    known
        Names that an unknown one may stand for.
    where
        Path of the object itself.
    """
    found = error.errors(include_url=False)[:MAX_PROBLEMS]
    # A list without its invalid items may be too short, too; that is no other problem.
    inner = [one["loc"] for one in found]
    separate = [
        one
        for one in found
        if not any(len(loc) > len(one["loc"]) and loc[: len(one["loc"])] == one["loc"] for loc in inner)
    ]
    return [f"{_path(one, content) or where}: {_sentence(one, known)}" for one in separate]


def first_problem(error: ValidationError, where: str = "content") -> str:
    """Return the first of the `problems`."""
    first = error.errors(include_url=False)[0]
    return f"{_path(first, None) or where}: {_sentence(first, ())}"


def _path(error: ErrorDetails, content: object) -> str:
    path = ""
    value: Any = content
    previous: int | str = ""
    for part in error["loc"]:
        if isinstance(part, int):
            value = value[part] if isinstance(value, list) and part < len(value) else None
            name = value.get("name") if isinstance(value, dict) and path.endswith(_NAMED) else None
            path = name if isinstance(name, str) and name else f"{path}[{part}]"
        elif isinstance(previous, int) and isinstance(value, dict) and part == value.get("type"):
            pass  # the tag of a union, which is no part of the object
        else:
            value = value.get(part) if isinstance(value, dict) else None
            path = f"{path}.{part}" if path else part
        previous = part
    if error["type"].startswith("union_tag"):
        path += ".type"
    return path


def _sentence(error: ErrorDetails, known: Collection[str]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        similar = get_close_matches(str(error["loc"][-1]), known, 1)
        return "is not known" + (f"; did you mean {similar[0]!r}?" if similar else "")
    if kind in _WITHOUT_VALUE:
        return _WITHOUT_VALUE[kind](context)
    if kind in _WITH_VALUE:
        return f"{_WITH_VALUE[kind](context)}, got {describe(error['input'])}"
    return f"is invalid: {error['msg']}"


_WITHOUT_VALUE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "is required",
    "value_error": lambda context: str(context["error"]),
    "json_invalid": lambda context: f"is not JSON: {context['error']}",
    "union_tag_not_found": lambda _: "is required",
    "union_tag_invalid": lambda c: f"must be {c['expected_tags'].replace(', ', ' or ')}, got {c['tag']!r}",
    "string_too_short": lambda _: "must not be empty",
    "too_short": lambda c: f"must have {c['min_length']} or more items, got {c['actual_length']}",
    "too_long": lambda c: f"must have at most {c['max_length']} items, got {c['actual_length'] or 'more'}",
}
_WITH_VALUE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    **dict.fromkeys(("string_type", "string_sub_type"), lambda _: "must be a string"),
    **dict.fromkeys(("float_type", "int_type"), lambda _: "must be a number"),
    **dict.fromkeys(("list_type", "tuple_type"), lambda _: "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), lambda _: "must be an object"),
    "bool_type": lambda _: "must be true or false",
    "finite_number": lambda _: "must be a finite number",
    "literal_error": lambda context: f"must be {context['expected']}",
    "string_pattern_mismatch": lambda context: f"must match {context['pattern']}",
    "string_too_long": lambda context: f"must have at most {context['max_length']} characters",
    "greater_than_equal": lambda context: f"must be at least {context['ge']:g}",
    "less_than_equal": lambda context: f"must be at most {context['le']:g}",
}
