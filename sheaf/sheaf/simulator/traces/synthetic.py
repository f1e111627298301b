"""A workload for when no trace is given: conversations over common system prompts, after the shape of public chat
traces.

Conversations begin as a Poisson process. Each draws a system prompt (zipf), then takes a geometric number of turns,
with exponential pauses between them; a turn's prompt is all that was said before and a new part. Lengths are
lognormal. Deterministic by seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sheaf.simulator.calls import Call
from sheaf.simulator.traces.shaping import Draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What is generated.

    Attributes:
        seconds: how long conversations begin.
        rate: requests a second, on average over the middle of the time.
        turns: mean turns of a conversation.
        pause_s: mean time between an arrival and the next of its conversation.
        prompts: common system prompts.
        prompt_tokens: length of a system prompt, median.
        turn_tokens: new tokens of a turn, median.
        output_tokens: generated tokens, median.
        spread: sigma of the lognormal lengths.
        longest: a conversation ends before its prompt passes so many tokens.
    """

    seconds: float = 600.0
    rate: float = 10.0
    turns: float = 4.0
    pause_s: float = 30.0
    prompts: int = 20
    prompt_tokens: int = 600
    turn_tokens: int = 300
    output_tokens: int = 150
    spread: float = 0.8
    longest: int = 16_384


def conversations(chat: Chat, seed: int) -> list[Call]:
    """Calls in order of arrival."""
    draw = random.Random(seed)  # noqa: S311 - a simulation's draw
    prompts = Draw([str(index) for index in range(chat.prompts)], 1.0, seed)
    calls: list[Call] = []
    begin, session = 0.0, 0
    while True:
        begin += draw.expovariate(chat.rate / chat.turns)
        if begin >= chat.seconds:
            break
        session += 1
        calls += _conversation(chat, draw, begin, session, int(prompts.of(session)))
    calls.sort(key=lambda call: (call.arrival, call.session))
    return calls


def _conversation(chat: Chat, draw: random.Random, begin: float, session: int, prompt: int) -> list[Call]:
    common = 1 + int(chat.prompt_tokens * (0.5 + (prompt * 7919 % 100) / 100.0))
    segments = [(prompt, common)]
    total, turn = common, 0
    calls: list[Call] = []
    while True:
        turn += 1
        fresh, output = (_length(draw, median, chat.spread) for median in (chat.turn_tokens, chat.output_tokens))
        total += fresh
        if total + output > chat.longest:
            return calls
        segments.append(((session << 16) + 2 * turn + (1 << 20), fresh))
        calls.append(Call(begin, "", tuple(segments), total, output, session=session))
        if draw.random() >= 1.0 - 1.0 / chat.turns:
            return calls
        segments.append(((session << 16) + 2 * turn + 1 + (1 << 20), output))
        total += output
        begin += draw.expovariate(1.0 / chat.pause_s)


def _length(draw: random.Random, median: int, spread: float) -> int:
    return max(1, int(draw.lognormvariate(0.0, spread) * median))
