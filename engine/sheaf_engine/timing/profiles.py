"""The coefficients of the timing model, with presets.

The presets are estimates from public hardware figures
(weights read once a step at 80 % of the memory bandwidth, prefill at 40 to 50 % of the dense 16-bit peak): right in
shape and order of size, wrong by tens of per cent. Fit your own from a real engine before you buy hardware by them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingProfile:
    """One engine's speed and capacity.

    Attributes:
        name: what is modelled.
        step_overhead_s: seconds for a step with nothing in it (weights, launch, sampling, scheduling).
        prefill_token_s: seconds for each prompt token computed.
        prefill_attention_s: seconds for each pair (prompt token computed, token it attends to).
        decode_sequence_s: seconds for each sequence that decodes in the step.
        kv_token_s: seconds for each token of KV context that a decoding sequence reads.
        lora_adapter_s: seconds for each distinct adapter active in the step.
        lora_rank_token_s: seconds for each (token computed under an adapter) times the adapter's rank.
        adapter_load_s: seconds to load any adapter from storage, whatever its size.
        adapter_load_byte_s: seconds for each byte read from storage.
        adapter_activate_byte_s: seconds for each byte copied into a slot.
        adapter_rank_bytes: bytes of an adapter for each unit of rank, where the size is not known.
        block_size: tokens in a KV block.
        num_blocks: KV blocks that requests can use.
        max_model_len: longest prompt plus output, tokens.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens computed in one step.
        max_loras: adapter slots: distinct adapters in one step.
        max_cpu_loras: adapters held in host memory, at least max_loras.
        prefix_caching: whether full blocks are reused.
    """

    name: str = "custom"
    step_overhead_s: float
    prefill_token_s: float
    prefill_attention_s: float = 0.0
    decode_sequence_s: float = 0.0
    kv_token_s: float = 0.0
    lora_adapter_s: float = 0.0
    lora_rank_token_s: float = 0.0
    adapter_load_s: float = 0.0
    adapter_load_byte_s: float = 0.0
    adapter_activate_byte_s: float = 0.0
    adapter_rank_bytes: int = 0
    block_size: int = 16
    num_blocks: int
    max_model_len: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_loras: int = 8
    max_cpu_loras: int = 32
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        """Refuse values under which the model has no meaning.

        Raises:
            ValueError: naming the field and the remedy.
        """
        for field in fields(self):
            _check_field(field.name, getattr(self, field.name))
        if self.step_overhead_s <= 0:
            raise ValueError("step_overhead_s must be above 0: a step without a duration would never let time pass")
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError("num_blocks * block_size must hold one sequence of max_model_len; raise num_blocks")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs, as in vLLM")
        if self.max_cpu_loras < self.max_loras:
            raise ValueError("max_cpu_loras must be at least max_loras, as in vLLM")

    def with_changes(self, **changes: float | str | bool) -> TimingProfile:
        """A copy with some fields changed.

        Raises:
            ValueError: for a field that does not exist or a value that has no meaning.
        """
        unknown = sorted(set(changes) - {field.name for field in fields(self)})
        if unknown:
            raise ValueError(f"unknown timing profile field {unknown[0]!r}; docs/timing-model.md lists them")
        return replace(self, **changes)  # type: ignore[arg-type]

    def to_json(self) -> str:
        """All fields as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> TimingProfile:
        """Read a profile from a JSON object: all fields, or ``{"preset": NAME, ...changes}``.

        Raises:
            ValueError: naming what is wrong and how to mend it.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ValueError(f"the timing profile is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError("the timing profile must be a JSON object")  # noqa: TRY004
        base = preset(value.pop("preset", "custom"))
        return base.with_changes(**value)


def preset(name: str) -> TimingProfile:
    """The preset called `name`.

    Raises:
        ValueError: when there is none, naming those that there are.
    """
    found = PRESETS.get(name)
    if found is None:
        raise ValueError(f"no timing preset {name!r}; there are: {', '.join(sorted(PRESETS))}")
    return found


def _check_field(name: str, value: object) -> None:
    if name == "name":
        good = isinstance(value, str)
    elif name == "prefix_caching":
        good = isinstance(value, bool)
    elif name.endswith("_s"):
        good = type(value) in (int, float) and 0 <= value < float("inf")  # type: ignore[operator]
    else:
        least = 0 if name == "adapter_rank_bytes" else 1
        good = type(value) is int and value >= least
    if not good:
        raise ValueError(f"timing profile field {name} cannot be {value!r}; docs/timing-model.md gives its range")


def _presets(*profiles: TimingProfile) -> Mapping[str, TimingProfile]:
    return MappingProxyType({profile.name: profile for profile in profiles})


PRESETS: Mapping[str, TimingProfile] = _presets(
    TimingProfile(
        name="custom",
        step_overhead_s=0.01,
        prefill_token_s=1e-4,
        num_blocks=4096,
        max_model_len=8192,
    ),
    TimingProfile(
        name="instant",
        step_overhead_s=1e-5,
        prefill_token_s=1e-8,
        num_blocks=16384,
        max_model_len=131072,
        max_num_batched_tokens=8192,
    ),
    TimingProfile(
        name="cpu-135m",
        step_overhead_s=0.030,
        prefill_token_s=1.2e-3,
        prefill_attention_s=1e-7,
        decode_sequence_s=4e-3,
        kv_token_s=2e-6,
        lora_adapter_s=1e-3,
        lora_rank_token_s=2e-5,
        adapter_load_s=0.05,
        adapter_load_byte_s=1e-9,
        adapter_activate_byte_s=2e-10,
        adapter_rank_bytes=600_000,
        block_size=32,
        num_blocks=1456,
        max_model_len=2048,
        max_num_seqs=32,
    ),
    TimingProfile(
        name="l4-8b",
        step_overhead_s=0.062,
        prefill_token_s=2.7e-4,
        prefill_attention_s=1e-8,
        decode_sequence_s=1.5e-4,
        kv_token_s=5.5e-7,
        lora_adapter_s=4e-4,
        lora_rank_token_s=1.5e-7,
        adapter_load_s=0.05,
        adapter_load_byte_s=1e-9,
        adapter_activate_byte_s=8e-11,
        adapter_rank_bytes=5_200_000,
        num_blocks=2100,
        max_model_len=8192,
    ),
    TimingProfile(
        name="h100-8b",
        step_overhead_s=7e-3,
        prefill_token_s=4e-5,
        prefill_attention_s=1.8e-9,
        decode_sequence_s=2.5e-5,
        kv_token_s=5e-8,
        lora_adapter_s=1.2e-4,
        lora_rank_token_s=2e-8,
        adapter_load_s=0.05,
        adapter_load_byte_s=5e-10,
        adapter_activate_byte_s=4e-11,
        adapter_rank_bytes=5_200_000,
        num_blocks=25000,
        max_model_len=32768,
        max_num_batched_tokens=8192,
    ),
    TimingProfile(
        name="a100-70b",
        step_overhead_s=0.029,
        prefill_token_s=2e-4,
        prefill_attention_s=3.7e-9,
        decode_sequence_s=6e-5,
        kv_token_s=5e-8,
        lora_adapter_s=3e-4,
        lora_rank_token_s=6e-8,
        adapter_load_s=0.1,
        adapter_load_byte_s=5e-10,
        adapter_activate_byte_s=5e-11,
        adapter_rank_bytes=26_000_000,
        num_blocks=26500,
        max_model_len=32768,
        max_num_batched_tokens=8192,
    ),
)
