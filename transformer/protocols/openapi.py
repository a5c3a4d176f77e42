"""OpenAPI description of the REST side: V1 and V2, with the schema of the model's candidates.

KServe's application would describe its routes with any object in and any object out. ``openapi.json`` is the
description of every model, with ``<placeholders>`` for one model's names, limits and fields.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformer.bundle.signature import (
    DEFAULT_ROW_NAME,
    Boolean,
    CategoryList,
    Number,
    RawField,
    Signature,
    plural,
)
from transformer.bundle.target import BINARY, Target
from transformer.bundle.validation import UnknownCategory
from transformer.protocols.tensors import NUMPY_DTYPES
from transformer.protocols.v2 import output_metadata

#: A JSON Schema, or another part of the description.
Part = dict[str, Any]

#: Datatypes that a numeric field's tensor may have.
_NUMERIC = [datatype for datatype in NUMPY_DTYPES if datatype != "BOOL"]


def describe(
    model_name: str,
    output_name: str,
    version: str,
    signature: Signature,
    *,
    max_candidates: int,
    max_explained_candidates: int,
    row_name: str = DEFAULT_ROW_NAME,
    unknown_category: UnknownCategory = "refuse",
    explains: bool = True,
    target: Target = BINARY,
) -> Part:
    """Return the description, as OpenAPI 3.1.

    Parameters
    ----------
    model_name
        Name under which the model is served.
    output_name
        Name of the bundle, and so of the outputs.
    version
        The version whose fields are described.
    signature
        Fields of a candidate.
    max_candidates
        Maximum candidates per request.
    max_explained_candidates
        Maximum candidates per request for explanations.
    row_name
        The bundle's word for a candidate.
    unknown_category
        With ``ignore``, a categorical field accepts any string.
    explains
        Describe explanations, too.
    target
        What the model predicts.
    """
    answer = {f"{output_name}{suffix}": schema for suffix, schema in _answers(target).items()}
    description: Part = _filled(
        _template(),
        {
            "<model_name>": model_name,
            "<output_name>": output_name,
            "<version>": version,
            "<row>": row_name,
            "<rows>": plural(row_name),
            "<max_candidates>": max_candidates,
            "<max_explained_candidates>": min(max_candidates, max_explained_candidates),
            "<candidate>": candidate_schema(signature, unknown_category),
            "<output_names>": [one["name"] for one in output_metadata(output_name, int(explains), target)],
            "<output_tensors>": _output_tensors(output_name, target, explains=explains),
            "<answer>": answer,
            "<answer_names>": list(answer),
            "<score>": target.score_name,
            "<input_tensors>": _input_tensors(signature, max_candidates, unknown_category),
        },
    )
    explanation = description["components"]["schemas"]["Explanation"]
    explanation["properties"] = answer | explanation["properties"]
    explanation["required"] = [*answer, *explanation["required"]]
    if target.kind != "binary":
        del explanation["properties"]["changes"]
    if not explains:
        del description["paths"][f"/v1/models/{model_name}:explain"]
    return description


def candidate_schema(signature: Signature, unknown_category: UnknownCategory = "refuse") -> Part:
    """Return the JSON Schema of a candidate. It allows what validation allows; other keys are ignored."""
    return {
        "type": "object",
        "properties": {field.name: _value_schema(field, unknown_category) for field in signature.fields},
        "required": [field.name for field in signature.fields if field.default is None],
    }


def _value_schema(field: RawField, unknown_category: UnknownCategory) -> Part:
    schema: Part
    if isinstance(field, Boolean):
        schema = {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}]}
    elif isinstance(field, Number):
        bounds = {"minimum": field.minimum, "maximum": field.maximum}
        schema = {"type": field.type} | {name: bound for name, bound in bounds.items() if bound is not None}
    else:
        schema = {"type": "string"}
        if unknown_category != "ignore" and not field.open:
            schema["enum"] = list(field.categories)
        if field.codes:
            codes = {"enum": list(field.codes)} if "enum" in schema else {"type": "integer"}
            schema = {"anyOf": [schema, codes]}
        if isinstance(field, CategoryList):
            schema = {"type": "array", "items": schema}
    if field.default is None:
        return schema
    # JSON's null is a missing value.
    return {"anyOf": [schema, {"type": "null"}], "default": field.default}


def _input_tensors(
    signature: Signature, max_candidates: int, unknown_category: UnknownCategory
) -> list[Part]:
    """Return the schemas of the tensors in a V2 request: one per field, and one of JSON objects."""

    def tensor(name: str, datatypes: list[str], values: Part) -> Part:
        return {
            "title": f"{name} tensor",
            "type": "object",
            "properties": {
                "name": {"const": name},
                "datatype": {"enum": datatypes},
                "shape": {"$ref": "#/components/schemas/Shape"},
                "data": {"type": "array", "items": values, "maxItems": max_candidates},
                "parameters": {"$ref": "#/components/schemas/TensorParameters"},
            },
            "required": ["name", "datatype", "shape"],
        }

    fields = [
        tensor(
            field.name,
            _datatypes(field),
            _tensor_value(field, unknown_category),
        )
        for field in signature.fields
    ]
    json_object = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": "#/components/schemas/Instance"},
    }
    return [*fields, tensor("candidates", ["BYTES"], json_object)]


def _datatypes(field: RawField) -> list[str]:
    if isinstance(field, Number):
        return _NUMERIC
    if isinstance(field, Boolean):
        return ["BOOL", *_NUMERIC]
    return ["BYTES", *(_NUMERIC if field.codes else [])]


def _tensor_value(field: RawField, unknown_category: UnknownCategory) -> Part:
    """Return the schema of an element; a list of categories is JSON in a string."""
    if isinstance(field, CategoryList):
        return {"type": ["string", "null"], "contentMediaType": "application/json"}
    return _value_schema(field, unknown_category)


def _answers(target: Target) -> dict[str, Part]:
    """Return the schema of each part of V1's answer, by the suffix of its name."""
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    if target.kind == "binary":
        return {"": {"type": "boolean"}} | ({"_probability": probability} if target.has_probabilities else {})
    if target.kind == "regression":
        return {"": {"type": "number"}}
    names = list(target.class_names)
    by_class = {
        "title": "Probabilities",
        "type": "object",
        "properties": dict.fromkeys(names, probability),
        "required": names,
    }
    return {"": {"enum": list(target.classes)}} | (
        {"_probabilities": by_class} if target.has_probabilities else {}
    )


