"""The OpenAPI description of the REST side: V1 and V2 with the candidate's own schema.

KServe's application would describe its routes without their content: any object in, any object out.
"""

from collections.abc import Collection, Iterable
from typing import Any

from transformer.bundle.signature import Number, RawField, Signature
from transformer.bundle.validation import UnknownCategory
from transformer.protocols.tensors import NUMPY_DTYPES
from transformer.protocols.v2 import JSON_LENGTH_HEADER, output_types

#: A JSON Schema, or another part of the document.
Part = dict[str, Any]

_JSON = "application/json"
_BINARY = "application/octet-stream"
_TEXT: Part = {"type": "string"}
_BOOLEAN: Part = {"type": "boolean"}
_PROBABILITY: Part = {"type": "number", "minimum": 0, "maximum": 1}
#: Why there is no prediction, by status; see `transformer.errors`.
_REFUSALS = {
    "400": "The request is not what the model takes: what came and what was expected, for each field.",
    "408": "The request did not come to its end in time.",
    "413": "More bytes or candidates than one request may have.",
    "415": "The body is compressed.",
    "502": "The predictor's answer is not a probability for each candidate.",
    "503": "No predictor can score this now, or too many candidates wait.",
    "504": "The predictor did not answer in time.",
}
_RETRY_AFTER: Part = {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
_VERSION: Part = {"description": "The version that gave the answer.", "required": True, "schema": _TEXT}
_JSON_LENGTH: Part = {
    "name": JSON_LENGTH_HEADER,
    "in": "header",
    "description": "Bytes of JSON in front of the tensors' binary data; without it, all is JSON.",
    "schema": {"type": "integer", "minimum": 0},
}


def describe(
    model_name: str,
    output_name: str,
    version: str,
    signature: Signature,
    *,
    max_candidates: int,
    unknown_category: UnknownCategory = "refuse",
) -> Part:
    """The description, as OpenAPI 3.1.

    Parameters
    ----------
    model_name
        Name under which the model is served.
    output_name
        Name of the bundle, and so of the outputs.
    version
        The version whose fields these are.
    signature
        What a candidate is.
    max_candidates
        Candidates that one request may carry.
    unknown_category
        Whether a value that the signature does not list is an error or encoded as none.
    """
    v1, v2 = f"/v1/models/{model_name}", f"/v2/models/{model_name}"
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{model_name}: raw candidates in, predictions out", "version": version},
        "paths": {
            f"{v1}:predict": {"post": _predict()},
            f"{v2}/infer": {"post": _infer()},
            v1: {"get": _get("Is the model ready? (V1)", "ModelReady", ready=True)},
            f"{v2}/ready": {"get": _get("Is the model ready? (V2)", "ModelReady", ready=True)},
            v2: {"get": _get("The model's inputs and outputs.", "ModelMetadata")},
            "/v1/models": {"get": _get("The models' names. (V1)", "Models")},
            "/v2/models": {"get": _get("The models' names. (V2)", "Models")},
            "/v2": {"get": _get("The server and what it can do beyond the protocol.", "ServerMetadata")},
            "/": {"get": _get("Does the process live? (V1)", "Status")},
            "/v2/health/live": {"get": _get("Does the process live? (V2)", "Live")},
            "/v2/health/ready": {"get": _get("Would a prediction succeed?", "Ready", ready=True)},
            "/metrics": {"get": {"summary": "Metrics for Prometheus.", "responses": {"200": _metrics()}}},
        },
        "components": {
            "schemas": {
                "Candidate": candidate_schema(signature, unknown_category),
                **_v1_schemas(output_name, max_candidates),
                **_v2_request_schemas(output_name, signature, max_candidates, unknown_category),
                **_v2_response_schemas(model_name, output_name),
                **_server_schemas(model_name),
                "Error": _object({"error": _TEXT}),
            }
        },
    }


def candidate_schema(signature: Signature, unknown_category: UnknownCategory = "refuse") -> Part:
    """JSON Schema of a candidate: it allows just what validation does. Other keys are passed over."""
    fields = {field.name: _value_schema(field, unknown_category) for field in signature.fields}
    return _object(fields, optional=[field.name for field in signature.fields if field.default is not None])


def _value_schema(field: RawField, unknown_category: UnknownCategory) -> Part:
    if isinstance(field, Number):
        schema: Part = {"type": "number", "minimum": field.minimum, "maximum": field.maximum}
    elif unknown_category == "ignore":
        schema = _TEXT
    else:
        schema = {"type": "string", "enum": list(field.categories)}
    if field.default is None:
        return schema
    # JSON's null is a missing value.
    return {"anyOf": [schema, {"type": "null"}], "default": field.default}


def _v1_schemas(output_name: str, max_candidates: int) -> Part:
    prediction = {output_name: _BOOLEAN, f"{output_name}_probability": _PROBABILITY}
    return {
        "PredictRequest": _object(
            {"instances": _array(_ref("Candidate"), minItems=1, maxItems=max_candidates)}
        ),
        "PredictResponse": _object({"predictions": _array(_object(prediction))}),
    }


