"""What this machine has to offer to engines: memory and GPUs, shared out so that two pods never count on the same."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sheaf_crds import ModelSpec

GIB = 2**30
ENGINE_OVERHEAD = 1.0 * GIB
WEIGHTS_FACTOR = 1.1
GPUS = Path("/proc/driver/nvidia/gpus")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Lack:
    """What a pod waits for: a word for programs, and a line for people with the remedy."""

    reason: str
    message: str


def needed_memory(spec: ModelSpec, model_dir: Path) -> float:
    """Bytes that vLLM on CPU needs at least: weights, KV cache, and itself; 0 for the emulator."""
    if spec.engine.name != "vllm":
        return 0.0
    weights = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
    space = next((v.value for v in spec.engine.env if v.name == "VLLM_CPU_KVCACHE_SPACE"), "1")
    cache = float(space) if space.replace(".", "", 1).isdigit() else 1.0
    return weights * WEIGHTS_FACTOR + cache * GIB + ENGINE_OVERHEAD


def available_memory() -> float:
    """Bytes that processes here may still take; infinite where the system does not say."""
    fields = dict(line.split(":", 1) for line in _text(MEMINFO).splitlines() if ":" in line)
    free = float(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else float("inf")
    limit, used = _text(CGROUP / "memory.max").strip(), _text(CGROUP / "memory.current").strip()
    return min(free, float(limit) - float(used)) if limit.isdigit() and used.isdigit() else free


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def missing_engine(spec: ModelSpec) -> Lack | None:
    """What is wrong where the engine's program is not installed."""
    if spec.engine.name == "vllm" and importlib.util.find_spec("vllm") is None:
        remedy = "run `make install`, or `pip install 'sheaf[cpu]'`, or set engine.name: emulator to go without it"
        return Lack("EngineNotInstalled", f"vLLM is not installed; {remedy}")
    return None


@dataclass
class Machine:
    """Memory promised to engines that are still starting, and GPUs in use, by pod name."""

    gpus: int = field(default_factory=lambda: len(list(GPUS.iterdir())) if GPUS.is_dir() else 0)
    promised: dict[str, float] = field(default_factory=dict)
    taken: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def claim(self, pod: str, spec: ModelSpec, model_dir: Path) -> Lack | None:
        """Reserve what an engine needs; what is lacking where it is not there."""
        return (
            missing_engine(spec)
            or (self._claim_gpus(pod, spec) if self.uses_gpu(spec) else None)
            or (None if self.uses_gpu(spec) else self._claim_memory(pod, needed_memory(spec, model_dir)))
        )

    def started(self, pod: str) -> None:
        """The pod's engine is up: the memory that it took counts as taken, not as promised."""
        self.promised.pop(pod, None)

    def release(self, pod: str) -> None:
        """The pod is gone."""
        self.promised.pop(pod, None)
        self.taken.pop(pod, None)

    def uses_gpu(self, spec: ModelSpec) -> bool:
        """Whether the engine runs on GPUs: some are declared, and this machine has any."""
        return bool(spec.accelerators) and self.gpus > 0 and spec.engine.name == "vllm"

    def environment(self, pod: str) -> Mapping[str, str]:
        """Variables that show the pod its GPUs only."""
        mine = self.taken.get(pod)
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))} if mine else {}

    def _claim_gpus(self, pod: str, spec: ModelSpec) -> Lack | None:
        if pod in self.taken:
            return None
        count = spec.accelerators[0].count
        used = {gpu for gpus in self.taken.values() for gpu in gpus}
        free = [gpu for gpu in range(self.gpus) if gpu not in used]
        if len(free) < count:
            message = f"it needs {count} GPUs, {len(free)} of {self.gpus} are free; lower replicas of a Model"
            return Lack("InsufficientGPU", message)
        self.taken[pod] = tuple(free[:count])
        return None

    def _claim_memory(self, pod: str, needed: float) -> Lack | None:
        promised = sum(amount for other, amount in self.promised.items() if other != pod)
        if needed > available_memory() - promised:
            message = (
                f"it needs about {needed / GIB:.1f} GiB of memory, and less is free; lower replicas, set a smaller"
            )
            return Lack("InsufficientMemory", f"{message} VLLM_CPU_KVCACHE_SPACE in engine.env, or end other programs")
        self.promised[pod] = needed
        return None
