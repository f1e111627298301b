"""What admission reads of a request and of its Model's SLO. Times are seconds, sizes tokens."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from sheaf_gateway.admission.limits import ScopedRate
from sheaf_gateway.fleet.view import Availability

Policy = Literal["None", "VTC", "DLPM"]

_NO_WEIGHTS: Mapping[str, int] = MappingProxyType({})


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the SLO of a Model asks of the door.

    `ttft` is the promised time to first token that requests are ordered by, `ttft_limit` the longest promised one,
    beyond which a request is refused early; None: nothing is promised. `weights` are the shares of tenants, those
    not named weigh 1. `wakes` says that something will start pods for the Model while requests are held for it.
    """

    policy: Policy = "None"
    weights: Mapping[str, int] = _NO_WEIGHTS
    ttft: float | None = None
    ttft_limit: float | None = None
    interactive: bool = True
    wakes: bool = False


PLAIN = Terms()


class Work(msgspec.Struct, frozen=True):
    """What a request is expected to take: prompt tokens found in a cache and not, seconds to its first token.

    Requests of one `kin` (0: none) begin alike: when one of them is served, more of the others is cached.
    """

    uncached: float = 0.0
    cached: float = 0.0
    prefill_s: float = 0.0
    kin: int = 0


class Ask(msgspec.Struct, frozen=True):
    """A request at the door.

    `tokens` is an estimate of all it may use (what limits are charged), `prompt` of its prompt alone (what fairness
    is charged until routing knows better); `slots` is how many requests the Model's pods take at once.
    """

    request_id: str
    model: str
    availability: Availability
    slots: int
    tenant: str = ""
    batch: bool = False
    terms: Terms = PLAIN
    scopes: tuple[ScopedRate, ...] = ()
    tokens: float = 0.0
    prompt: float = 0.0
    max_queue: int = 1024
    max_wait: float = 30.0


Measure = Callable[[], Work]
