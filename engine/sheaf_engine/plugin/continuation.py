"""The logits processor behind continued streams (entry point group ``vllm.logits_processors``).

A request says by ``vllm_xargs`` what it needs: ``sheaf_forced`` are the tokens that must come first, ``sheaf_spoken``
counts the tokens at the end of its prompt that were output. Requests that say neither cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor

from sheaf_engine.continued import FORCED, SPOKEN, check
from sheaf_engine.plugin.answering import tell
from sheaf_engine.plugin.spoken import Penalties, Spoken, force


@dataclass(slots=True)
class _Row:
    """A continued request in the batch. `output` is vLLM's own list, which grows."""

    output: Sequence[int]
    forced: Sequence[int] = field(default_factory=tuple)
    spoken: Spoken | None = None


class ContinuationProcessor(LogitsProcessor):  # type: ignore[misc] # vLLM's types are not followed
    """Makes a generation go on as if it had never been interrupted."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002, FBT001
        self._device = device
        self._rows: dict[int, _Row] = {}
        tell()

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """See vLLM's ``LogitsProcessor``; raises ``ValueError`` for arguments that no gateway sends."""
        check(sampling_params.extra_args or {})

    def is_argmax_invariant(self) -> bool:
        """Forced tokens change what greedy decoding picks."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch."""
        process_dict_updates(self._rows, batch_update, self._row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Change the rows of continued requests in place."""
        for index, row in self._rows.items():
            place = len(row.output)
            if place < len(row.forced):
                force(logits[index], row.forced[place])
            elif row.spoken is not None:
                row.spoken.apply(logits[index], row.output)
        return logits

    def _row(self, params: Any, prompt: list[int] | None, output: list[int]) -> _Row | None:
        extra = params.extra_args or {}
        forced, count = extra.get(FORCED) or (), extra.get(SPOKEN) or 0
        if not forced and not count:
            return None
        return _Row(output, forced, self._spoken(params, prompt[-count:]) if count and prompt else None)

    def _spoken(self, params: Any, tokens: list[int]) -> Spoken:
        named = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        return Spoken(tokens, Penalties(*named), self._device)
