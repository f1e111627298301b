"""Everything that is not the hot path, as a FastAPI application: probes, metrics, listings, decisions,
documentation."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from sheaf_gateway.api import asking, errors, figures, gathering, listing
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.inference import Inference
from sheaf_gateway.api.keys import Caller
from sheaf_gateway.api.metrics import Reading, StateCollector
from sheaf_gateway.routing.ledger import PodLedger

ABOUT = """Many models and thousands of LoRA adapters behind one OpenAI-compatible endpoint.

Inference is at `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/responses`, `/v1/messages` and
`/v1/tokenize`, as the OpenAI and Anthropic clients know it. This page lists the rest."""

_CODES = {404: "not_found", 405: "method_not_allowed"}
_BREAKER = {"Closed": 0.0, "Probing": 1.0, "Open": 2.0}


def management(core: Inference) -> FastAPI:
    """The application over the state that inference shares."""
    app = FastAPI(title="Sheaf", description=ABOUT, version="v1alpha1", redoc_url=None)
    _handle_errors(app)
    _add_probes(app, core)
    _add_models(app, core)
    _add_sheaf(app, core)
    _add_figures(app, core)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return _answer(request, error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "invalid_request")
        message = f"{request.method} {request.url.path[:256]}: {error.detail}."
        allow = tuple((name.encode(), value.encode()) for name, value in (error.headers or {}).items())
        return _answer(request, ApiError(error.status_code, code, message, headers=allow))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        return _answer(request, ApiError(400, "invalid_parameter", f"{param}: {first['msg']}.", param=param))

    @app.exception_handler(Exception)
    async def failed(request: Request, _error: Exception) -> Response:
        return _answer(request, ApiError(500, "internal_error", "The gateway failed to answer this request."))


def _answer(request: Request, error: ApiError) -> Response:
    request_id = request.headers.get("x-request-id", "")
    sane = request_id if request_id.isascii() and request_id.isprintable() else ""
    found = {name.decode(): value.decode() for name, value in errors.headers(error, sane)}
    return Response(errors.body(error, "openai", sane), error.status, found)


def _add_probes(app: FastAPI, core: Inference) -> None:
    collector = StateCollector(lambda: readings(core))
    core.metrics.registry.register(collector)

    @app.get("/healthz", tags=["probes"])
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["probes"])
    async def readyz() -> Response:
        """The gateway knows a fleet, and all of its workers have begun."""
        known = core.store.known
        status = "ready" if core.whole else "waiting for other workers"
        body = {"status": status if known else "waiting for the first fleet snapshot"}
        return JSONResponse(body, 200 if known and core.whole else 503)

    @app.get("/metrics", tags=["probes"])
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(await gathering.metrics(core), media_type=gathering.CONTENT_TYPE)


def _add_models(app: FastAPI, core: Inference) -> None:
    def caller(request: Request) -> Caller:
        return _scoped(core, request, "inference")

    @app.get("/v1/models", tags=["models"])
    async def models(who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """Every declared Model and Adapter, also at zero replicas."""
        return listing.model_list(core.store.fleet, who)

    @app.get("/v1/models/{name}", tags=["models"])
    async def model(name: str, who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """One declared Model or Adapter."""
        fleet = core.store.fleet
        served = fleet.served.get(name)
        if served is None or not who.may_use(name):
            raise asking.unknown(name, fleet, who)
        return listing.model_card(fleet, served)


def _add_sheaf(app: FastAPI, core: Inference) -> None:
    def admin(request: Request) -> Caller:
        return _scoped(core, request, "admin")

    @app.get("/sheaf/v1/objects/{kind}", tags=["sheaf"], dependencies=[Depends(admin)])
    async def objects(kind: str) -> dict[str, Any]:
        """Declared objects (models, adapters, slos, autoscalingpolicies) or pods with what is really so in them."""
        if kind not in listing.OBJECTS:
            raise ApiError(404, "not_found", f"There is no kind `{kind[:64]}`; there are {', '.join(listing.OBJECTS)}.")
        if core.store.snapshot is None:
            raise ApiError(503, "not_ready", "The gateway has no fleet snapshot yet.", retry_after=1.0)
        return listing.objects(kind, core.store.snapshot, core.store.fleet, core.router)

    @app.get("/sheaf/v1/decisions/{request_id}", tags=["sheaf"], dependencies=[Depends(admin)])
    async def decision(request_id: Annotated[str, Path(max_length=128)]) -> Response:
        """Why a recent request went where it went: every candidate's cost, term by term, in milliseconds."""
        record = await gathering.decision(core, request_id)
        if record is None:
            message = f"No decision of `{request_id}` is held; only the last ones are kept."
            raise ApiError(404, "decision_not_found", message)
        return Response(record, media_type="application/json")


def _add_figures(app: FastAPI, core: Inference) -> None:
    def admin(request: Request) -> None:
        if not core.shared_token.shown(request.headers.get("authorization")):
            _scoped(core, request, "admin")

    @app.get("/sheaf/v1/demand", tags=["sheaf"], dependencies=[Depends(admin)])
    async def demand() -> dict[str, Any]:
        """What is asked of each Model now: running, waiting, held for a first pod, and how fast requests come."""
        return await gathering.demand(core)

    @app.get("/sheaf/v1/slos", tags=["sheaf"], dependencies=[Depends(admin)])
    async def slos() -> dict[str, Any]:
        """How each SLO was kept over windows: percentiles, goodput, error-budget burn, as `status.windows` has it."""
        return await gathering.slos(core)


def _own(ledgers: Mapping[str, PodLedger]) -> list[tuple[tuple[str, ...], float]]:
    return [((name,), found.running - found.told) for name, found in ledgers.items()]


def _scoped(core: Inference, request: Request, scope: str) -> Caller:
    def header(name: bytes) -> bytes | None:
        value = request.headers.get(name.decode())
        return None if value is None else value.encode("latin-1")

    caller = core.keys.caller(header)
    caller.require("admin" if scope == "admin" else "inference")
    return caller


def readings(core: Inference) -> Iterable[Reading]:
    """The gauges: by declared Model and by pod of the fleet."""
    fleet, router, admission = core.store.fleet, core.router, core.admission
    models = sorted({served.model for served in fleet.served.values()})
    pods = [pod.name for found in fleet.pods.values() for pod in found]
    ledgers = {name: router.ledgers[name] for name in pods if name in router.ledgers}
    yield "in_flight", "Requests admitted", ("model",), [((m,), admission.running(m)) for m in models]
    yield "queued", "Requests that wait", ("model",), [((m,), admission.waiting(m)) for m in models]
    yield (
        "ready_pods",
        "Pods that take requests",
        ("model",),
        [((m,), sum(pod.ready and not pod.draining for pod in fleet.pods_of(m))) for m in models],
    )
    yield "pod_in_flight", "Attempts on a pod", ("pod",), _own(ledgers)
    yield (
        "breaker_state",
        "Circuit breaker of a pod: 0 closed, 1 probing, 2 open",
        ("pod",),
        [((name,), _BREAKER[found.breaker.phase]) for name, found in ledgers.items()],
    )
    yield from figures.readings(core, models)
    yield "pods_held", "Pods kept from requests while they are warmed", (), [((), len(core.store.held))]
    yield "prefix_blocks", "Blocks in the prefix index", (), [((), len(router.index))]
    yield "sessions", "Sessions of callers that are remembered", (), [((), len(router.sessions))]
    yield "decision_records", "Decision records held", (), [((), len(core.records))]
