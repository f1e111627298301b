"""The engine timing model: a pure library in virtual time.

One :class:`Engine` stands for one vLLM V1 engine: continuous batching with chunked prefill, a KV block pool with prefix
reuse and LRU eviction, adapter slots, preemption by recompute. It holds no tokens and no text, only counts and block
hashes, and is told the time. The emulator runs it against the wall clock, the simulator in virtual time.
docs/timing-model.md has the formulas and what was left out.
"""

from sheaf_engine.timing.engine import Engine
from sheaf_engine.timing.hashing import BlockHashes
from sheaf_engine.timing.profiles import PRESETS, TimingProfile
from sheaf_engine.timing.values import Adapter, Admission, BlocksStored, Request, RequestId, StepResult

__all__ = [
    "PRESETS",
    "Adapter",
    "Admission",
    "BlockHashes",
    "BlocksStored",
    "Engine",
    "Request",
    "RequestId",
    "StepResult",
    "TimingProfile",
]
