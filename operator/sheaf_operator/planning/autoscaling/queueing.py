"""What share of requests keeps a promise on so many replicas: the timing model in closed form.

One replica with arrival rate l works through l*(P + o*d) seconds of prompts and decoding sequences in a second (P: the
computing time of a prompt, o: tokens of output, d: the part of a decode step that one sequence causes). What is left of
each second goes into the fixed part of steps, so a token comes every (step_s + d) / (1 - l*(P + o*d)) seconds: TPOT,
and by Little's law the sequences that decode. A request waits twice: for the prompts before it, and for a place among
the sequences (as many as the engine runs at once, or its KV cache holds). Both are queues M/G/n with the chance to wait
of Halfin and Whitt (1981), the correction of Lee and Longton (1959) for the spread of lengths and an exponential tail;
n counts all replicas, which behind a router that knows their queues are nearly one queue. Where sequences share a KV
cache, long ones hold more of it: places and load are divided by the peakedness of what is held (the approximation of
Hayward: Fredericks 1980). Lengths of prompts are lognormal, those of outputs exponential.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from sheaf_operator.planning.autoscaling.facts import Bounds, Promise, Speed, Work

MOST = 10_000
LEAST_RATE = 1e-6
FULL = 0.95
EASY = 0.8
UNREACHABLE_MARGIN = 0.005

_NODES = 25
_ROOMY = 8.0
_NORMAL = tuple(NormalDist().inv_cdf((node + 0.5) / _NODES) for node in range(_NODES))
_EXPONENTIAL = tuple(-math.log(1.0 - (node + 0.5) / _NODES) for node in range(_NODES))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What so many replicas do under a load.

    Attributes:
        busy: share of the tightest resource in use (time, sequences or KV cache); 1 and more: the queue grows.
        tpot_s: mean time for each further token.
        running: requests under way on each replica.
        prefill_s: mean time from the start of a prompt's computing to its first token.
    """

    busy: float
    tpot_s: float = math.inf
    running: float = math.inf
    prefill_s: float = math.inf

    @property
    def service_s(self) -> Callable[[float], float]:
        """Mean seconds from admission to the end, by tokens of output."""
        return lambda output: self.prefill_s + output * self.tpot_s


@dataclass(frozen=True, slots=True)
class Queue:
    """The chance to wait, and the mean wait of those who do."""

    chance: float
    wait_s: float

    def later(self, seconds: float) -> float:
        """Share of requests that wait longer."""
        return self.chance * math.exp(-seconds / self.wait_s) if self.wait_s > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """What lies between arrival and first token: two queues, the step under way, and what each prompt length takes."""

    prompts: Queue
    places: Queue
    begin_s: float
    lengths: tuple[float, ...]

    def within(self, seconds: float) -> float:
        """Share of requests whose first token comes within so many seconds."""
        left = (seconds - self.begin_s - length for length in self.lengths)
        return sum(self._kept(rest) for rest in left) / len(self.lengths)

    def _kept(self, rest: float) -> float:
        if rest < 0.0:
            return 0.0
        return max(0.0, 1.0 - self.prompts.later(rest) - self.places.later(rest))


def forecast(speed: Speed, work: Work, rate: float, replicas: int) -> Forecast:
    """Means under `rate` requests a second, evenly over the replicas."""
    return _state(speed, work, rate, replicas)[0]


def attained(speed: Speed, work: Work, promise: Promise, rate: float, replicas: int) -> float:
    """How far every promise is kept: the least of (share within a bound) - (share promised); below 0: one is broken."""
    found, line = _state(speed, work, rate, replicas)
    if line is None or found.busy >= FULL:
        return -1.0
    return min(
        _least(promise.ttft, line.within),
        _least(promise.tpot, lambda bound: _steady(speed, work, rate, bound, replicas)),
        _least(promise.e2e, lambda bound: _whole(line, work.output * found.tpot_s, bound)),
    )


def needed(speed: Speed, work: Work, promise: Promise | None, rate: float, most: int = MOST) -> int:
    """The smallest number of replicas that keeps the promise; without one, that is at most EASY busy.

    A promise that no number keeps (a prompt that takes longer alone) is kept as far as it can be. At most `most`.
    """
    return 0 if rate < LEAST_RATE else _smallest(keeper(speed, work, promise, rate), most)


def keeper(speed: Speed, work: Work, promise: Promise | None, rate: float) -> Callable[[int], bool]:
    """Whether so many replicas keep the promise at a rate, as `needed` means it."""
    if promise is None or promise.empty:
        return lambda count: forecast(speed, work, rate, count).busy <= EASY
    best = min(0.0, attained(speed, work, promise, LEAST_RATE, 1) - UNREACHABLE_MARGIN)
    return lambda count: attained(speed, work, promise, rate, count) >= best


def _smallest(enough: Callable[[int], bool], most: int) -> int:
    """The smallest number that is enough, by doubling and halving; `most` where none is."""
    high = 1
    while high < most and not enough(high):
        high = min(most, 2 * high)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _token_s(speed: Speed, work: Work) -> float:
    """Seconds that one decoding sequence adds to a step."""
    return speed.sequence_s + speed.context_s * _context(work)


def _prompt_s(speed: Speed, work: Work, uncached: float) -> float:
    """Seconds to compute so many prompt tokens, steps' fixed part left out."""
    cached = max(0.0, work.prompt - work.uncached)
    return uncached * (speed.token_s + speed.pair_s * (cached + uncached / 2.0))


