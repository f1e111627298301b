"""HTTP/1.1 toward clients and engines."""

from sheaf_gateway.proxy.asgi import AsgiBridge
from sheaf_gateway.proxy.errors import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    FirstByteTimeout,
    IdleTimeout,
    ResetBeforeHead,
    ResetMidBody,
    Saturated,
    UpstreamError,
    openai_error_body,
)
from sheaf_gateway.proxy.exchange import Endpoint, Exchange, Sink, Timeouts
from sheaf_gateway.proxy.limits import ServerLimits
from sheaf_gateway.proxy.relay import Relay
from sheaf_gateway.proxy.response import forwardable, request_head
from sheaf_gateway.proxy.server import Server, serve
from sheaf_gateway.proxy.sse import EventTooLarge, SseSplitter, event_data
from sheaf_gateway.proxy.streamed import ResponseStream
from sheaf_gateway.proxy.types import App, ClientGone, ErrorBody, Header, Headers, Request, Responder
from sheaf_gateway.proxy.upstream import Pool, PoolLimits

__all__ = [
    "App",
    "AsgiBridge",
    "BadResponse",
    "ClientGone",
    "ConnectFailed",
    "ConnectTimeout",
    "Endpoint",
    "ErrorBody",
    "EventTooLarge",
    "Exchange",
    "FirstByteTimeout",
    "Header",
    "Headers",
    "IdleTimeout",
    "Pool",
    "PoolLimits",
    "Relay",
    "Request",
    "ResetBeforeHead",
    "ResetMidBody",
    "Responder",
    "ResponseStream",
    "Saturated",
    "Server",
    "ServerLimits",
    "Sink",
    "SseSplitter",
    "Timeouts",
    "UpstreamError",
    "event_data",
    "forwardable",
    "openai_error_body",
    "request_head",
    "serve",
]
