"""The installed uvicorn has every internal that the client connection relies on, and no other is used."""

import ast
import asyncio
import inspect
from importlib.metadata import version

import uvicorn
from uvicorn.server import ServerState

from tests.support.paths import ROOT
from transformer.server.uvicorn_internals import (
    CONFIG,
    CYCLE,
    FLOW,
    PROTOCOL,
    SERVER,
    STATUS_LINE,
    FlowControl,
    HttpToolsProtocol,
    RequestResponseCycle,
)

SERVER_PACKAGE = ROOT / "transformer" / "server"
_MOVED = (
    f"uvicorn {version('uvicorn')} has no {{owner}}.{{name}}, which transformer/server relies on ({{why}}): "
    "see what replaces it, and change client_connection.py and uvicorn_internals.py"
)


async def _app(scope, receive, send) -> None:
    pass


async def _protocol() -> HttpToolsProtocol:
    config = uvicorn.Config(_app, log_config=None, lifespan="off")
    return HttpToolsProtocol(config, ServerState(), {}, asyncio.get_running_loop())


async def test_the_protocol_has_what_we_rely_on():
    protocol = await _protocol()
    protocol.on_message_begin()
    for name, why in PROTOCOL.items():
        assert hasattr(protocol, name), _MOVED.format(owner="HttpToolsProtocol", name=name, why=why)
    assert list(inspect.signature(protocol._start_asgi_task).parameters) == ["cycle", "app"]


async def test_the_server_and_its_configuration_have_what_we_rely_on():
    config = uvicorn.Config(_app, log_config=None)
    server = uvicorn.Server(config)
    for owner, listed in ((server, SERVER), (config, CONFIG)):
        for name, why in listed.items():
            assert hasattr(owner, name), _MOVED.format(owner=type(owner).__name__, name=name, why=why)


async def test_a_cycle_and_its_flow_control_have_what_we_rely_on():
    protocol = await _protocol()
    made: list[RequestResponseCycle] = []
    protocol._start_asgi_task = lambda cycle, app: made.append(cycle)  # type: ignore[method-assign]
    protocol.connection_made(_Transport())
    protocol.data_received(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\n\r\n")
    for name, why in CYCLE.items():
        assert hasattr(made[0], name), _MOVED.format(owner="RequestResponseCycle", name=name, why=why)
    for name, why in FLOW.items():
        assert hasattr(protocol.flow, name), _MOVED.format(owner="FlowControl", name=name, why=why)
    assert isinstance(protocol.flow, FlowControl)
    # The first request is being answered; the others wait, the newest at the left.
    assert [cycle.scope["path"] for cycle, _ in protocol.pipeline] == ["/3", "/2"]
    assert protocol.cycle.scope["path"] == "/3"
    assert STATUS_LINE[408].startswith(b"HTTP/1.1 408 ")


class _Transport(asyncio.Transport):
    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def test_no_other_internal_is_used():
    """Checks attributes of `self` that our class does not define, of a cycle and of the flow control."""
    (connection,) = _classes("client_connection.py", "ClientConnection")
    own = _defined(connection)
    used = {node.attr for node in _attributes(connection) if _is_attribute_of(node, "self")}
    assert used - own <= set(PROTOCOL), "list these in uvicorn_internals.PROTOCOL"
    names = ("cycle", "_answering")
    of_cycles = {
        node.attr
        for node in ast.walk(connection)
        if isinstance(node, ast.Attribute)
        and (_is_attribute_of(node, "cycle") or any(_is_self(node.value, name) for name in names))
    }
    assert of_cycles <= set(CYCLE), "list these in uvicorn_internals.CYCLE"
    of_flow = {
        node.attr
        for node in ast.walk(connection)
        if isinstance(node, ast.Attribute) and _is_self(node.value, "flow")
    }
    assert of_flow <= set(FLOW), "list these in uvicorn_internals.FLOW"


def test_no_other_internal_of_the_server_and_its_configuration_is_used():
    used: dict[str, set[str]] = {"_server": set(), "config": set()}
    for file in ("rest.py", "kserve_server.py", "workers.py"):
        for node in ast.walk(ast.parse((SERVER_PACKAGE / file).read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                used.setdefault(node.value.attr, set()).add(node.attr)
    assert used["_server"] <= set(SERVER), "list these in uvicorn_internals.SERVER"
    assert used["config"] <= set(CONFIG), "list these in uvicorn_internals.CONFIG"


def _classes(file: str, name: str) -> list[ast.ClassDef]:
    tree = ast.parse((SERVER_PACKAGE / file).read_text())
    return [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]


def _attributes(of: ast.ClassDef) -> list[ast.Attribute]:
    return [node for node in ast.walk(of) if isinstance(node, ast.Attribute)]


def _defined(of: ast.ClassDef) -> set[str]:
    """Return a class's methods and attributes without those that it extends."""
    methods = {node.name for node in of.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assigned = {
        node.attr
        for node in _attributes(of)
        if _is_attribute_of(node, "self") and isinstance(node.ctx, ast.Store)
    }
    return (methods | assigned) - set(PROTOCOL)


def _is_attribute_of(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name


def _is_self(node: ast.expr, attribute: str) -> bool:
    return _is_attribute_of(node, "self") and isinstance(node, ast.Attribute) and node.attr == attribute
