"""Candidates whose values occur nowhere else, and requests that carry them, good and bad."""

import itertools
import json
from typing import Any

import httpx
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.support.endpoints import V1_EXPLAIN, V1_PREDICT, V2_INFER
from tests.support.faulty_predictor import REFUSED_NAMES, hangs_up, has_status
from tests.support.request_bodies import grpc_objects, v2_objects
from training.candidates import SAMPLE

#: Values of fields that occur nowhere else.
SECRETS = {"ssc_p": 67.8901, "hsc_p": 84.3219, "degree_p": 71.7171, "mba_p": 63.6363}
SECRET_TEXT = "Zaphodshire"
CANDIDATES: dict[str, dict[str, Any]] = {
    "fine": {**SAMPLE, **SECRETS},
    "unknown category": {**SAMPLE, **SECRETS, "ssc_b": SECRET_TEXT},
    "out of range": {**SAMPLE, **SECRETS, "etest_p": 8765.4321},
    "wrong type": {**SAMPLE, **SECRETS, "etest_p": SECRET_TEXT},
    "a list": {**SAMPLE, **SECRETS, "etest_p": [SECRET_TEXT]},
    "missing field": SECRETS,
}
#: Parts of the values, since a number may be printed with fewer digits and a text may be shortened.
#: None can be part of a time or a duration.
TRACES = ["67.89", "84.32", "71.71", "63.63", "8765.4", "Zaphod"]


PATHS = [
    V1_PREDICT,
    V2_INFER,
    V1_EXPLAIN,
    "/v1/models/other:predict",
    f"{V2_INFER[:-6]}/versions/1/infer",
]
TEXTS: list[str | bytes] = [
    json.dumps({"instances": [SECRETS]})[:-3],
    json.dumps({"instances": [SECRETS]}),
    json.dumps([SECRETS]),
    json.dumps(SECRETS),
    f'{{"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": "{SECRET_TEXT}"}}',
    f'{{"specversion": "1.0", "id": "1", "source": "s", "type": "{SECRET_TEXT}"}}',
    f'"{SECRET_TEXT} \\ud800"',
    f"{SECRET_TEXT} \xff".encode("latin-1"),
    "67.8901",
    "6789" * 100,
    "null",
    "[" * 10_000 + "67.8901",
    "",
]
EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
HEADERS = [
    {"content-type": kind, **more}
    for kind in ("application/json", "application/cloudevents+json", "application/octet-stream", "")
    for more in ({}, EVENT, {**EVENT, "ce-contenttype": "application/json"}, {**EVENT, "ce-specversion": "9"})
]


async def ask_over_every_protocol(http: httpx.AsyncClient, stub: GRPCInferenceServiceStub) -> list[str]:
    """Return the statuses of good and bad candidates over every protocol."""
    ended = []
    for candidate in CANDIDATES.values():
        for path in (V1_PREDICT, V1_EXPLAIN):
            response = await http.post(path, json={"instances": [candidate]})
            ended.append(str(response.status_code))
        response = await http.post(V2_INFER, json=v2_objects([candidate]))
        ended.append(str(response.status_code))
        ended.append((await stub.ModelInfer(grpc_objects([candidate])).code()).name)
    bad = pb.ModelInferRequest(model_name="placement")
    bad.inputs.add(name=SECRET_TEXT, datatype="BYTES", shape=[3]).contents.bytes_contents.append(b"Zaphod")
    ended.append((await stub.ModelInfer(bad).code()).name)
    return ended


async def ask_malformed(http: httpx.AsyncClient) -> set[int]:
    """Return the statuses of malformed requests."""
    odd = itertools.product(PATHS, TEXTS, HEADERS)
    return {(await http.post(path, content=text, headers=more)).status_code for path, text, more in odd}


FAULTS = {
    "fine": None,
    "unavailable": has_status(503, text=f"no: {SECRETS}"),
    "nonsense": has_status(200, {"predictions": [[67.8901, 84.3219]], "outputs": [SECRETS]}),
    "refused": has_status(500, {"error": f"ValueError: could not convert {SECRETS}"}),
    "other feature names": has_status(500, {"error": REFUSED_NAMES + SECRET_TEXT}),
    "hangs up": hangs_up,
}


def traces_in(text: str) -> list[str]:
    return [trace for trace in TRACES if trace in text]
