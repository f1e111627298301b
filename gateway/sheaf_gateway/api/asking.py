"""From a request to what deciding reads of it: who asks, for which name, what for."""

import difflib
import itertools

import msgspec

from sheaf_gateway.admission.limits import ScopedRate
from sheaf_gateway.admission.terms import Ask as Door
from sheaf_gateway.admission.terms import Terms
from sheaf_gateway.api.body import Parsed
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.keys import Caller
from sheaf_gateway.api.routes import Route
from sheaf_gateway.fleet.view import Fleet, Served
from sheaf_gateway.proxy.types import Header, Request
from sheaf_gateway.routing import prefix
from sheaf_gateway.routing.router import Ask

_FORWARDED = frozenset(
    {b"accept", b"anthropic-beta", b"anthropic-version", b"traceparent", b"tracestate", b"user-agent", b"x-session-id"}
)
_CONTENT_TYPE: Header = (b"content-type", b"application/json")
_MAX_NAMES_COMPARED = 2_000
_MAX_NAME_SHOWN = 64


class Asked(msgspec.Struct, frozen=True):
    """What is known of a request before anything is decided. `sent_id` is how the engine sees it, `salt` what its
    tenant's caches are kept apart by (empty: not at all); `continues` says that its stream may be continued, `ids` that
    the caller speaks of token ids itself."""

    request: Request
    route: Route
    caller: Caller
    served: Served
    door: Door
    ask: Ask
    sent_id: str
    headers: list[Header]
    salt: str = ""
    continues: bool = False
    ids: bool = False


def resolve(fleet: Fleet, name: str, caller: Caller, route: Route) -> Served:
    """The declared name that is asked for.

    Raises:
        ApiError: 404 with the nearest names, or 400 where the Model does another task.
    """
    served = fleet.served.get(name)
    if served is None or not caller.may_use(name):
        raise unknown(name, fleet, caller)
    if route.task is not None and served.task != route.task:
        message = f"`{name}` has the task {served.task}; {route.path} needs a Model with `task: {route.task}`."
        raise ApiError(400, "model_not_supported", message, param="model")
    return served


def ask(request_id: str, served: Served, fleet: Fleet, parsed: Parsed, salt: str, chains: prefix.Chains) -> Ask:
    """What routing reads: the prefix identity is that of the tenant's salt, the adapter and its present content."""
    start = prefix.seed(served.model, served.adapter, fleet.digest_of(served), salt)
    return Ask(
        request_id=request_id,
        model=served.model,
        adapter=served.adapter,
        digest=served.digest,
        chain=chains.chain(start, parsed.prompt),
        prompt_bytes=len(parsed.prompt),
        exact=parsed.exact,
        prompt=parsed.prompt,
    )


def door(
    sequence: str,
    served: Served,
    caller: Caller,
    fleet: Fleet,
    *,
    slots: int,
    terms: Terms,
    parsed: Parsed,
    prompt: float,
) -> Door:
    """What admission reads: `slots` requests fit in at once, `prompt` tokens may have to be computed.

    A key or a request may make itself Batch, never more than the SLO says.
    """
    promise = served.promise
    return Door(
        request_id=sequence,
        model=served.model,
        availability=fleet.availability(served),
        slots=slots,
        tenant=caller.tenant,
        batch=caller.batch or parsed.flex or not terms.interactive,
        terms=terms,
        scopes=_scopes(served, caller) if caller.name or promise.name else (),
        tokens=parsed.tokens(),
        prompt=prompt,
        max_queue=promise.max_queue,
        max_wait=promise.max_wait,
    )


def _scopes(served: Served, caller: Caller) -> tuple[ScopedRate, ...]:
    promise = served.promise
    key = ((f"key `{caller.name}`", caller.limits),) if caller.name else ()
    tenant = f"tenant `{caller.tenant or 'default'}` by SLO `{promise.name}`"
    return (*key, (tenant, promise.limits)) if promise.name else key


def check_media(request: Request) -> None:
    """Raise `ApiError` 415 for a body that is not plain JSON."""
    kind = request.header(b"content-type")
    if kind is not None and kind != _CONTENT_TYPE[1] and kind.partition(b";")[0].strip().lower() != b"application/json":
        raise ApiError(415, "unsupported_media_type", "Send the body as `Content-Type: application/json`.")
    coding = request.header(b"content-encoding")
    if coding is not None and coding.lower() != b"identity":
        raise ApiError(415, "unsupported_encoding", "Send the body without a Content-Encoding.")


def forwarded(request: Request, sent_id: str) -> list[Header]:
    """The headers that go to an engine: a short list, never a key or a cookie."""
    found = [header for header in request.headers if header[0] in _FORWARDED]
    found.append(_CONTENT_TYPE)
    found.append((b"x-request-id", sent_id.encode("ascii")))
    return found


def unknown(name: str, fleet: Fleet, caller: Caller) -> ApiError:
    """The 404 of a name that is not declared, or not for this caller, with the nearest that are."""
    usable = [served for served in itertools.islice(fleet.served, _MAX_NAMES_COMPARED) if caller.may_use(served)]
    nearest = difflib.get_close_matches(name[:_MAX_NAME_SHOWN], usable, n=3, cutoff=0.5)
    shown = name if len(name) <= _MAX_NAME_SHOWN else name[:_MAX_NAME_SHOWN] + "…"
    hint = f" Did you mean {' or '.join(f'`{found}`' for found in nearest)}?" if nearest else ""
    message = f"The model `{shown}` does not exist.{hint} GET /v1/models lists every name."
    return ApiError(404, "model_not_found", message, param="model")
