"""What the last turns of a caller's session left in the caches of pods: pure, bounded, and only ever a matter of cost.

Callers name a session with `x-session-id`; what is kept is a hash of that name under the prompts' seed, so that the
sessions of two tenants, Models or adapters never meet, and nobody's name is held. A turn remembers the last hash of its
prompt's chain: a later prompt continues it where it has that hash in that place, and one that does not is not credited
with anything. The answer was computed where it was generated and is part of the next prompt, which an index of prompts
cannot know; how far engines really find it again is learnt from what they report (a reasoning model's answer comes back
without its thoughts).
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence

import msgspec
import xxhash

from sheaf_gateway.routing.cost import BYTES_PER_TOKEN
from sheaf_gateway.routing.index import PodKey
from sheaf_gateway.routing.prefix import BLOCK

PODS = 2
MAX_SESSIONS = 32_768
AGE_S = 3_600.0
MAX_KEY = 2**53 - 1
_TELLING = 64
_SLACK = 256
_RATE = 0.2
_BELIEVED = 0.5


def session_key(start: int, name: bytes) -> int:
    """The number of a session that a caller names, for prompts whose chain starts so (see `prefix.seed`); never 0."""
    return xxhash.xxh3_64_intdigest(name, start) & MAX_KEY or 1


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One turn on one pod: `tip` is the last of its prompt's `blocks` hashes, `size` the prompt's bytes, `answer` the
    bytes generated after it, estimated. `at` are seconds; `meter` is what the pod had been given to compute by then, in
    tokens. `prompt` and `output` are tokens as the engine counted them, 0 where it did not.
    """

    pod: PodKey
    tip: int
    blocks: int
    size: int
    answer: int
    at: float
    meter: float
    prompt: int = 0
    output: int = 0

    def begins(self, chain: Sequence[int]) -> bool:
        """Whether a prompt of this chain goes on where this one's whole blocks end."""
        return 0 < self.blocks <= len(chain) and chain[self.blocks - 1] == self.tip

    def left(self, *, answer: bool) -> int:
        """Whole blocks of a next prompt that were computed in this turn; with the `answer` or without."""
        return (self.size + (self.answer if answer else 0)) // BLOCK

    def held(self) -> float:
        """Tokens that it took in the pod's cache."""
        return (self.size + self.answer) / BYTES_PER_TOKEN


class Counted(msgspec.Struct, frozen=True, gc=False):
    """Tokens of a turn: generated, and of its prompt as the engine reported them, None where it did not."""

    output: float = 0.0
    prompt: int | None = None
    cached: int | None = None


def after(pod: PodKey, chain: Sequence[int], size: int, counted: Counted, now: float, meter: float) -> Turn:
    """What is remembered of a turn with a prompt of this chain and so many bytes."""
    answer, output = int(counted.output * BYTES_PER_TOKEN), int(counted.output)
    return Turn(pod, chain[-1], len(chain), size, answer, now, meter, counted.prompt or 0, output)


class Sessions:
    """The last turns of at most `most` sessions, the least recently used first forgotten, none older than `age_s`."""

    def __init__(self, most: int = MAX_SESSIONS, age_s: float = AGE_S) -> None:
        self._most, self._age_s = most, age_s
        self._turns: OrderedDict[int, tuple[Turn, ...]] = OrderedDict()
        self._found: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def of(self, session: int, now: float) -> tuple[Turn, ...]:
        """Its last turns, one a pod, the newest first."""
        turns = self._turns.get(session, ())
        return turns if not turns or turns[0].at >= now - self._age_s else ()

    def pods(self, session: int) -> Iterator[str]:
        """Where they ran."""
        return (turn.pod[0] for turn in self._turns.get(session, ()))

    def put(self, session: int, turn: Turn) -> Turn | None:
        """Remember a turn; the one before on the same pod, if there was one."""
        known = self._turns.pop(session, ())
        self._turns[session] = (turn, *(one for one in known if one.pod != turn.pod))[:PODS]
        while len(self._turns) > self._most or self._oldest() < turn.at - self._age_s:
            self._turns.popitem(last=False)
        return next((one for one in known if one.pod == turn.pod), None)

    def learn(self, model: str, before: Turn | None, chain: Sequence[int], cached: int | None) -> None:
        """A prompt of this chain found so many tokens in the cache of the pod where the turn `before` ran, if any."""
        if before is None or cached is None or before.output < _TELLING or not before.begins(chain):
            return
        if 0 < before.prompt < cached + _SLACK:
            share = min(max((cached - before.prompt) / before.output, 0.0), 1.0)
            found = self._found.get(model, 1.0)
            self._found[model] = found + _RATE * (share - found)

    def believes(self, model: str) -> bool:
        """Whether the answers of a Model's pods are found again in the prompts that quote them."""
        return self._found.get(model, 1.0) >= _BELIEVED

    def keep(self, models: Collection[str]) -> None:
        """Forget what was learnt of other Models."""
        self._found = {model: found for model, found in self._found.items() if model in models}

    def _oldest(self) -> float:
        return next(iter(self._turns.values()))[0].at
