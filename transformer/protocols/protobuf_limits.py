"""Limit on the number of fields in a protobuf message, checked before the message is parsed."""

import contextlib

from transformer.errors import TooLarge

#: Protobuf's wire types, with the bytes of a fixed-size field after its tag. Groups start and end with a tag.
_VARINT = 0
_BYTES = 2
_FIXED = {1: 8, 5: 4, 3: 0, 4: 0}
#: Maximum bytes of a varint, of seven bits each.
_MAX_VARINT_BYTES = 10
#: Repeated fields of a request that are messages themselves: inputs and outputs.
_NESTED = {5, 6}
#: Maximum fields of a message, including those of its tensors but not the tensors' contents.
MAX_FIELDS = 20_000


def check_fields(message: bytes) -> None:
    """Check the number of fields in a message; parsed fields can take forty times their bytes.

    Bytes that are not a message pass: the parser reports what is wrong with them.

    Raises
    ------
    TooLarge
        If there are more than `MAX_FIELDS`.
    """
    if len(message) <= MAX_FIELDS:
        # Each field takes at least one byte.
        return
    with contextlib.suppress(IndexError, KeyError):
        _count(message, 0, len(message), 0, nested=False)


def _count(message: bytes, position: int, end: int, fields: int, *, nested: bool) -> int:
    """Return `fields` plus the number of fields from `position` to `end`.

    Raises
    ------
    TooLarge
        If there are more than `MAX_FIELDS`.
    IndexError, KeyError
        If the bytes are not a message.
    """
    while position < end:
        fields += 1
        if fields > MAX_FIELDS:
            raise TooLarge(
                f"too many tensors and other fields in the message: limit {MAX_FIELDS}", limit="fields"
            )
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, position = _varint(message, position)
        elif wire_type == _BYTES:
            length, position = _varint(message, position)
            if number in _NESTED and not nested:
                fields = _count(message, position, position + length, fields, nested=True)
            position += length
        else:
            position += _FIXED[wire_type]
    return fields


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Return a varint and the position after it."""
    value = 0
    for place in range(_MAX_VARINT_BYTES):
        byte = message[position + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, position + place + 1
    raise IndexError("varint of more than 10 bytes")
