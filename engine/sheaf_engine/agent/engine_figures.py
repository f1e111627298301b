"""The few figures that the agent reads out of the engine's Prometheus text: load, epoch and who is being served.
Pure.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sheaf_crds.agent_api import EngineLoad

_WANTED = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
    "process_start_time_seconds",
    "sheaf:kernels_info",
    "sheaf:continuation_info",
)
_MOST_DIGITS = 12
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Figures:
    """What the engine says of itself.

    Attributes:
        load: running and waiting requests, share of KV blocks in use.
        started: Unix seconds of the engine's start; 0 where it does not say.
        block_size: tokens in a KV block; 0 where it does not say.
        kv_tokens: tokens that its KV cache holds, of all its replicas the least; 0 where it does not say.
        active: names of adapters with requests running or waiting.
        kernels: LoRA kernels in use; stock where it does not say.
        continues: whether Sheaf's logits processor is in the engine.
    """

    load: EngineLoad = field(default_factory=EngineLoad)
    started: float = 0.0
    block_size: int = 0
    kv_tokens: int = 0
    active: frozenset[str] = frozenset()
    kernels: str = "stock"
    continues: bool = False


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    labels: dict[str, str]
    value: float


def parse_figures(text: str) -> Figures:
    """The figures in a Prometheus exposition; what is not there is zero."""
    samples = list(_samples(text))
    usage = [s.value for s in samples if s.name == "vllm:kv_cache_usage_perc"]
    caches = [s.labels for s in samples if s.name == "vllm:cache_config_info"]
    return Figures(
        EngineLoad(
            running=round(_sum(samples, "vllm:num_requests_running")),
            waiting=round(_sum(samples, "vllm:num_requests_waiting")),
            kv_usage=min(1.0, max(0.0, max(usage, default=0.0))),
        ),
        max((s.value for s in samples if s.name == "process_start_time_seconds"), default=0.0),
        next((size for labels in caches if (size := _count(labels, "block_size"))), 0),
        min((size for labels in caches if (size := _kv_tokens(labels))), default=0),
        _active(samples),
        next((s.labels.get("kernels", "stock") for s in samples if s.name == "sheaf:kernels_info"), "stock"),
        any(s.value >= 1 for s in samples if s.name == "sheaf:continuation_info"),
    )


def _kv_tokens(labels: Mapping[str, str]) -> int:
    return _count(labels, "num_gpu_blocks") * _count(labels, "block_size")


def _count(labels: Mapping[str, str], name: str) -> int:
    text = labels.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0


def _samples(text: str) -> Iterator[_Sample]:
    for line in text.splitlines():
        if line.startswith(_WANTED):
            name, _, rest = line.partition("{" if "{" in line else " ")
            labels, _, value = rest.rpartition("} ") if "{" in line else ("", "", rest)
            number = _number(value)
            if name in _WANTED and number is not None:
                yield _Sample(name, dict(_LABEL.findall(labels)), number)


def _number(text: str) -> float | None:
    try:
        number = float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return None
    return number if abs(number) < 1e15 else None


def _sum(samples: list[_Sample], name: str) -> float:
    return max(0.0, sum(s.value for s in samples if s.name == name))


def _active(samples: list[_Sample]) -> frozenset[str]:
    newest = max((s for s in samples if s.name == "vllm:lora_requests_info"), key=lambda s: s.value, default=None)
    if newest is None:
        return frozenset()
    names = ",".join((newest.labels.get("running_lora_adapters", ""), newest.labels.get("waiting_lora_adapters", "")))
    return frozenset(name.strip() for name in names.split(",") if name.strip())
