"""The load itself: probe after probe within the bounds, then the fit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from sheaf_engine.timing import TimingProfile
from sheaf_engine.timing.fitting import Decoding, FirstToken, Fit, fit, load_seconds

from sheaf.profiling.engine import Card, Engine, ProfilingError
from sheaf.profiling.plan import OUTPUT, SHORTEST, Probe, Stream, decoding, first_token, probes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a load may take: requests in all, seconds in all, requests at once, and tokens of its longest prompt."""

    requests: int
    seconds: float
    concurrency: int
    longest: int


@dataclass(slots=True)
class Measured:
    """What was seen. `alone` has the first tokens of each adapter's requests that were alone, in seconds."""

    card: Card
    first: list[FirstToken] = field(default_factory=list)
    decoding: list[Decoding] = field(default_factory=list)
    alone: dict[str, list[float]] = field(default_factory=dict)
    requests: int = 0
    seconds: float = 0.0
    page: str = ""


async def measure(
    url: str, key: str | None, model: str | None, adapters: Sequence[str], rank: int, bounds: Bounds
) -> Measured:
    """Ask an engine until every probe had its turns or a bound is reached, whichever comes first.

    Raises:
        ProfilingError: where it cannot be asked.
        NotStreamedError: where answers do not come token by token.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    engine = Engine(url, key)
    found: Measured | None = None
    async with aclosing(engine.client):
        try:
            async with asyncio.timeout_at(begin + bounds.seconds):
                found = Measured(await engine.card(model))
                found.page = await engine.page()
                await engine.learn_words(found.card.name)
                await _load(engine, found, adapters, rank, bounds)
        except TimeoutError as error:
            if found is None:
                raise ProfilingError(f"{url} did not answer within {bounds.seconds:g} s") from error
    found.seconds = loop.time() - begin
    return found


async def _load(engine: Engine, found: Measured, adapters: Sequence[str], rank: int, bounds: Bounds) -> None:
    room = found.card.max_model_len or bounds.longest + OUTPUT
    longest = max(SHORTEST, min(bounds.longest, int(0.9 * room) - OUTPUT))
    for probe in probes(found.card.name, adapters, longest, bounds.concurrency):
        if found.requests + len(probe.models) > bounds.requests:
            return
        found.requests += len(probe.models)
        streams = await _together(engine, probe)
        _note(found, probe, streams, rank)


async def _together(engine: Engine, probe: Probe) -> list[Stream]:
    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(engine.ask(model, probe.tokens)) for model in probe.models]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [one.result() for one in asked]


def _note(found: Measured, probe: Probe, streams: Sequence[Stream], rank: int) -> None:
    if probe.models == (found.card.name,):
        found.first.append(first_token(streams[0]))
    elif len(probe.models) == 1:
        found.alone.setdefault(probe.models[0], []).append(first_token(streams[0]).seconds)
    steps = decoding(streams, probe.models, found.card.name, rank)
    if steps is not None:
        found.decoding.append(steps)


def profile(measured: Measured, base: TimingProfile) -> tuple[TimingProfile, Fit]:
    """The profile that follows; what could not be measured is as in `base`.

    Raises:
        UnfitError: where none follows.
        ValueError: where `base` and the engine do not go together.
    """
    found = fit(measured.first, measured.decoding, base.max_num_batched_tokens)
    values = {
        "step_overhead_s": found.step_overhead_s,
        "prefill_token_s": found.prefill_token_s,
        "prefill_attention_s": found.prefill_attention_s,
        "decode_sequence_s": found.decode_sequence_s,
        "kv_token_s": found.kv_token_s,
        **_adapter_values(measured, found),
    }
    rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
    return base.with_changes(name=measured.card.name, **rounded, **_capacity(measured)), found


def _adapter_values(measured: Measured, found: Fit) -> dict[str, float]:
    if not any(one.adapters for one in measured.decoding):
        return {}
    values = {"lora_adapter_s": found.lora_adapter_s, "lora_rank_token_s": found.lora_rank_token_s}
    seconds = load_seconds([(first, second) for first, second, *_ in measured.alone.values()], found.first_error)
    if seconds is not None:
        values |= {"adapter_load_s": seconds, "adapter_load_byte_s": 0.0, "adapter_activate_byte_s": 0.0}
    return values


def _capacity(measured: Measured) -> dict[str, int]:
    """What the engine says of itself."""
    found = {"block_size": _label(measured.page, "block_size"), "num_blocks": _label(measured.page, "num_gpu_blocks")}
    sizes = {name: value for name, value in found.items() if value} if all(found.values()) else {}
    longest = measured.card.max_model_len
    return {**sizes, **({"max_model_len": longest} if longest else {})}


def _label(page: str, name: str) -> int:
    found = re.search(rf'^vllm:cache_config_info\{{[^}}]*\b{name}="(\d{{1,9}})"', page, re.MULTILINE)
    return int(found[1]) if found else 0