def _v2_request_schemas(
    output_name: str, signature: Signature, max_candidates: int, unknown_category: UnknownCategory
) -> Part:
    def tensor(name: Part, datatypes: Iterable[str], values: Part) -> Part:
        return _object(
            {
                "name": name,
                "datatype": {"enum": list(datatypes)},
                "shape": _ref("Shape"),
                "data": _array(values, maxItems=max_candidates),
                "parameters": _ref("TensorParameters"),
            },
            optional=["data", "parameters"],
        )

    numeric = [datatype for datatype in NUMPY_DTYPES if datatype != "BOOL"]
    fields = [
        tensor(
            {"const": field.name},
            numeric if isinstance(field, Number) else ["BYTES"],
            _value_schema(field, unknown_category),
        )
        for field in signature.fields
    ]
    document = {"type": "string", "contentMediaType": _JSON, "contentSchema": _ref("Candidate")}
    request = {
        "inputs": _array(
            {"anyOf": [*fields, tensor({"const": "candidates"}, ["BYTES"], document)]},
            minItems=1,
            description="A tensor for each field; or `candidates` alone, each one's JSON as a string.",
        ),
        "outputs": _array(
            _object({"name": {"enum": list(output_types(output_name))}}),
            description="Both if none is named.",
        ),
        "id": _TEXT,
        "parameters": _object(
            {"binary_data_output": {**_BOOLEAN, "description": "Answer with binary data."}},
            optional=["binary_data_output"],
        ),
    }
    size = {"type": "integer", "minimum": 0, "description": "Bytes of its data behind the JSON."}
    return {
        "InferRequest": _object(request, optional=["outputs", "id", "parameters"]),
        "Shape": {
            "description": "[candidates] or [candidates, 1]",
            "type": "array",
            "prefixItems": [{"type": "integer", "minimum": 1, "maximum": max_candidates}, {"const": 1}],
            "minItems": 1,
            "maxItems": 2,
        },
        "TensorParameters": _object({"binary_data_size": size}, optional=["binary_data_size"]),
    }


def _v2_response_schemas(model_name: str, output_name: str) -> Part:
    values = {"BOOL": _BOOLEAN, "FP64": _PROBABILITY}
    outputs = [
        _object(
            {
                "name": {"const": name},
                "datatype": {"const": datatype},
                "shape": _array({"type": "integer"}),
                "data": _array(values[datatype]),
                "parameters": _ref("TensorParameters"),
            },
            optional=["data", "parameters"],
        )
        for name, datatype in output_types(output_name).items()
    ]
    response = {
        "model_name": {"const": model_name},
        "model_version": {**_TEXT, "description": _VERSION["description"]},
        "id": {**_TEXT, "description": "The request's own, or a new one."},
        "outputs": _array({"anyOf": outputs}),
    }
    return {"InferResponse": _object(response)}


def _server_schemas(model_name: str) -> Part:
    tensor = _object({"name": _TEXT, "datatype": _TEXT, "shape": _array({"type": "integer"})})
    name = {"const": model_name}
    return {
        "ModelReady": _object({"name": name, "ready": _BOOLEAN}),
        "ModelMetadata": _object({"name": name, "inputs": _array(tensor), "outputs": _array(tensor)}),
        "Models": _object({"models": _array(_TEXT)}),
        "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _array(_TEXT)}),
        "Status": _object({"status": {"const": "alive"}}),
        "Live": _object({"live": _BOOLEAN}),
        "Ready": _object({"ready": _BOOLEAN}),
    }


def _predict() -> Part:
    return {
        "summary": "Predictions for candidates. (V1)",
        "operationId": "predict",
        "requestBody": {"required": True, "content": _json("PredictRequest")},
        "responses": {
            "200": {
                "description": "A prediction for each candidate.",
                "headers": {"x-model-version": _VERSION},
                "content": _json("PredictResponse"),
            },
            **_refusals(),
        },
    }


def _infer() -> Part:
    return {
        "summary": "Predictions for candidates. (V2)",
        "operationId": "infer",
        "parameters": [_JSON_LENGTH],
        "requestBody": {"required": True, "content": {**_json("InferRequest"), _BINARY: {}}},
        "responses": {
            "200": {
                "description": "An element of each output for each candidate.",
                "headers": {"x-model-version": _VERSION},
                "content": {**_json("InferResponse"), _BINARY: {}},
            },
            **_refusals(),
        },
    }


def _get(summary: str, schema: str, *, ready: bool = False) -> Part:
    responses = {"200": {"description": "The answer.", "content": _json(schema)}}
    return {"summary": summary, "responses": responses | ({"503": _refusal("503")} if ready else {})}


def _metrics() -> Part:
    return {"description": "The metrics.", "content": {"text/plain": {"schema": _TEXT}}}


def _refusals() -> Part:
    return {status: _refusal(status) for status in _REFUSALS}


def _refusal(status: str) -> Part:
    refusal = {"description": _REFUSALS[status], "content": _json("Error")}
    return {**refusal, "headers": {"retry-after": _RETRY_AFTER}} if status == "503" else refusal


def _json(schema: str) -> Part:
    return {_JSON: {"schema": _ref(schema)}}


def _ref(schema: str) -> Part:
    return {"$ref": f"#/components/schemas/{schema}"}


def _array(items: Part, **rest: object) -> Part:
    return {"type": "array", "items": items, **rest}


def _object(properties: Part, *, optional: Collection[str] = ()) -> Part:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}
