"""Whether Sheaf's kernels run in this engine: a pure function of the switch, vLLM's version and the platform."""

from dataclasses import dataclass
from typing import Literal

Kernels = Literal["sheaf", "stock"]

SUPPORTED = ("0.32",)
CPU_WRAPPER = "sheaf_engine.plugin.cpu.sheaf_or_stock_wrapper"
CUDA_WRAPPER = "sheaf_engine.plugin.cuda.sheaf_or_stock_wrapper"
OFF = frozenset({"off", "0", "false", "no", "stock"})
ON = frozenset({"on", "1", "true", "yes", "sheaf"})
AUTO = frozenset({"", "auto"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What the decision looks at."""

    switch: str
    version: str
    platform: Literal["cpu", "cuda", "other"]
    compiler: bool
    triton: bool
    cuda_measured: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Which kernels, the wrapper that brings them (None: leave vLLM alone), and why."""

    kernels: Kernels
    wrapper: str | None
    reason: str


def decide(facts: Facts) -> Decision:
    """The kernels for these facts.

    ``SHEAF_KERNELS`` is ``auto`` (the default: Sheaf's wherever they are measured to be faster, which is the CPU, and
    CUDA once its tile table was tuned), ``on`` (also on CUDA while it is not) or ``off``.
    """
    switch = facts.switch.strip().lower()
    if switch in OFF:
        return _stock("switched off by SHEAF_KERNELS")
    if switch not in ON | AUTO:
        return _stock(f"SHEAF_KERNELS={facts.switch!r} is none of auto, on, off")
    if not supported(facts.version):
        return _stock(f"vLLM {facts.version} is not among the supported versions {', '.join(SUPPORTED)}")
    if facts.platform == "cpu":
        return _sheaf(CPU_WRAPPER, "CPU") if facts.compiler else _stock("numba is not installed")
    if facts.platform == "cuda":
        return _cuda(facts, wanted=switch in ON or facts.cuda_measured)
    return _stock("neither a CPU nor a CUDA platform")


def supported(version: str) -> bool:
    """Whether a vLLM version is one that the kernels are tested with: its first two numbers count."""
    return ".".join(version.split("+", maxsplit=1)[0].split(".")[:2]) in SUPPORTED


def _cuda(facts: Facts, *, wanted: bool) -> Decision:
    if not wanted:
        return _stock("not yet measured on CUDA: SHEAF_KERNELS=on tries them")
    return _sheaf(CUDA_WRAPPER, "CUDA") if facts.triton else _stock("Triton is not installed")


def _sheaf(wrapper: str, where: str) -> Decision:
    return Decision("sheaf", wrapper, where)


def _stock(reason: str) -> Decision:
    return Decision("stock", None, reason)
