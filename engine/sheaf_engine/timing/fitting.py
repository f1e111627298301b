"""Coefficients of the timing model from what a client measured on an engine that serves nobody else.

Two linear models, fitted in turn (docs/timing-model.md has the formula of a step):

    decode step  = step_overhead + sequences x decode_sequence + context x kv_token + adapters x lora_adapter
                   + ranks x lora_rank_token
    first token  = request + steps x step_overhead + tokens x prefill_token + pairs x prefill_attention

`request` is what a request costs besides: HTTP, tokenizing, a gateway. Delays only ever add, and sometimes much, so
least squares would believe them. Each model is fitted to relative errors by least absolute deviations (iteratively
re-weighted), and from there by Tukey's biweight, which leaves outliers out (Holland and Welsch, Robust regression using
iteratively reweighted least-squares, 1977). No coefficient is negative: of the few subsets of coefficients that can be
above zero the best one that is, is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from operator import mul
from statistics import median

Row = tuple[float, ...]

FEWEST_FIRST, FEWEST_LENGTHS = 6, 3
FEWEST_DECODING, FEWEST_BATCHES = 6, 2
WORST_ERROR = 0.3
_DOUBT = 3.0
_ROUNDS = 20
_LEAST_RESIDUAL, _LEAST_SPREAD = 1e-4, 1e-9
_CONSISTENT, _TUKEY = 1.4826, 4.685
_LEAST_PIVOT = 1e-10


class UnfitError(ValueError):
    """Measurements from which no profile follows; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token of a request that an idle engine got alone.

    Attributes:
        tokens: prompt tokens that were computed.
        cached: prompt tokens before them that were in the cache.
        seconds: from sending the request to its first token.
    """

    tokens: int
    cached: int
    seconds: float

    @property
    def pairs(self) -> float:
        """(token computed, token that it attends to)."""
        return self.tokens * self.cached + self.tokens * (self.tokens + 1) / 2.0


@dataclass(frozen=True, slots=True)
class Decoding:
    """Steps of one batch that does nothing but decode.

    Attributes:
        sequences: how many decode.
        context: tokens of context that they read in a step, all together.
        seconds: of one step.
        adapters: distinct adapters among them.
        ranks: sum of their adapters' ranks.
    """

    sequences: int
    context: float
    seconds: float
    adapters: int = 0
    ranks: int = 0


@dataclass(frozen=True, slots=True)
class Fit:
    """What was found. Coefficients are those of :class:`TimingProfile`, in seconds.

    Attributes:
        request_s: what a request costs besides the engine's steps.
        decode_error: median error of a decode step, relative.
        first_error: median error of a first token, relative.
    """

    step_overhead_s: float
    decode_sequence_s: float
    kv_token_s: float
    lora_adapter_s: float
    lora_rank_token_s: float
    prefill_token_s: float
    prefill_attention_s: float
    request_s: float
    decode_error: float
    first_error: float


def fit(first: Sequence[FirstToken], decoding: Sequence[Decoding], batch_tokens: int) -> Fit:
    """The coefficients under which the engine would have answered as it did.

    Args:
        first: first tokens on the idle engine, over several prompt lengths.
        decoding: decode steps, over several batch sizes and contexts.
        batch_tokens: tokens that the engine computes in one step (`max_num_batched_tokens`).

    Raises:
        UnfitError: where they are too few, too much alike, or follow no such model.
    """
    _require_variety(first, decoding)
    steps = regress([_decode_row(one) for one in decoding], [one.seconds for one in decoding])
    overhead, sequence, context, adapter, rank = steps
    if overhead <= 0:
        raise UnfitError("a decode step seems to cost nothing; answers are not streamed token by token")
    rest = [one.seconds - _steps(one, batch_tokens) * overhead for one in first]
    scales = [one.seconds for one in first]
    request, token, pair = regress([(1.0, float(one.tokens), one.pairs) for one in first], rest, scales)
    if token <= 0 and pair <= 0:
        raise UnfitError("longer prompts take no longer; another answers, or a cache does: ask the engine itself")
    found = Fit(overhead, sequence, context, adapter, rank, token, pair, request, decode_error=0.0, first_error=0.0)
    found = replace(
        found,
        decode_error=_error([(_told(steps, _decode_row(one)), one.seconds) for one in decoding]),
        first_error=_error([(first_seconds(one, found, batch_tokens), one.seconds) for one in first]),
    )
    _require_sense(found)
    return found


def load_seconds(answers: Sequence[tuple[float, float]], error: float) -> float | None:
    """What loading an adapter took: how much later the first answer of each came than the next.

    Args:
        answers: seconds to the first token of the first and of the second request for each adapter, alone.
        error: what a first token is off by, relative (`Fit.first_error`).

    Returns:
        The median, or None where it is no more than such times differ anyway: the adapters were there already.
    """
    late = median(first - second for first, second in answers)
    return late if late > _DOUBT * error * median(second for _, second in answers) else None


def first_seconds(one: FirstToken, found: Fit, batch_tokens: int) -> float:
    """When the first token of such a request should be out."""
    steps = found.request_s + _steps(one, batch_tokens) * found.step_overhead_s
    return steps + one.tokens * found.prefill_token_s + one.pairs * found.prefill_attention_s


def regress(rows: Sequence[Row], values: Sequence[float], scales: Sequence[float] | None = None) -> Row:
    """Non-negative coefficients of a robust linear fit, one for each column; 0 for a column of zeros.

    Args:
        rows: what each value depends on.
        values: what was measured.
        scales: what errors are relative to, above zero; None: to the values.

    Raises:
        UnfitError: where the columns cannot be told apart.
    """
    sizes = [max(abs(row[place]) for row in rows) for place in range(len(rows[0]))]
    columns = [place for place, size in enumerate(sizes) if size > 0]
    by = [1.0 / scale for scale in (values if scales is None else scales)]
    scaled = [[row[place] / sizes[place] * share for place in columns] for row, share in zip(rows, by, strict=True)]
    found = _robust(scaled, [value * share for value, share in zip(values, by, strict=True)])
    by_place = {place: value / sizes[place] for place, value in zip(columns, found, strict=True)}
    return tuple(by_place.get(place, 0.0) for place in range(len(sizes)))


def _robust(rows: Sequence[Sequence[float]], values: Sequence[float]) -> Row:
    weights = [1.0] * len(rows)
    if _solve(_Sums(rows, values, weights), tuple(range(len(rows[0])))) is None:
        raise UnfitError("the measurements are too much alike to tell what costs what; measure for longer")
    for _ in range(_ROUNDS):
        residuals = _residuals(rows, values, _non_negative(_Sums(rows, values, weights)))
        weights = [1.0 / max(abs(one), _LEAST_RESIDUAL) for one in residuals]
    bound = _TUKEY * max(_CONSISTENT * median(map(abs, residuals)), _LEAST_SPREAD)
    for _ in range(_ROUNDS):
        weights = [_biweight(one, bound) for one in residuals]
        residuals = _residuals(rows, values, _non_negative(_Sums(rows, values, weights)))
    return _non_negative(_Sums(rows, values, weights))


def _residuals(rows: Sequence[Sequence[float]], values: Sequence[float], found: Row) -> list[float]:
    return [value - _told(found, row) for row, value in zip(rows, values, strict=True)]


def _biweight(residual: float, bound: float) -> float:
    share = residual / bound
    return (1.0 - share * share) ** 2 if abs(share) < 1.0 else 0.0


class _Sums:
    """Weighted sums of products: columns by columns (`matrix`), and columns by values (`vector`)."""

    def __init__(self, rows: Sequence[Sequence[float]], values: Sequence[float], weights: Sequence[float]) -> None:
        columns = list(zip(*rows, strict=True))
        weighted = [list(map(mul, column, weights)) for column in columns]
        self.matrix = [[sum(map(mul, one, other)) for other in columns] for one in weighted]
        self.vector = [sum(map(mul, one, values)) for one in weighted]


def _non_negative(sums: _Sums) -> Row:
    """The best weighted fit of all whose coefficients are not negative: what explains most is left with least."""
    width = len(sums.vector)
    best, most = (0.0,) * width, 0.0
    for subset in chain.from_iterable(combinations(range(width), size) for size in range(1, width + 1)):
        found = _solve(sums, subset)
        if found is not None and min(found) >= 0 and (explained := _told(found, sums.vector)) > most:
            best, most = found, explained
    return best


def _solve(sums: _Sums, subset: tuple[int, ...]) -> Row | None:
    """Weighted least squares over some columns, 0 for the others; None where they depend on each other."""
    matrix = [[*(sums.matrix[one][other] for other in subset), sums.vector[one]] for one in subset]
    if not _eliminate(matrix):
        return None
    found = {place: matrix[index][-1] for index, place in enumerate(subset)}
    return tuple(found.get(place, 0.0) for place in range(len(sums.vector)))


def _eliminate(matrix: list[list[float]]) -> bool:
    """Gauss and Jordan, with pivots by rows; False where there is none."""
    largest = max(abs(value) for line in matrix for value in line[:-1])
    for place in range(len(matrix)):
        pivot = max(range(place, len(matrix)), key=lambda index: abs(matrix[index][place]))
        if abs(matrix[pivot][place]) <= largest * _LEAST_PIVOT:
            return False
        matrix[place], matrix[pivot] = matrix[pivot], matrix[place]
        line = matrix[place] = [value / matrix[place][place] for value in matrix[place]]
        for index in _others(place, len(matrix)):
            share = matrix[index][place]
            matrix[index] = [value - share * own for value, own in zip(matrix[index], line, strict=True)]
    return True


def _others(place: int, count: int) -> Iterator[int]:
    return (index for index in range(count) if index != place)


def _require_variety(first: Sequence[FirstToken], decoding: Sequence[Decoding]) -> None:
    _require(len(first), FEWEST_FIRST, "first tokens")
    _require(len({one.tokens for one in first}), FEWEST_LENGTHS, "prompt lengths")
    _require(len(decoding), FEWEST_DECODING, "batches that decode")
    _require(len({one.sequences for one in decoding}), FEWEST_BATCHES, "batch sizes")
    if min([one.seconds for one in first] + [one.seconds for one in decoding]) <= 0:
        raise UnfitError("something took no time at all; answers are not streamed token by token")


def _require(count: int, least: int, what: str) -> None:
    if count < least:
        raise UnfitError(f"too few measurements: {count} {what}, {least} are needed; measure for longer")


def _require_sense(found: Fit) -> None:
    error = max(found.decode_error, found.first_error)
    if error > WORST_ERROR:
        raise UnfitError(
            f"the timing model misses half of the measurements by {error:.0%} and more; let nobody else ask the engine"
        )


def _decode_row(one: Decoding) -> Row:
    return 1.0, float(one.sequences), one.context, float(one.adapters), float(one.ranks)


def _steps(one: FirstToken, batch_tokens: int) -> int:
    return -(-one.tokens // batch_tokens)


def _told(found: Row, row: Sequence[float]) -> float:
    return sum(each * value for each, value in zip(found, row, strict=True))


def _error(pairs: Sequence[tuple[float, float]]) -> float:
    return median(abs(told / seen - 1.0) for told, seen in pairs)