def _state(speed: Speed, work: Work, rate: float, replicas: int) -> tuple[Forecast, Line | None]:
    own, token = rate / replicas, _token_s(speed, work)
    load = own * (_prompt_s(speed, work, work.uncached) + work.output * token)
    if load >= 1.0:
        return Forecast(load), None
    tpot = (speed.step_s + token) / (1.0 - load)
    decoding = own * work.output * tpot
    step, chunk = _step(speed, work, decoding)
    mean, spread = _occupation(speed, work, step / chunk)
    line = _line(speed, work, rate, replicas, (step, chunk, decoding, mean, spread))
    busy = max(load, decoding / _places(speed, work), own * mean)
    waits = sum(queue.chance * queue.wait_s for queue in (line.prompts, line.places)) if busy < 1.0 else 0.0
    first = sum(line.lengths) / _NODES + line.begin_s + waits
    return Forecast(busy, tpot, decoding + own * first, first), line


def _occupation(speed: Speed, work: Work, step_token_s: float) -> tuple[float, float]:
    """What a prompt keeps from the others, with its share of the steps that others' prompts fill with it: the mean, and
    the second moment by the mean's square. It is a*u + b*u^2 seconds for u tokens."""
    cached = max(0.0, work.prompt - work.uncached)
    a, b = step_token_s + speed.token_s + speed.pair_s * cached, speed.pair_s / 2.0
    first, second, third, fourth = _moments(work)
    mean = a * first + b * second
    return mean, (a * a * second + 2.0 * a * b * third + b * b * fourth) / (mean * mean)


def _places(speed: Speed, work: Work) -> float:
    """Sequences that one replica runs at once."""
    return max(1.0, min(speed.sequences, speed.kv_tokens / _context(work)))


def _context(work: Work) -> float:
    """Tokens that a sequence which decodes has in the KV cache; exponential answers are always half way."""
    return work.context or work.prompt + work.output


def _peakedness(speed: Speed, work: Work) -> float:
    """By how much the use of places varies more than if all were alike: 1 where the engine counts sequences, more where
    they share a KV cache and take more and less of it."""
    context = _context(work)
    if speed.kv_tokens >= speed.sequences * context:
        return 1.0
    usual = (work.spread * work.uncached**2 + work.output**2) / (context * context)
    return 1.0 + (work.context_spread if work.context else usual)


def _line(
    speed: Speed, work: Work, rate: float, replicas: int, means: tuple[float, float, float, float, float]
) -> Line:
    step, chunk, decoding, mean, spread = means
    prompts = _queue(replicas, rate * mean, mean, spread)
    answer = decoding * replicas / rate
    peaked = _peakedness(speed, work)
    places = _queue(replicas * _places(speed, work) / peaked, rate * answer / peaked, answer, 1.0 + 1.0)
    lengths = tuple(math.ceil(size / chunk) * step + _prompt_s(speed, work, size) for size in _sizes(work))
    return Line(prompts, places, min(1.0, decoding) * step / 2.0, lengths)


def _queue(servers: float, load: float, mean: float, square: float) -> Queue:
    """The queue M/G/n: `load` in servers, `mean` of the service, `square` its second moment by the mean's square."""
    use = min(FULL, load / servers)
    room = (1.0 - use) * math.sqrt(servers)
    chance = 1.0 / (1.0 + room * _below(room) / _density(room)) if use > 0.0 and room < _ROOMY else 0.0
    return Queue(chance, mean * square / (2.0 * servers * (1.0 - use)))


def _step(speed: Speed, work: Work, decoding: float) -> tuple[float, float]:
    """Seconds that a step takes without prompts, and the prompt tokens that fit into it."""
    fixed = speed.step_s + decoding * _token_s(speed, work)
    return fixed, max(1.0, speed.batch_tokens - decoding)


@lru_cache(maxsize=256)
def _sizes(work: Work) -> tuple[float, ...]:
    """Lengths of prompts, equally likely, with the mean of `uncached` and its spread."""
    sigma = math.sqrt(math.log1p(max(0.0, work.spread)))
    raw = [math.exp(sigma * node) for node in _NORMAL]
    return tuple(max(1.0, work.uncached) * size * _NODES / sum(raw) for size in raw)


@lru_cache(maxsize=256)
def _moments(work: Work) -> tuple[float, ...]:
    """The first four moments of the lengths."""
    return tuple(sum(size**power for size in _sizes(work)) / _NODES for power in (1, 2, 3, 4))


def _least(bounds: Bounds, share: Callable[[float], float]) -> float:
    return min((share(seconds) - quantile for quantile, seconds in bounds), default=math.inf)


def _steady(speed: Speed, work: Work, rate: float, bound: float, replicas: int) -> float:
    """Share of requests whose tokens come within `bound` of each other: the load as it is during one answer."""
    token = _token_s(speed, work)
    each = _prompt_s(speed, work, work.uncached) + work.output * token
    load, limit = rate * each / replicas, 1.0 - (speed.step_s + token) / bound
    asked = max(1.0, rate * work.output * bound)
    deviation = load * math.sqrt((1.0 + work.spread) / asked)
    return _below((limit - load) / max(deviation, 1e-9))


def _whole(line: Line, answer_s: float, bound: float) -> float:
    """Share of requests that end within `bound`, answers taking `answer_s` on average."""
    return sum(line.within(bound - answer_s * node) for node in _EXPONENTIAL) / _NODES


def _below(value: float) -> float:
    """Share of a standard normal below the value."""
    return 0.5 * (1.0 + math.erf(value / math.sqrt(2.0)))


def _density(value: float) -> float:
    return math.exp(-value * value / 2.0) / math.sqrt(2.0 * math.pi)
