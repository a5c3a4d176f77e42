"""Requests of tritonclient's gRPC clients, run by `test_interoperability.py`; prints the answers as JSON.

It is a separate program because tritonclient and kserve register protobuf messages of the same names, and a
process can have only one of them.
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

MODEL = "placement"


def inputs(columns: dict[str, list[Any]], shape: list[int]) -> list[triton.InferInput]:
    """Return one tensor for each column."""
    made = []
    for name, values in columns.items():
        text = isinstance(values[0], str)
        tensor = triton.InferInput(name, shape, "BYTES" if text else "FP64")
        tensor.set_data_from_numpy(np.array(values, np.object_ if text else np.float64).reshape(shape))
        made.append(tensor)
    return made


def out_of_range(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the columns with one wrong value."""
    return {**columns, "ssc_p": [710.5, *columns["ssc_p"][1:]]}


def told(result: Any) -> dict[str, Any]:
    """Return the parts of an answer that tests compare."""
    response = result.get_response()
    outputs = {output.name: result.as_numpy(output.name).tolist() for output in response.outputs}
    return {"version": response.model_version, "id": response.id, "outputs": outputs}


def failure(error: InferenceServerException) -> list[str]:
    return [str(error.status()), error.message()]


def blocking(address: str, columns: dict[str, list[Any]], rows: int) -> dict[str, Any]:
    """Call every method of the blocking client."""
    client = triton.InferenceServerClient(address)
    good, bad = inputs(columns, [rows]), out_of_range(columns)
    answers: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(MODEL),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata(MODEL, as_json=True),
        "all": told(client.infer(MODEL, good, request_id="mine")),
        "nested": told(client.infer(MODEL, inputs(columns, [rows, 1]))),
        "one": told(client.infer(MODEL, good, outputs=[triton.InferRequestedOutput(f"{MODEL}_probability")])),
        "headers": told(client.infer(MODEL, good, headers={"x-request-id": "7"}, client_timeout=30)),
    }
    errors = {
        "bad value": lambda: client.infer(MODEL, inputs(bad, [rows])),
        "no model": lambda: client.infer("salary", good),
        "no metadata": lambda: client.get_model_metadata("salary"),
        "a version": lambda: client.infer(MODEL, good, model_version="1"),
        "no output": lambda: client.infer(MODEL, good, outputs=[triton.InferRequestedOutput("salary")]),
        "no config": lambda: client.get_model_config(MODEL),
        "unload": lambda: client.unload_model(MODEL),
        "compressed": lambda: client.infer(MODEL, good, compression_algorithm="gzip"),
    }
    for name, ask in errors.items():
        try:
            ask()  # type: ignore[no-untyped-call]
        except InferenceServerException as error:
            answers[name] = failure(error)
    client.close()
    return answers


async def asynchronous(address: str, columns: dict[str, list[Any]], rows: int) -> dict[str, Any]:
    """Call the methods of the asynchronous client that differ."""
    async with triton_aio.InferenceServerClient(address) as client:
        answers = {
            "ready": await client.is_server_ready(),
            "all": told(await client.infer(MODEL, inputs(columns, [rows]))),
        }
        try:
            await client.infer(MODEL, inputs(out_of_range(columns), [rows]))
        except InferenceServerException as error:
            answers["bad value"] = failure(error)
    return answers


def main() -> None:
    """Read columns from standard input, send the requests, and print the answers."""
    address = sys.argv[1]
    columns: dict[str, list[Any]] = json.load(sys.stdin)
    rows = len(next(iter(columns.values())))
    answers = blocking(address, columns, rows)
    print(json.dumps({"blocking": answers, "aio": asyncio.run(asynchronous(address, columns, rows))}))


if __name__ == "__main__":
    main()
