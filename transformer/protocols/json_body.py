"""JSON request bodies: parsing, and the limits on values and candidates that V1 and V2 share."""

import codecs

import orjson

from transformer.bundle.signature import plural
from transformer.errors import InvalidRequest, TooLarge, json_problem

#: Maximum values in a request's JSON, counted by the commas and opening brackets before them.
MAX_VALUES = 1_000_000
#: Headers of a response that is JSON only.
JSON_HEADERS = {"content-type": "application/json"}


def check_count(candidates: int, max_candidates: int, row_name: str) -> None:
    """Check the number of candidates in a request.

    Parameters
    ----------
    row_name
        The bundle's word for a candidate.

    Raises
    ------
    TooLarge
        If there are more than `max_candidates`.
    """
    if candidates > max_candidates:
        raise TooLarge(
            f"too many {plural(row_name)}: limit {max_candidates}, got {candidates}", limit="candidates"
        )


def check_values(*texts: bytes) -> None:
    """Check the number of values in all JSON texts together, before they are parsed.

    Parsed values can take thirty times the bytes of their JSON.

    Raises
    ------
    TooLarge
        If there are more than `MAX_VALUES`, and more than one per 8 bytes.
    """
    size = sum(map(len, texts))
    limit = max(MAX_VALUES, size // 8)
    if size > limit:
        values = sum(text.count(mark) for text in texts for mark in (b",", b"[", b"{"))
        if values > limit:
            raise TooLarge(f"body: too many JSON values: limit {limit}, got {values}", limit="values")


def parse_json(body: bytes | str, where: str = "body") -> object:
    """Parse a JSON text.

    Parameters
    ----------
    where
        Its place in the request, for messages.

    Raises
    ------
    InvalidRequest
        If it is not JSON; the message says where.
    TooLarge
        If it has too many values; see `check_values`.
    """
    # A str comes from a text that was checked already, and each value takes at least a byte.
    if isinstance(body, bytes) and len(body) > MAX_VALUES:
        check_values(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        text = body.encode() if isinstance(body, str) else body
        if text.startswith(codecs.BOM_UTF8):
            return parse_json(text.removeprefix(codecs.BOM_UTF8), where)
        if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InvalidRequest(f"{where}: is not JSON: must be UTF-8, got UTF-16") from error
        raise InvalidRequest(f"{where}: is not JSON: {json_problem(error)}") from error
