"""From a request to what deciding reads of it: who asks, for which name, what for.

Comparing names letter by letter is dear, and anybody may ask for any name: of many names only those are compared that
begin most like the one asked for, and some that end like it.
"""

import difflib
import itertools
from bisect import bisect
from collections.abc import Sequence

import msgspec

from sheaf_gateway.admission.limits import ScopedRate
from sheaf_gateway.admission.terms import Ask as Door
from sheaf_gateway.admission.terms import Terms
from sheaf_gateway.api import failures, response_ids
from sheaf_gateway.api.body import Parsed
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.keys import Caller, KeyRing
from sheaf_gateway.api.promises import TermsBook
from sheaf_gateway.api.routes import Route
from sheaf_gateway.api.salting import Salts
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.view import Availability, Fleet, Pod, Served
from sheaf_gateway.proxy.response import request_lines
from sheaf_gateway.proxy.types import Header, Request
from sheaf_gateway.routing import prefix
from sheaf_gateway.routing.router import Ask
from sheaf_gateway.routing.sessions import session_key

_FORWARDED = frozenset(
    {b"accept", b"anthropic-beta", b"anthropic-version", b"traceparent", b"tracestate", b"user-agent", b"x-session-id"}
)
_CONTENT_TYPE: Header = (b"content-type", b"application/json")
_MAX_NAMES_COMPARED = 32
_TAIL = 4
_MAX_NAME_SHOWN = 64
_MAX_SESSION = 1_024


class Head(msgspec.Struct):
    """What a request's head tells of it, as long as these keys are in force: who asks, the header lines that go to an
    engine, the id that the caller gave, the session that it names. `seat` is where its last request went, which may be
    that of the next."""

    keys: KeyRing
    caller: Caller
    lines: bytes
    given: bytes | None
    session: bytes = b""
    seat: "Seat | None" = None


class Seat(msgspec.Struct, frozen=True):
    """What is the same for every request of a caller for a name in one `turn` of the fleet. `start` is the seed of its
    prompts' chain (see `routing.prefix`)."""

    turn: int
    route: Route
    served: Served
    terms: Terms
    availability: Availability
    scopes: tuple[ScopedRate, ...]
    salt: str
    start: int
    batch: bool


class Previous(msgspec.Struct, frozen=True):
    """The response that a request goes on from, and the pod that keeps it: no other can answer."""

    response_id: str
    pod: str


class Asked(msgspec.Struct, frozen=True):
    """What is known of a request before anything is decided. `sent_id` is how the engine sees it, `lines` the headers
    that it gets, `salt` what its tenant's caches are kept apart by (empty: not at all); `continues` says that its
    stream may be continued, `ids` that the caller speaks of token ids itself; `previous` that one pod alone will do."""

    request: Request
    route: Route
    caller: Caller
    served: Served
    door: Door
    ask: Ask
    sent_id: str
    lines: bytes
    salt: str = ""
    continues: bool = False
    ids: bool = False
    previous: Previous | None = None

    def pods(self, fleet: Fleet) -> Sequence[Pod]:
        """The pods that may answer."""
        pods = fleet.pods_of(self.ask.model)
        if self.previous is None:
            return pods
        return [pod for pod in pods if pod.name == self.previous.pod and not pod.draining]


def head_of(request: Request, keys: KeyRing) -> Head:
    """What the head of a request tells.

    Raises:
        ApiError: 401 or 403 for who may not ask, 415 for a body that is not plain JSON.
    """
    caller = keys.caller(request.header)
    caller.require("inference")
    check_media(request)
    session = request.header(b"x-session-id") or b""
    found = Head(keys, caller, forwarded(request), request.header(b"x-request-id"), session[:_MAX_SESSION])
    request.known.value = found
    return found


