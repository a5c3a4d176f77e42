"""Client of the served model over V1, V2 or gRPC."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import aiohttp
import orjson

from inferenceservice.gateway import DIRECT, Gateway
from placement.outputs import Output, predictions
from training.cells import LIST

Candidate = Mapping[str, Any]

#: REST address of `make run`.
DEFAULT_REST_URL = "http://127.0.0.1:8080"
#: Seconds for one request.
TIMEOUT_S = 60
#: Attempts for a request that the service cannot accept now.
MAX_ATTEMPTS = 10

#: gRPC metadata of the error about an unknown model: names of those that are served, separated by commas.
MODELS_HEADER = "x-models"
#: Header and gRPC metadata of a model's metadata: a JSON array of the fields that are lists.
LIST_FIELDS_HEADER = "x-list-fields"

_URL = re.compile(r"https?://[^/\s]+(/\S*)?")
_ADDRESS = re.compile(r"[^/\s]+:\d+")
_Read = TypeVar("_Read")


class ClientError(Exception):
    """A request that got no predictions; the message says why."""


class Refused(ClientError):
    """A request that the service rejected; the message is that of the service."""


class InvalidInput(Refused):
    """A request with invalid candidates."""


class Busy(Refused):
    """A request that the service cannot accept now; retry it later.

    Attributes
    ----------
    after_s
        Seconds to wait before the retry.
    """

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class UnknownModel(Refused):
    """A model that the service does not have.

    Attributes
    ----------
    models
        Names of those that it has.
    """

    def __init__(self, message: str, models: Sequence[str]) -> None:
        super().__init__(message)
        self.models = models


@dataclass(frozen=True, slots=True)
class Answer:
    """Predictions for one request, a dict of outputs for each candidate, and the version of the model."""

    predictions: list[dict[str, Any]]
    version: str


class Client(Protocol):
    """Interface of the clients of all protocols."""

    async def fields(self) -> dict[str, str]:
        """Return the V2 datatype of each raw field, from the model's metadata, or `LIST`."""

    async def predict(self, candidates: Sequence[Candidate]) -> Answer:
        """Send one request, and return its predictions.

        Raises
        ------
        ClientError
            If the service rejects the request or does not answer.
        """

    async def close(self) -> None:
        """Close the connections."""


async def until_accepted(send: Callable[[], Awaitable[Answer]]) -> Answer:
    """Send a request; send it again after the time that a busy service asks for, up to `MAX_ATTEMPTS` times.

    Raises
    ------
    ClientError
        If the service rejects the request or does not answer.
    """
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return await send()
        except Busy as busy:
            await asyncio.sleep(busy.after_s)
    return await send()


