"""Which timing profile a Model's pods have: by accelerator, and by what the engine's arguments say."""

from __future__ import annotations

from sheaf_crds import Model
from sheaf_engine.timing import PRESETS, TimingProfile

BY_ACCELERATOR = {"nvidia-l4": "l4-8b", "nvidia-h100": "h100-8b", "nvidia-a100": "a100-70b"}
_FIELDS = {
    "--max-model-len": "max_model_len",
    "--max-num-seqs": "max_num_seqs",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--block-size": "block_size",
}


def accelerator(model: Model) -> tuple[str, int]:
    """The preferred accelerator of a Model and how many a pod takes; ("cpu", 1) where there is none."""
    wanted = model.spec.accelerators
    return (wanted[0].type, wanted[0].count) if wanted else ("cpu", 1)


def profile_of(model: Model, given: TimingProfile | None = None) -> TimingProfile:
    """The timing profile of a Model's pods.

    Raises:
        ValueError: where the engine's arguments and the profile do not go together.
    """
    base = given or PRESETS[BY_ACCELERATOR.get(accelerator(model)[0], "cpu-135m")]
    changes: dict[str, float | str | bool] = {}
    for argument in model.spec.engine.args:
        flag, _, value = argument.partition("=")
        if flag in _FIELDS and value.isdecimal():
            changes[_FIELDS[flag]] = int(value)
    if model.spec.lora.slots:
        changes["max_loras"] = model.spec.lora.slots
        changes["max_cpu_loras"] = max(model.spec.lora.capacity, model.spec.lora.slots)
    if "max_model_len" in changes or "block_size" in changes:
        size = int(changes.get("block_size", base.block_size))
        tokens = max(base.num_blocks * base.block_size, int(changes.get("max_model_len", base.max_model_len)))
        changes["num_blocks"] = -(-tokens // size)
    return base.with_changes(**changes)
