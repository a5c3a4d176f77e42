"""The transformer unpickles nothing for a request, and does not import scikit-learn.

Code in its processes records Python's audit events and every call that unpickles.
"""

import ast
import base64
import io
import json
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from inferenceservice.local.launch import TransformerProcess
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.paths import ROOT
from tests.support.protocol_clients import CLIENTS
from tests.support.request_bodies import grpc_tensors
from tests.support.sync_processes import running_transformer
from tests.support.waiting import wait_until_sync
from training.candidates import SAMPLE
from training.generator import generate
from transformer.bundle.signature import Signature

#: Modules that models are made of and loaded with. KServe's SDK imports pandas.
NOT_FOR_SERVING = {"cloudpickle", "dill", "joblib", "scipy", "sklearn", "skops", "storage", "training"}

#: Modules whose import is recorded. The last ones are imported, which shows that the recording works.
NAMES = {*NOT_FOR_SERVING, "kserve", "transformer"}

#: Code that runs first in each of the transformer's processes.
_WATCH = """
import _pickle
import os
import pickle
import sys

NAMES = set(os.environ["NAMES"].split())
record = os.open(os.environ["UNPICKLED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(what):
    os.write(record, f"{os.getpid()} {what}\\n".encode())


def watched(name, function):
    def call(*args, **kwargs):
        note(name)
        return function(*args, **kwargs)

    return call


class Unpickler(pickle.Unpickler):
    def __init__(self, *args, **kwargs):
        note("Unpickler")
        super().__init__(*args, **kwargs)


for module in (pickle, _pickle):
    for name in ("load", "loads"):
        setattr(module, name, watched(name, getattr(module, name)))
    module.Unpickler = Unpickler


def watch(event, args):
    if event == "pickle.find_class":
        note(f"finds {args[0]}.{args[1]}")
    elif event == "import" and args[0].partition(".")[0] in NAMES:
        note(f"imports {args[0].partition('.')[0]}")


sys.addaudithook(watch)
"""


