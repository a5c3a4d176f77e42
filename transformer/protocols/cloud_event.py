"""CloudEvents around V1 requests, in structured and in binary mode.

KServe's own decoding requires the optional attribute ``time`` and a content type without parameters, and does
not know ``data_base64``.
"""

import base64
from collections.abc import Mapping
from typing import Any

from transformer.bundle.plain_errors import describe, shown
from transformer.errors import InvalidRequest
from transformer.protocols.json_body import parse_json

#: Content type of an event in structured mode.
MEDIA_TYPE = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"
_REQUIRED = ("id", "source", "specversion", "type")
_SPEC_VERSIONS = ("1.0", "0.3")
_PREFIX = "ce-"


def is_binary(headers: Mapping[str, str]) -> bool:
    """Return True for an event in binary mode, whose attributes are headers."""
    return all(_PREFIX + name in headers for name in _REQUIRED)


def is_structured(headers: Mapping[str, str]) -> bool:
    """Return True for an event in structured mode, which is the body."""
    return _media_type(headers) == MEDIA_TYPE


def unwrap(body: bytes, headers: Mapping[str, str]) -> tuple[object, dict[str, Any]]:
    """Return the payload of a request, and the attributes of the event around it, if there is one.

    Parameters
    ----------
    body
        The request's body.
    headers
        Its headers, names in lower case.

    Raises
    ------
    InvalidRequest
        If the body is not JSON, or the event lacks an attribute or its data.
    TooLarge
        See `transformer.protocols.json_body.check_values`.
    """
    if _media_type(headers) == _BATCH:
        raise InvalidRequest("content-type: must be that of one CloudEvent, got a batch; send one by one")
    payload = parse_json(body)
    if is_structured(headers) or (isinstance(payload, dict) and payload.keys() >= {*_REQUIRED}):
        return _structured(payload)
    if not is_binary(headers):
        return payload, {}
    attributes = {
        name.removeprefix(_PREFIX): value for name, value in headers.items() if name.startswith(_PREFIX)
    }
    _check_attributes(attributes)
    return payload, attributes


def _structured(event: object) -> tuple[object, dict[str, Any]]:
    if not isinstance(event, dict):
        raise InvalidRequest(f"body: must be a CloudEvent, an object with attributes, got {describe(event)}")
    attributes = {name: value for name, value in event.items() if name not in ("data", "data_base64")}
    _check_attributes(attributes)
    if "data" in event and "data_base64" in event:
        raise InvalidRequest("data: must not be in a CloudEvent together with data_base64")
    if "data" in event:
        return event["data"], attributes
    if "data_base64" not in event:
        raise InvalidRequest("data: is required in a CloudEvent, or data_base64")
    try:
        data = base64.b64decode(event["data_base64"], validate=True)
    except (TypeError, ValueError) as error:
        raise InvalidRequest("data_base64: must be base64") from error
    return parse_json(data, "data_base64"), attributes


def _check_attributes(attributes: Mapping[str, Any]) -> None:
    for name in _REQUIRED:
        value = attributes.get(name)
        if value is None:
            raise InvalidRequest(f"{name}: is required in a CloudEvent")
        if not isinstance(value, str) or not value:
            raise InvalidRequest(f"{name}: must be a text in a CloudEvent, got {describe(value)}")
    if attributes["specversion"] not in _SPEC_VERSIONS:
        known = " or ".join(_SPEC_VERSIONS)
        raise InvalidRequest(f"specversion: must be {known}, got {shown(attributes['specversion'])}")


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()
