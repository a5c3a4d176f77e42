"""The official schemas of the Open Inference Protocol, as checks of REST and gRPC responses."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jsonschema_rs
import yaml
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_tools import protoc

from tests.support.paths import ROOT

#: Directory of the two schemas, which the protocol's repository publishes.
SCHEMAS = Path(os.environ.get("OIP_SCHEMAS", ROOT.parent / "shared" / "oip"))
REST, PROTO = "open_inference_rest.yaml", "open_inference_grpc.proto"
MISSING = not all((SCHEMAS / name).is_file() for name in (REST, PROTO))
MISSING_REASON = f"the protocol's schemas are not at {SCHEMAS}; OIP_SCHEMAS names their directory"


class OfficialRest:
    """The official REST operations, and the schemas of their requests and responses."""

    def __init__(self) -> None:
        self._document = yaml.safe_load((SCHEMAS / REST).read_text())
        self._components = closed(self._document["components"])

    def operations(self) -> Iterator[tuple[str, str, str]]:
        """Yield method, path and id of each operation."""
        for path, item in self._document["paths"].items():
            for method in item.keys() & {"get", "post"}:
                yield method, path, item[method]["operationId"]

    def check(self, value: object, name: str) -> None:
        """Raise if a value does not match a schema, or has a property that the schema does not list."""
        schema = {"allOf": [{"$ref": f"#/components/schemas/{name}"}], "components": self._components}
        # OpenAPI 3.0 uses the fourth draft of JSON Schema.
        jsonschema_rs.Draft4Validator(schema).validate(value)


def closed(schema: Any) -> Any:
    """Return a schema that allows only listed properties where it lists any."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: closed(part) for name, part in schema.items()}
    lists_any = schema.get("type") == "object" and "properties" in schema
    return {**parts, "additionalProperties": False} if lists_any else parts


class OfficialGrpc:
    """The official gRPC service and its messages, compiled from the protocol's own file.

    Attributes
    ----------
    methods
        Descriptors of the service's methods by name.
    """

    def __init__(self, scratch: Path) -> None:
        compiled = scratch / "descriptors"
        options = [f"--proto_path={SCHEMAS}", f"--descriptor_set_out={compiled}", "--include_imports"]
        if protoc.main(["protoc", *options, str(SCHEMAS / PROTO)]):
            raise ValueError(f"{SCHEMAS / PROTO} does not compile")
        # KServe's messages have the same names, so these need a pool of their own.
        pool = DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file:
            pool.Add(file)
        self._file = pool.FindFileByName(PROTO)
        (service,) = self._file.services_by_name.values()
        self.methods: dict[str, Any] = dict(service.methods_by_name)

    def message(self, kind: str, /, **fields: Any) -> Any:
        """Create a message."""
        return GetMessageClass(self._file.message_types_by_name[kind])(**fields)

    async def call(self, channel: grpc.aio.Channel, name: str, request: Message) -> Any:
        """Call a method with official messages only. The response must not have other fields."""
        method = self.methods[name]
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        response = await call(request, timeout=10)
        unknown = list(unknown_fields(response))
        assert not unknown, unknown
        return response


def unknown_fields(message: Message) -> Iterator[str]:
    """Yield the fields of a message that its type does not have, at any depth."""
    for unknown in UnknownFieldSet(message):
        yield f"{message.DESCRIPTOR.full_name}.{unknown.field_number}"
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if field.message_type.GetOptions().map_entry:
            parts = [part for part in value.values() if isinstance(part, Message)]
        else:
            parts = list(value) if field.is_repeated else [value]
        for part in parts:
            yield from unknown_fields(part)