class Payload:
    """Creates a directory when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._file),)


@dataclass
class Watched:
    """A transformer, and its record of imports and unpickling."""

    process: TransformerProcess
    record: Path
    workers: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.process.http_port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.process.grpc_port}"


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def watched(
    request: pytest.FixtureRequest, mlserver, trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watched")
    (directory / "sitecustomize.py").write_text(_WATCH)
    record, log = directory / "record", directory / "log"
    env = {"PYTHONPATH": f"{directory}:{ROOT}", "UNPICKLED": str(record), "NAMES": " ".join(NAMES)}
    ports = (mlserver.http_port, mlserver.grpc_port)
    workers: int = request.param
    with running_transformer(ports, trained_bundle, log, f"--workers={workers}", env=env) as process:
        wait_until_sync(lambda: log.read_text().count("Application startup complete") == workers)
        yield Watched(process, record, workers)


def test_no_request_makes_the_transformer_unpickle_anything(watched, sklearn_reference, tmp_path):
    before = watched.record.read_text()
    rows = generate(20, seed=3).candidates
    expected = pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12)
    executed = tmp_path / "executed"
    signature = sklearn_reference.bundle.signature
    for _ in range(4):
        for ask in CLIENTS.values():
            assert ask(watched.url, watched.grpc_address, rows, signature).probabilities == expected
        hostile_over_rest(watched.url, executed)
        hostile_over_grpc(watched.grpc_address, executed, signature)
    assert watched.record.read_text() == before
    assert not executed.exists()


def hostile_over_rest(url: str, executed: Path) -> None:
    """Send pickles as bytes and as text in every place, with content types that suggest to load them."""
    payload = pickle.dumps(Payload(executed))
    encoded = base64.b64encode(payload).decode()
    with io.BytesIO() as file:
        np.save(file, np.array([Payload(executed)], dtype=object), allow_pickle=True)
        array = file.getvalue()
    event = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
    types = [
        "application/json",
        "application/octet-stream",
        "application/python-pickle",
        "application/x-npy",
        "",
    ]
    with httpx.Client(base_url=url, timeout=60) as http:
        for path in (V1_PREDICT, V2_INFER):
            for body in (payload, array, pickle.dumps(Payload(executed), protocol=0)):
                for content_type in types:
                    for more in ({}, event):
                        headers = {"content-type": content_type, **more}
                        assert http.post(path, content=body, headers=headers).status_code == 400
        for text in (encoded, payload.decode("latin-1")):
            answer = http.post(V1_PREDICT, json={"instances": [{**SAMPLE, "gender": text}]})
            assert answer.status_code == 400
            attributes = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data_base64": text}
            answer = http.post(
                V1_PREDICT, json=attributes, headers={"content-type": "application/cloudevents+json"}
            )
            assert answer.status_code == 400
        for content_type in ("pd", "np", "base64", "pickle", "str"):
            for name in ("gender", "candidates"):
                assert http.post(V2_INFER, json=one_tensor(name, [encoded], content_type)).status_code == 400
                raw = len(payload).to_bytes(4, "little") + payload
                head = json.dumps(one_tensor(name, None, content_type, binary_data_size=len(raw))).encode()
                headers = {
                    "inference-header-content-length": str(len(head)),
                    "content-type": "application/octet-stream",
                }
                assert http.post(V2_INFER, content=head + raw, headers=headers).status_code == 400


def one_tensor(name: str, data: list[str] | None, content_type: str, **parameters: Any) -> dict[str, Any]:
    tensor = {
        "name": name,
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"content_type": content_type, **parameters},
    }
    return {"inputs": [tensor if data is None else {**tensor, "data": data}]}


def hostile_over_grpc(address: str, executed: Path, signature: Signature) -> None:
    """Send pickles in typed and in raw contents."""
    payload = pickle.dumps(Payload(executed))
    messages = []
    for name in ("gender", "candidates"):
        typed = pb.ModelInferRequest(model_name="placement")
        tensor = typed.inputs.add(name=name, datatype="BYTES", shape=[1])
        tensor.parameters["content_type"].string_param = "pickle"
        raw = pb.ModelInferRequest()
        raw.CopyFrom(typed)
        tensor.contents.bytes_contents.append(payload)
        raw.raw_input_contents.append(len(payload).to_bytes(4, "little") + payload)
        messages += [typed, raw]
    whole = grpc_tensors(signature, [SAMPLE], raw=True)
    whole.raw_input_contents[0] = len(payload).to_bytes(4, "little") + payload
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for message in [*messages, whole]:
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelInfer(message, timeout=60)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_transformer_imports_nothing_that_loads_models(watched):
    by_process: dict[str, list[str]] = {}
    for line in watched.record.read_text().splitlines():
        pid, _, what = line.partition(" ")
        by_process.setdefault(pid, []).append(what)
    serving = {pid: what for pid, what in by_process.items() if "imports transformer" in what}
    assert len(serving) == (1 if watched.workers == 1 else 1 + watched.workers)
    for pid, told in serving.items():
        imported = {one.removeprefix("imports ") for one in told if one.startswith("imports ")}
        # pandas, which KServe imports, loads pyarrow where it is installed: not in the image.
        assert imported - {"cloudpickle"} == {"transformer", "kserve"}
        unpickled = [one for one in told if not one.startswith("imports ")]
        if pid == str(watched.process.pid):
            assert unpickled == []
        else:
            # A worker unpickles its server from its parent, which also shows that the recording works.
            assert "finds transformer.server.rest.RestServer" in unpickled


def test_only_the_start_of_workers_uses_pickle_and_no_code_loads_arrays_from_files():
    for path in (ROOT / "transformer").rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {
            name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
        }
        loaders = {"pickle", "_pickle", "marshal", "shelve", *NOT_FOR_SERVING} & imported
        assert loaders <= ({"pickle"} if path.name == "workers.py" else set()), path
        assert not re.search(r"\bnp\.(load|fromfile|memmap)\b|allow_pickle", path.read_text()), path