class RestClient:
    """Client for V1 or V2 over REST; without a model, for the only one of the service."""

    def __init__(self, url: str, model: str | None, protocol: str, gateway: Gateway) -> None:
        self._base = url.rstrip("/")
        self._model = model
        self._v2 = protocol == "v2"
        self._datatypes: dict[str, str] = {}
        self._session = gateway.session(TIMEOUT_S)
        self._server_hostname = gateway.server_hostname

    async def fields(self) -> dict[str, str]:
        """See `Client`."""
        self._datatypes = await self._request(
            "GET",
            f"/v2/models/{await self._name()}",
            lambda content, headers: _fields(
                {tensor["name"]: tensor["datatype"] for tensor in content["inputs"]},
                headers.get(LIST_FIELDS_HEADER),
            ),
        )
        return self._datatypes

    async def outputs(self) -> dict[str, str]:
        """Return the V2 datatype of each output, from the model's metadata; the first is the answer."""
        return await self._request(
            "GET",
            f"/v2/models/{await self._name()}",
            lambda content, _: {tensor["name"]: tensor["datatype"] for tensor in content["outputs"]},
        )

    async def predict(self, candidates: Sequence[Candidate]) -> Answer:
        """See `Client`."""
        if self._v2:
            if not self._datatypes:
                await self.fields()
            body: dict[str, Any] = {"inputs": tensors(candidates, self._datatypes)}
            path = f"/v2/models/{await self._name()}/infer"
            return await self._request("POST", path, _v2_answer, to_json(body))
        return await self._v1("predict", "predictions", candidates)

    async def status(self) -> list[dict[str, Any]]:
        """Return name, readiness and versions of each model."""
        return [
            {
                "name": name,
                "ready": await self._ready(name),
                "versions": await self._request(
                    "GET", f"/v2/models/{name}", lambda content, _: list(content["versions"])
                ),
            }
            for name in await self._names()
        ]

    async def explain(self, candidates: Sequence[Candidate]) -> Answer:
        """Send one request over V1, and return an explanation for each candidate, with the prediction.

        Raises
        ------
        ClientError
            If the service rejects the request or does not answer.
        """
        return await self._v1("explain", "explanations", candidates)

    async def _v1(self, verb: str, key: str, candidates: Sequence[Candidate]) -> Answer:
        def read(content: Any, headers: Mapping[str, str]) -> Answer:  # noqa: ANN401 (JSON)
            return Answer(content[key], headers["x-model-version"])

        path = f"/v1/models/{await self._name()}:{verb}"
        return await self._request("POST", path, read, to_json({"instances": list(candidates)}))

    async def close(self) -> None:
        """See `Client`."""
        await self._session.close()

    async def _name(self) -> str:
        """Return the name of the model."""
        if self._model is None:
            self._model = _only_model(await self._names(), self._base)
        return self._model

    async def _names(self) -> list[str]:
        """Return the names of the models."""
        return await self._request("GET", "/v1/models", lambda content, _: list(content["models"]))

    async def _ready(self, name: str) -> bool:
        try:
            return await self._request("GET", f"/v2/models/{name}/ready", lambda content, _: content["ready"])
        except Busy:
            return False

    async def _request(
        self,
        method: str,
        path: str,
        read: Callable[[Any, Mapping[str, str]], _Read],
        body: bytes | None = None,
    ) -> _Read:
        """Send a request, and return what `read` returns for the content and headers of the response."""
        headers = {"content-type": "application/json"} if body else {}
        try:
            async with self._session.request(
                method,
                self._base + path,
                data=body,
                headers=headers,
                server_hostname=self._server_hostname,
            ) as answer:
                content = await answer.json(content_type=None, loads=orjson.loads)
                if answer.status != 200:
                    message = str(content["error"])
                    if answer.status == HTTPStatus.BAD_REQUEST:
                        raise InvalidInput(message)
                    raise _refused(message, answer.headers.get("retry-after"))
                return read(content, answer.headers)
        except aiohttp.ClientConnectorCertificateError as error:
            raise ClientError(
                f"{self._base}: the certificate is not trusted: {error.certificate_error}; set --ca-file, or "
                "--header Host:NAME if it is that of another name"
            ) from error
        except aiohttp.ClientConnectorSSLError as error:
            raise ClientError(
                f"{self._base}: cannot connect over TLS; if it has no TLS, write http://"
            ) from error
        except (TimeoutError, aiohttp.ClientConnectionError) as error:
            raise ClientError(
                f"{self._base} does not answer; start it with `make run`, start `kubectl port-forward` "
                "again, or set --url"
            ) from error
        except (aiohttp.ClientError, KeyError, TypeError, ValueError) as error:
            # The content is left out of the message: it may be long.
            raise ClientError(
                f"the response of {self._base}{path} is not that of a placement service; set --url to its "
                "REST port (or add --protocol grpc for its gRPC port)"
            ) from error


def _only_model(names: Sequence[str], address: str) -> str:
    if len(names) != 1:
        raise ClientError(f"{address} has the models {', '.join(names)}; choose one with --model")
    return names[0]


def _refused(message: str, retry_after: str | bytes | None) -> Refused:
    return Refused(message) if retry_after is None else Busy(message, float(retry_after))


def _v2_answer(content: Any, headers: Mapping[str, str]) -> Answer:  # noqa: ANN401 (JSON)
    outputs = [
        Output(tensor["name"], tensor["data"], tensor.get("parameters", {}).get("classes"))
        for tensor in content["outputs"]
    ]
    return Answer(predictions(outputs), headers["x-model-version"])


