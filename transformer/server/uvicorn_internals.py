"""The internals of uvicorn 0.54 that the server relies on, and what for.

A test compares these lists with the installed uvicorn and with the code, so that a new uvicorn fails with the
name that moved.
"""

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

__all__ = [
    "CONFIG",
    "CYCLE",
    "FLOW",
    "PROTOCOL",
    "SERVER",
    "STATUS_LINE",
    "FlowControl",
    "HttpToolsProtocol",
    "RequestResponseCycle",
]

#: Attributes and methods of `HttpToolsProtocol`.
PROTOCOL = {
    "connection_made": "extended; sets transport, flow and parser",
    "connection_lost": "extended; marks the cycle that was read last as disconnected",
    "on_message_begin": "extended; resets url, headers and scope",
    "on_headers_complete": "extended; makes a cycle, and starts or queues it",
    "on_body": "extended; appends to the cycle's body, and pauses reading at a high-water mark",
    "on_message_complete": "extended; ends the cycle's body",
    "on_response_complete": "overridden; starts the next cycle of the pipeline, or the keep-alive timer",
    "shutdown": "extended; closes an idle connection, or makes the cycle's response the last one",
    "_start_asgi_task": "extended; (cycle, app) starts to answer a request",
    "_should_upgrade": "overridden; True hands the connection to a websocket protocol",
    "_unset_keepalive_if_required": "cancels the keep-alive timer",
    "timeout_keep_alive_handler": "overridden; closes an idle connection",
    "timeout_keep_alive_task": "the keep-alive timer; None while it is not running",
    "timeout_keep_alive": "seconds of the keep-alive timer",
    "connections": "all open connections of the server, a set",
    "cycle": "the request that was read last; None before the first",
    "pipeline": "(cycle, app) of requests that wait for their turn, the newest at the left",
    "flow": "the flow control of the connection",
    "headers": "headers of the request that is being read, names in lower case",
    "loop": "the event loop",
    "parser": "the httptools parser, which calls the on_… methods, and knows method and version",
    "scope": "ASGI scope of the request that is being read",
    "server_state": "has default_headers for every response, and total_requests",
    "transport": "the transport that responses are written to",
    "url": "target of the request that is being read",
}
#: Attributes of `RequestResponseCycle`.
CYCLE = {
    "disconnected": "set: receive() gives http.disconnect, and nothing more is written",
    "keep_alive": "set to False: the connection closes after this response",
    "message_event": "set: wakes receive()",
    "response_complete": "True once the response is written",
    "response_started": "True once the response's head is written",
    "waiting_for_100_continue": "True until the client is told to send the body",
}
#: Attributes and methods of `FlowControl`.
FLOW = {
    "read_paused": "True while nothing is read",
    "write_paused": "True while the client does not read",
    "resume_reading": "overridden; reads on",
}
#: Attributes and methods of `uvicorn.Server`, used by `rest`.
SERVER = {
    "should_exit": "True while the server is shutting down",
    "server_state": "has all open connections of the server",
    "handle_exit": "(sig, frame) begins a shutdown; a second SIGINT ends it at once",
    "capture_signals": "replaced: the process handles signals for REST and gRPC together",
    "serve": "serves on given sockets",
}
#: Attributes and methods of `uvicorn.Config`, used by `rest` and `workers`.
CONFIG = {
    "app": "set to the ASGI application",
    "host": "set to the address to listen on",
    "http": "set to the factory of client connections",
    "ws": "set to none: no websockets",
    "proxy_headers": "set to False: no middleware for the addresses of clients behind a proxy",
    "workers": "number of worker processes",
    "get_loop_factory": "returns the factory of event loops",
}