def seat(name: str, route: Route, caller: Caller, store: FleetStore, terms: TermsBook, salts: Salts) -> Seat:
    """What is the same for every request of this caller for this name.

    Raises:
        ApiError: See `resolve`.
    """
    fleet = store.fleet
    served = resolve(fleet, name, caller, route)
    salt = salts.of(caller.tenant) if route.computes else ""
    found = terms.of(served.model)
    return Seat(
        store.turn,
        route,
        served,
        found,
        fleet.availability(served),
        _scopes(served, caller) if caller.name or served.promise.name else (),
        salt,
        prefix.seed(served.model, served.adapter, fleet.digest_of(served), salt),
        caller.batch or not found.interactive,
    )


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


def ask(request_id: str, seat: Seat, parsed: Parsed, chains: prefix.Chains, session: bytes = b"") -> Ask:
    """What routing reads: the prefix identity is that of the tenant's salt, the adapter and its present content.

    The prompt itself is kept only where its bytes are compared, and the session's name only as a hash of that identity.
    """
    served, prompt = seat.served, parsed.prompt
    chain, kept = chains.chain(seat.start, prompt), prompt if parsed.exact else b""
    size, exact, streams = len(prompt), parsed.exact, parsed.streams
    named = session_key(seat.start, session) if session else 0
    return Ask(request_id, served.model, served.adapter, served.digest, chain, size, exact, kept, streams, named)


def previous(response_id: str, seat: Seat, salt: str, fleet: Fleet) -> Previous:
    """The response that a request of this caller goes on from.

    Raises:
        ApiError: 404 where no pod that takes requests keeps it for this tenant.
    """
    pod = response_ids.holder(response_id, salt, fleet.pods_of(seat.served.model))
    if pod is None or pod.draining:
        raise failures.no_previous_response(response_id)
    return Previous(response_id, pod.name)


def door(sequence: str, seat: Seat, tenant: str, parsed: Parsed, slots: int) -> Door:
    """What admission reads: `slots` requests fit in at once.

    A key or a request may make itself Batch, never more than the SLO says.
    """
    served, computed = seat.served, parsed.prompt_tokens()
    promise = served.promise
    return Door(
        sequence,
        served.model,
        seat.availability,
        slots,
        tenant,
        seat.batch or parsed.flex,
        seat.terms,
        seat.scopes,
        computed + parsed.max_tokens,
        computed if seat.route.computes else 0.0,
        promise.max_queue,
        promise.max_wait,
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


def forwarded(request: Request) -> bytes:
    """The headers that go to an engine as lines: a short list, never a key or a cookie."""
    return request_lines([*(header for header in request.headers if header[0] in _FORWARDED), _CONTENT_TYPE])


def unknown(name: str, fleet: Fleet, caller: Caller) -> ApiError:
    """The 404 of a name that is not declared, or not for this caller, with the nearest that are."""
    nearest = difflib.get_close_matches(name[:_MAX_NAME_SHOWN], _alike(name, fleet, caller), n=3, cutoff=0.5)
    shown = name if len(name) <= _MAX_NAME_SHOWN else name[:_MAX_NAME_SHOWN] + "…"
    hint = f" Did you mean {' or '.join(f'`{found}`' for found in nearest)}?" if nearest else ""
    message = f"The model `{shown}` does not exist.{hint} GET /v1/models lists every name."
    return ApiError(404, "model_not_found", message, param="model")


def _alike(name: str, fleet: Fleet, caller: Caller) -> list[str]:
    """The caller's names that are worth comparing with this one; those of a fleet are sorted."""
    allowed = caller.models
    names = list(fleet.served) if allowed is None else sorted(each for each in allowed if each in fleet.served)
    if len(names) <= _MAX_NAMES_COMPARED:
        return names
    quarter = _MAX_NAMES_COMPARED // 4
    place = bisect(names, name)
    near = names[max(0, place - quarter) : place + quarter]
    tail = name[-_TAIL:]
    ending = itertools.islice((each for each in names if each.endswith(tail)), 2 * quarter)
    return list(dict.fromkeys((*near, *ending)))