class GrpcClient:
    """Client for V2 over gRPC; without a model, for the only one of the service."""

    def __init__(self, address: str, model: str | None, gateway: Gateway) -> None:
        import grpc

        from placement.v2_grpc import services

        self._address = address
        self._model = model
        options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
        if gateway.host is not None and gateway.server_hostname is not None:
            options += [
                ("grpc.default_authority", gateway.host),
                ("grpc.ssl_target_name_override", gateway.server_hostname),
            ]
        certificates = gateway.root_certificates()
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if certificates is None
            else grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(certificates), options)
        )
        self._metadata = gateway.metadata
        self._stub = services.GRPCInferenceServiceStub(self._channel)

    async def fields(self) -> dict[str, str]:
        """See `Client`."""
        from placement.v2_grpc import messages as pb

        request = pb.ModelMetadataRequest(name=await self._name())
        model, metadata = await self._request(self._stub.ModelMetadata, request)
        datatypes = {tensor.name: tensor.datatype for tensor in model.inputs}
        return _fields(datatypes, metadata.get(LIST_FIELDS_HEADER))

    async def predict(self, candidates: Sequence[Candidate]) -> Answer:
        """See `Client`."""
        from placement.v2_grpc import messages as pb

        request = pb.ModelInferRequest(model_name=await self._name())
        tensor = request.inputs.add(name="candidates", datatype="BYTES", shape=[len(candidates)])
        tensor.contents.bytes_contents.extend(to_json(candidate) for candidate in candidates)
        answer, _ = await self._request(self._stub.ModelInfer, request)
        outputs = [
            Output(
                output.name,
                _values(output.contents),
                output.parameters["classes"].string_param if "classes" in output.parameters else None,
            )
            for output in answer.outputs
        ]
        return Answer(predictions(outputs), answer.model_version)

    async def close(self) -> None:
        """See `Client`."""
        await self._channel.close()

    async def _name(self) -> str:
        """Return the name of the model. The protocol has no list, but an unknown model's error has one."""
        if self._model is None:
            from placement.v2_grpc import messages as pb

            try:
                await self._request(self._stub.ModelMetadata, pb.ModelMetadataRequest())
            except UnknownModel as error:
                self._model = _only_model(error.models, self._address)
            else:
                raise ClientError(f"{self._address} does not name its model; name it with --model")
        return self._model

    async def _request(
        self,
        method: Any,  # noqa: ANN401 (gRPC has no types)
        request: Any,  # noqa: ANN401
    ) -> tuple[Any, dict[str, Any]]:
        """Return the response to a request, and its trailing metadata."""
        import grpc

        try:
            call = method(request, timeout=TIMEOUT_S, metadata=self._metadata)
            return await call, dict(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
                raise ClientError(f"{self._address} does not answer over gRPC; set --url") from error
            metadata = dict(error.trailing_metadata())
            if MODELS_HEADER in metadata:
                raise UnknownModel(error.details(), metadata[MODELS_HEADER].split(", ")) from error
            raise _refused(error.details() or "", metadata.get("retry-after")) from error


def connect(url: str, model: str | None, protocol: str, gateway: Gateway = DIRECT) -> Client:
    """Return a client for ``v1``, ``v2`` or ``grpc``. It connects with its first request.

    Over gRPC, the gateway's certificates turn on TLS.

    Raises
    ------
    ClientError, GatewayError
        If the URL does not fit the protocol, or the certificates cannot be used.
    """
    if protocol != "grpc":
        return connect_rest(url, model, protocol, gateway)
    if not _ADDRESS.fullmatch(url):
        raise ClientError(f"--url {url}: must be host:port for gRPC, for example 127.0.0.1:8081")
    return GrpcClient(url, model, gateway)


def connect_rest(url: str, model: str | None, protocol: str = "v1", gateway: Gateway = DIRECT) -> RestClient:
    """Return a client for ``v1`` or ``v2``. It connects with its first request.

    Raises
    ------
    ClientError
        If the URL is not one of REST.
    """
    if not _URL.fullmatch(url):
        raise ClientError(
            f"--url {url}: must start with http:// or https://, for example http://127.0.0.1:8080"
        )
    return RestClient(url, model, protocol, gateway)


def tensors(candidates: Sequence[Candidate], datatypes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return an input tensor for each field that at least one candidate has."""
    return [
        {
            "name": name,
            "datatype": "BYTES" if datatype == LIST else datatype,
            "shape": [len(candidates)],
            "data": [_element(candidate.get(name), datatype) for candidate in candidates],
        }
        for name, datatype in datatypes.items()
        if any(candidate.get(name) is not None for candidate in candidates)
    ]


def _element(value: object, datatype: str) -> object:
    """Return a value as an element of its tensor."""
    return to_json(value).decode() if datatype == LIST and value is not None else value


def _fields(datatypes: dict[str, str], lists: str | None) -> dict[str, str]:
    """Return the datatypes with `LIST` for the fields that the header names."""
    return datatypes | dict.fromkeys(orjson.loads(lists or "[]"), LIST)


def _values(contents: Any) -> list[Any]:  # noqa: ANN401 (gRPC has no types)
    """Return the values in gRPC's typed contents, of whichever type."""
    for _, values in contents.ListFields():
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    return []


def to_json(value: object) -> bytes:
    """Encode a request as JSON.

    Raises
    ------
    ClientError
        If a candidate cannot be encoded, for example because its values are nested hundreds deep.
    """
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise ClientError(f"a candidate cannot be sent as JSON: {error}") from error
