"""JSON body of a V2 REST request: its types and their validation."""

from collections.abc import Collection
from typing import Annotated, Any, NotRequired

from pydantic import FailFast, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType, TypedDict

from transformer.bundle.plain_errors import first_problem
from transformer.errors import InvalidRequest
from transformer.protocols.json_body import parse_json
from transformer.protocols.tensors import check_number_of_tensors

# Other parameters than ours are ignored, whatever they are: MLServer's types send null and objects.
Parameters = dict[str, Any] | None


# Clients may add fields of their own, which are ignored. Validation stops at the first invalid item of a
# list: to describe a million invalid items in 8 MB of JSON would take gigabytes.
class Input(TypedDict):
    """An input tensor."""

    name: str
    datatype: str
    shape: Annotated[list[int], FailFast()]
    data: NotRequired[list[Any] | None]
    parameters: NotRequired[Parameters]


class Output(TypedDict):
    """A requested output."""

    name: str
    parameters: NotRequired[Parameters]


# An alias, because a union cannot hold a type with this annotation.
_Outputs = TypeAliasType("_Outputs", Annotated[list[Output], FailFast()])


class Body(TypedDict):
    """An inference request."""

    id: NotRequired[str | None]
    inputs: Annotated[list[Input], FailFast()]
    outputs: NotRequired[_Outputs | None]
    parameters: NotRequired[Parameters]


_BODY = TypeAdapter(Body)


def parse_body(text: bytes, fields: Collection[str]) -> Body:
    """Parse the JSON of a request.

    Parameters
    ----------
    text
        The JSON.
    fields
        Names of the signature's fields.

    Raises
    ------
    InvalidRequest
        If it is not JSON, has too many tensors or a field of the wrong type.
    TooLarge
        If it has too many values; see `transformer.protocols.json_body.check_values`.
    """
    parsed = parse_json(text)
    inputs = parsed.get("inputs") if isinstance(parsed, dict) else None
    if isinstance(inputs, list):
        check_number_of_tensors(len(inputs), fields)
    try:
        return _BODY.validate_python(parsed, strict=True)
    except ValidationError as error:
        raise InvalidRequest(first_problem(error, where="body")) from error


def parameter(part: Body | Input | Output, name: str, default: object) -> object:
    """Return a parameter of the request or of one of its tensors."""
    parameters = part.get("parameters")
    return parameters.get(name, default) if parameters else default
