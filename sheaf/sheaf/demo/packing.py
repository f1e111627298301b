"""Dialogues packed into one sequence for training: what all prompts begin with stands there once.

A place belongs to turn 0, the shared beginning, or to the dialogue of its number, and attends to earlier places of
turn 0 and of its own turn. Positions count on from the shared beginning in every dialogue, as if it stood alone. So
each dialogue gets the same hidden states as in a batch of its own, for fewer tokens and no padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Tokens = Sequence[int]


@dataclass(frozen=True)
class Packed:
    """Token, position and turn of every place, and the places of the answers' tokens."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    turns: tuple[int, ...]
    answers: tuple[int, ...]


def pack(dialogues: Sequence[tuple[Tokens, Tokens]]) -> Packed:
    """Pack (prompt, answer) pairs; every prompt has at least one token."""
    shared = shared_length([prompt for prompt, _ in dialogues])
    tokens, positions, turns = list(dialogues[0][0][:shared]), list(range(shared)), [0] * shared
    answers: list[int] = []
    for turn, (prompt, answer) in enumerate(dialogues, 1):
        rest = [*prompt[shared:], *answer]
        tokens += rest
        positions += range(shared, shared + len(rest))
        turns += [turn] * len(rest)
        answers += range(len(tokens) - len(answer), len(tokens))
    return Packed(tuple(tokens), tuple(positions), tuple(turns), tuple(answers))


def shared_length(prompts: Sequence[Tokens]) -> int:
    """How many tokens all prompts begin with, short of a whole prompt: its last token predicts the answer's first."""
    differs = (place for place, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
    return min(next(differs, len(prompts[0])), min(map(len, prompts)) - 1)
