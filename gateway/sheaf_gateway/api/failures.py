"""What callers are told of each failure: pure, one place, no inside knowledge of engines in any message."""

from sheaf_gateway.admission.admission import Reject
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.fleet.agents import AgentError
from sheaf_gateway.proxy.errors import ConnectTimeout, FirstByteTimeout, IdleTimeout, Saturated, UpstreamError

GONE = 499

_RETRY_S = 1.0
_LOAD_RETRY_S = 5.0
_MAX_SHOWN = 64
_LABELS = frozenset(
    {
        "adapter_gone",
        "bad_response",
        "connect_failed",
        "connect_timeout",
        "engine_error",
        "first_byte_timeout",
        "idle_timeout",
        "reset_before_head",
        "reset_mid_body",
        "saturated",
    }
)


def retry_label(reason: str) -> str:
    """The reason of a retry as a metric label from a fixed set."""
    if reason in _LABELS:
        return reason
    return "adapter_load" if reason.startswith("load_") else "engine_status"


def rejected(answer: Reject) -> ApiError:
    """Admission said no; `x-sheaf-reason` tells programs why."""
    why = ((b"x-sheaf-reason", answer.reason.encode("ascii")),) if answer.reason else ()
    return ApiError(answer.status, answer.code, answer.message, retry_after=answer.retry_after, headers=why)


def limits_unavailable() -> ApiError:
    """The shared limits cannot be asked, and the configuration says that nobody enters unasked."""
    message = "The rate limits cannot be checked at the moment; try again."
    why = ((b"x-sheaf-reason", b"limits_unavailable"),)
    return ApiError(503, "limits_unavailable", message, retry_after=_RETRY_S, headers=why)


def no_pod(model: str) -> ApiError:
    """There was nothing to choose."""
    return ApiError(503, "no_ready_replica", f"`{model}` has no replica that can answer now.", retry_after=_RETRY_S)


def load_failed(adapter: str, error: AgentError) -> ApiError:
    """An adapter could not be loaded; the agent's own word is in the log, its code for the caller."""
    message = f"The adapter `{adapter}` could not be loaded ({error.code})."
    return ApiError(503, "adapter_unavailable", message, retry_after=_LOAD_RETRY_S)


def adapter_gone(adapter: str) -> ApiError:
    """Every pod that was asked had lost the adapter."""
    message = f"The adapter `{adapter}` is not loaded where it should be."
    return ApiError(503, "adapter_unavailable", message, retry_after=_RETRY_S)


def engine_status(status: int) -> ApiError:
    """Engines answered with a failure of their own."""
    if status == 503:
        return ApiError(503, "engine_overloaded", "The engine is overloaded; try again.", retry_after=_RETRY_S)
    return ApiError(502, "engine_error", f"The engine failed with status {status}; try again.", retry_after=_RETRY_S)


def upstream(error: UpstreamError) -> ApiError:
    """Engines did not answer at all."""
    if isinstance(error, Saturated):
        message = "Every connection to the engine is in use; try again."
        return ApiError(503, "engine_saturated", message, retry_after=_RETRY_S)
    if isinstance(error, ConnectTimeout | FirstByteTimeout | IdleTimeout):
        return ApiError(504, "engine_timeout", "The engine did not answer in time; try again.", retry_after=_RETRY_S)
    return ApiError(502, "engine_unreachable", "The engine could not be reached; try again.", retry_after=_RETRY_S)


def garbage() -> ApiError:
    """Engines answered with something that is no answer."""
    return ApiError(502, "engine_error", "The engine's answer was not readable; try again.", retry_after=_RETRY_S)


def late() -> ApiError:
    """Engines began to answer and did not come to an end."""
    return ApiError(504, "engine_timeout", "The engine did not answer in time; try again.", retry_after=_RETRY_S)


def unreadable(status: int, *, readable: bool) -> ApiError | None:
    """What is wrong with an engine's whole answer of that status, which is a JSON object or is not `readable`."""
    if status < 200 or 300 <= status < 400 or (status < 300 and not readable):
        return garbage()
    return None if readable else ApiError(status, "engine_refused", f"The engine refused the request: {status}.")


def no_response(name: str) -> ApiError:
    """No response of that id is kept for this caller."""
    return ApiError(404, "response_not_found", f"Response with id '{_shown(name)}' not found.", param="response_id")


def no_previous_response(name: str) -> ApiError:
    """The response that a request goes on from is not kept, or not by a pod that takes requests."""
    message = f"Previous response with id '{_shown(name)}' not found."
    return ApiError(404, "previous_response_not_found", message, param="previous_response_id")


def _shown(name: str) -> str:
    return name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "…"


def broken_stream() -> ApiError:
    """The engine was lost within a stream."""
    message = "The engine was lost while it answered; what was sent so far is incomplete. Send the request again."
    return ApiError(502, "stream_interrupted", message)