def _output_tensors(output_name: str, target: Target, *, explains: bool) -> list[Part]:
    """Return the schemas of the tensors in a V2 response."""
    values: Mapping[str, Part] = {
        output_name: _answers(target)[""],
        f"{output_name}_probability": {"type": "number", "minimum": 0, "maximum": 1},
        f"{output_name}_probabilities": {"type": "number", "minimum": 0, "maximum": 1},
        f"{output_name}_changes": {"type": "string", "contentMediaType": "application/json"},
    }
    return [
        {
            "title": f"{output['name']} tensor",
            "type": "object",
            "properties": {
                "name": {"const": output["name"]},
                "datatype": {"const": output["datatype"]},
                "shape": {"type": "array", "items": {"type": "integer"}},
                "data": {"type": "array", "items": values.get(output["name"], {"type": "number"})},
                "parameters": {"$ref": "#/components/schemas/TensorParameters"},
            },
            "required": ["name", "datatype", "shape"],
        }
        for output in output_metadata(output_name, int(explains), target)
    ]


@cache
def _template() -> Part:
    template: Part = json.loads(Path(__file__).with_suffix(".json").read_bytes())
    return template


def _filled(part: Any, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 (JSON)
    """Return a part of the template with values in place of its placeholders."""
    if isinstance(part, dict):
        return {_filled(key, values): _filled(item, values) for key, item in part.items()}
    if isinstance(part, list):
        return [_filled(item, values) for item in part]
    if not isinstance(part, str):
        return part
    if part in values:
        return values[part]
    return re.sub("<[a-z_]+>", lambda placeholder: str(values[placeholder[0]]), part)
