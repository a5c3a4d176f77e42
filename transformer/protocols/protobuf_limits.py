"""A limit on the number of fields in a protobuf message, checked before the message is parsed."""

import contextlib

from transformer.errors import TooLarge

#: Wire types of protobuf: how long a field is behind its tag. A group begins and ends with a tag alone.
_VARINT = 0


_BYTES = 2


_FIXED = {1: 8, 5: 4, 3: 0, 4: 0}


#: Most bytes of a number, of seven bits each.
_VARINT_BYTES = 10


#: Fields of a request that have fields themselves, as many as their sender likes: inputs and outputs.
_NESTED = {5, 6}


#: Fields that a message may have, those of its tensors included but for their contents.
MAX_FIELDS = 20_000


def check_fields(message: bytes) -> None:
    """Refuse a message of so many fields that the parsed ones would take forty times its bytes.

    One that is no message passes: whoever parses it says what is wrong.

    Raises
    ------
    TooLarge
        If there are more than `MAX_FIELDS`.
    """
    if len(message) <= MAX_FIELDS:
        # Each has a byte at least.
        return
    with contextlib.suppress(IndexError, KeyError):
        _count(message, 0, len(message), 0, nested=False)


def _count(message: bytes, position: int, end: int, fields: int, *, nested: bool) -> int:
    """So many fields, and those from a position to an end.

    Raises
    ------
    TooLarge
        See `check_fields`.
    IndexError, KeyError
        If it is no message.
    """
    while position < end:
        fields += 1
        if fields > MAX_FIELDS:
            raise TooLarge(f"the message may have {MAX_FIELDS} tensors and other fields")
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _BYTES:
            length, position = _varint(message, position)
            if number in _NESTED and not nested:
                fields = _count(message, position, position + length, fields, nested=True)
            position += length
        else:
            position += _FIXED[kind]
    return fields


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number of protobuf's, and where it ends."""
    value = 0
    for place in range(_VARINT_BYTES):
        byte = message[position + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, position + place + 1
    raise IndexError("a number of more bytes than any has")
