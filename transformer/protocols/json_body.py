"""JSON request bodies: parsed, and limited in values and candidates, for V1 and V2 alike."""

import orjson

from transformer.errors import InvalidRequest, TooLarge

#: Values that any request's JSON may have, counted by what stands before them: a comma or a bracket.
MAX_VALUES = 1_000_000


def check_count(candidates: int, max_candidates: int) -> None:
    """Refuse more candidates than one request may carry.

    Raises
    ------
    TooLarge
        If there are more than `max_candidates`.
    """
    if candidates > max_candidates:
        raise TooLarge(f"a request may carry {max_candidates} candidates, got {candidates}")


def check_values(*texts: bytes) -> None:
    """Refuse JSON of so many values, in all texts together, that these would take thirty times its bytes.

    Raises
    ------
    TooLarge
        If there are more than `MAX_VALUES`, and more than one for every 8 bytes.
    """
    size = sum(map(len, texts))
    limit = max(MAX_VALUES, size // 8)
    if size > limit:
        values = sum(text.count(mark) for text in texts for mark in (b",", b"[", b"{"))
        if values > limit:
            raise TooLarge(f"body: may be JSON of {limit} values, got {values}")


def parse_json(body: bytes | str) -> object:
    """Parse a JSON text.

    Raises
    ------
    InvalidRequest
        If it is none; the message says where.
    TooLarge
        See `check_values`.
    """
    if isinstance(body, bytes):
        # Text was part of something that has been looked at already.
        check_values(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"body: is not JSON: {error}") from error
