"""The agent's HTTP API (types: sheaf_crds.agent_api). Every answer is JSON; every error is `{"error": {"code",
"message"}}`.

The token is compared in constant time before a body is read. Bodies are bounded in bytes and in time. No name or
source of a caller is used as a path: names are looked up in the catalog, sources come with the catalog.
"""

import asyncio
import hmac
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TypeVar

import structlog
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from sheaf_crds.agent_api import Catalog, Drain
from starlette.exceptions import HTTPException

from sheaf_engine.agent.config import first_error
from sheaf_engine.agent.errors import CallError
from sheaf_engine.agent.metadata import Metadata
from sheaf_engine.agent.supervisor import Supervisor

LARGEST_CATALOG = 64 * 2**20
LARGEST_SMALL = 64 * 2**10
BODY_TIMEOUT = 30.0
LONGEST_WAIT = 60.0
M = TypeVar("M", bound=BaseModel)
log = structlog.get_logger()


def create_app(
    supervisor: Supervisor, token: bytes, load_timeout: float, drain_key: bytes, metadata: Metadata | None = None
) -> FastAPI:
    """The application; its lifespan runs the supervisor and reads the metadata service. `drain_key` is good for
    draining only."""
    parts = [supervisor.run] if metadata is None else [supervisor.run, metadata.run]
    app = FastAPI(title="Sheaf agent", lifespan=_lifespan(parts), openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(CallError, _refused(supervisor))
    app.add_exception_handler(HTTPException, _refused(supervisor))
    app.add_exception_handler(RequestValidationError, _refused(supervisor))
    app.add_exception_handler(Exception, _broken)
    _add_open_routes(app, supervisor)
    _add_routes(app, supervisor, Depends(_authorised(token)), load_timeout)
    _add_drain(app, supervisor, Depends(_authorised(token, drain_key)))
    return app


def _lifespan(
    parts: Iterable[Callable[[], Coroutine[None, None, None]]],
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(run()) for run in parts]
        yield
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    return lifespan


def _authorised(*keys: bytes) -> Callable[[Request], Awaitable[None]]:
    expected = [b"Bearer " + key for key in keys]

    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not any(hmac.compare_digest(given, one) for one in expected):
            raise CallError(401, "unauthorized", "this call needs `Authorization: Bearer TOKEN` with the pod's token")

    return check


def _add_open_routes(app: FastAPI, supervisor: Supervisor) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        return _json(b'{"status":"ok"}')

    @app.get("/readyz")
    async def readyz() -> Response:
        why = supervisor.ready()
        return _json(b'{"status":"ok"}') if not why else _error(CallError(503, "not_ready", why))

    @app.get("/metrics")
    async def metrics() -> Response:
        content = supervisor.metrics.text(supervisor.board.state)
        return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_routes(app: FastAPI, supervisor: Supervisor, guard: object, load_timeout: float) -> None:
    guards = [guard]

    @app.put("/v1/catalog", dependencies=guards)  # type: ignore[arg-type]
    async def catalog(request: Request) -> Response:
        return _model(supervisor.take(await _body(request, Catalog, LARGEST_CATALOG)))

    @app.post("/v1/adapters/{name}/load", dependencies=guards)  # type: ignore[arg-type]
    async def load(name: str) -> Response:
        return _model(await supervisor.load(name, load_timeout))

    @app.get("/v1/state", dependencies=guards)  # type: ignore[arg-type]
    async def state(
        after: int | None = Query(default=None, ge=0), wait: float = Query(default=0.0, ge=0, allow_inf_nan=False)
    ) -> Response:
        if after is None:
            return _model(supervisor.board.state)
        return _model(await supervisor.board.newer(after, min(wait, LONGEST_WAIT)))

    @app.get("/v1/vocabulary", dependencies=guards)  # type: ignore[arg-type]
    async def vocabulary() -> Response:
        if not supervisor.vocabulary:
            raise CallError(404, "no_vocabulary", "the model's tokens are not known in bytes; the agent's log says why")
        return _json(supervisor.vocabulary)


def _add_drain(app: FastAPI, supervisor: Supervisor, guard: object) -> None:
    @app.post("/v1/drain", dependencies=[guard])  # type: ignore[list-item]
    async def drain(request: Request) -> Response:
        return _model(supervisor.drain(await _body(request, Drain, LARGEST_SMALL)))


async def _body(request: Request, kind: type[M], limit: int) -> M:
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limit:
                    raise CallError(413, "too_large", f"the body is larger than {limit} bytes")
    except TimeoutError as error:
        raise CallError(408, "too_slow", f"the body did not arrive within {BODY_TIMEOUT:g} s") from error
    try:
        return kind.model_validate_json(bytes(content))
    except ValidationError as error:
        raise CallError(400, "invalid_body", first_error(error)[:1000]) from error


def _refused(supervisor: Supervisor) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, error: Exception) -> Response:
        call = _as_call_error(error)
        supervisor.metrics.refused.labels(str(call.status)).inc()
        return _error(call)

    return answer


def _as_call_error(error: Exception) -> CallError:
    if isinstance(error, CallError):
        return error
    if isinstance(error, HTTPException):
        return CallError(error.status_code, "not_found" if error.status_code == 404 else "not_possible", error.detail)
    return CallError(400, "invalid_query", "`after` is a version (a whole number), `wait` is a number of seconds")


def _broken(_: Request, error: Exception) -> Response:
    log.error("a call failed unexpectedly", error=repr(error))
    return _error(CallError(500, "internal", "the agent failed to answer; its log says more"))


def _error(error: CallError) -> Response:
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    content = _ErrorBody(error=_ErrorDetail(code=error.code, message=error.message)).model_dump_json().encode()
    return Response(content, status_code=error.status, media_type="application/json", headers=headers)


class _ErrorDetail(BaseModel):
    code: str
    message: str


class _ErrorBody(BaseModel):
    error: _ErrorDetail


def _model(value: BaseModel) -> Response:
    return _json(value.model_dump_json(by_alias=True).encode())


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
