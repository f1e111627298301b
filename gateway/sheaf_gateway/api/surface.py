"""The whole surface as one proxy application: inference by the allow-list, all else to management."""

from collections.abc import Awaitable

from sheaf_gateway.api import errors, stored
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.api.inference import Inference
from sheaf_gateway.api.routes import ROUTES
from sheaf_gateway.proxy.types import App, Request, Responder


class Surface:
    """A `proxy.types.App`."""

    def __init__(self, inference: Inference, management: App) -> None:
        self._inference = inference
        self._management = management

    def __call__(self, request: Request, responder: Responder) -> Awaitable[None] | None:
        """Answer one request."""
        route = ROUTES.get(request.path)
        if route is None and request.path.startswith(stored.PREFIX):
            stored.serve(self._inference, request, responder)
            return None
        if route is None:
            return self._management(request, responder)
        if request.method != "POST":
            message = f"{route.path} takes POST only."
            error = ApiError(405, "method_not_allowed", message, headers=((b"allow", b"POST"),))
            request_id = self._inference.ids.take(request.header(b"x-request-id"))
            headers = errors.headers(error, request_id)
            responder.reply(405, headers, errors.body(error, route.dialect, request_id))
            return None
        self._inference.serve(route, request, responder)
        return None


def refusal_body(status: int, message: str, code: str) -> bytes:
    """The body of what the HTTP layer refuses by itself."""
    return errors.body(ApiError(status, code, message), "openai")
