"""What a continued generation needs of a sampler, on one row of logits: pure tensor arithmetic.

A stream that goes on in another engine has its own tokens in the prompt. Presence and frequency penalties count only
what an engine generated itself; `Spoken` takes off what it does not count. And tokens that the client has text of must
come out again as they were; `Forced` lets the sampler draw nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Penalties:
    """The request's own, as vLLM names them."""

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0


def force(row: torch.Tensor, token: int) -> None:
    """Leave nothing but one token to draw; out of the vocabulary nothing is done."""
    if token < row.shape[-1]:
        row.fill_(float("-inf"))
        row[token] = 0.0


class Spoken:
    """The tokens at the end of a prompt that were output: vLLM's penalties, applied after this, then count them."""

    def __init__(self, tokens: Sequence[int], penalties: Penalties, device: torch.device) -> None:
        ids, counts = torch.tensor(tokens, dtype=torch.int64).unique(return_counts=True)
        self._ids = ids.to(device)
        self._off = (penalties.frequency * counts.to(torch.float32)).to(device)
        self._present = torch.full((len(ids),), penalties.presence, dtype=torch.float32, device=device)
        self._places = {int(token): place for place, token in enumerate(ids.tolist())}
        self._repetition = penalties.repetition
        self._seen = 0

    def apply(self, row: torch.Tensor, output: Sequence[int]) -> None:
        """Change one row of float32 logits (vocabulary,); `output` are the tokens that vLLM counts itself."""
        for token in output[self._seen :]:
            if token in self._places:
                self._present[self._places[token]] = 0.0
        self._seen = len(output)
        wanted = _repeated(row[self._ids], self._repetition) - self._off - self._present
        row[self._ids] = _repeated(wanted, 1.0 / self._repetition)


def _repeated(logits: torch.Tensor, penalty: float) -> torch.Tensor:
    """vLLM's repetition penalty; with the inverse of a penalty it undoes it, for it keeps signs."""
    return logits if penalty == 1.0 else torch.where(logits > 0, logits / penalty, logits * penalty)
