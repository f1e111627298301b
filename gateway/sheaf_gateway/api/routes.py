"""The allow-list: what reaches an engine, under which path, and how its body is read. Nothing else does."""

import msgspec

from sheaf_gateway.api import body
from sheaf_gateway.api.body import Decode
from sheaf_gateway.api.errors import Dialect


class Route(msgspec.Struct, frozen=True):
    """One inference endpoint. `task` is what the Model must do for it, None for any; `computes` says that
    the engine runs the model for it, and knows `cache_salt`; `continues` that its streams can be continued; `keeps`
    that the engine may keep the answer, under an id that the gateway gives."""

    path: str
    target: str
    decode: Decode
    task: str | None = "Generate"
    dialect: Dialect = "openai"
    computes: bool = True
    continues: bool = False
    keeps: bool = False


_ROUTES = (
    Route("/v1/chat/completions", "/v1/chat/completions", body.CHAT, continues=True),
    Route("/v1/completions", "/v1/completions", body.COMPLETION, continues=True),
    Route("/v1/responses", "/v1/responses", body.RESPONSES, keeps=True),
    Route("/v1/messages", "/v1/messages", body.MESSAGES, dialect="anthropic"),
    Route("/v1/messages/count_tokens", "/v1/messages/count_tokens", body.PLAIN, dialect="anthropic", computes=False),
    Route("/v1/embeddings", "/v1/embeddings", body.PLAIN, task="Embed"),
    Route("/v1/tokenize", "/tokenize", body.PLAIN, task=None, computes=False),
    Route("/v1/detokenize", "/detokenize", body.PLAIN, task=None, computes=False),
)

ROUTES = {route.path: route for route in _ROUTES}
