"""Where adapters are: in storage, in host memory, in a slot; and what it costs to move them.

Host memory and slots are LRU caches, and an adapter of a running sequence is never moved out (vLLM:
``vllm/lora/worker_manager.py``). Loading blocks the engine, as it does in vLLM.
"""

from __future__ import annotations

from collections import OrderedDict

from sheaf_engine.timing.profiles import TimingProfile
from sheaf_engine.timing.values import Adapter


class AdapterSlots:
    """The adapters of one engine, and how many running sequences use each."""

    __slots__ = ("_host", "_profile", "_slots", "_users", "activated", "loaded")

    def __init__(self, profile: TimingProfile) -> None:
        self._profile = profile
        self._host: OrderedDict[str, None] = OrderedDict()
        self._slots: OrderedDict[str, None] = OrderedDict()
        self._users: dict[str, int] = {}
        self.loaded: list[str] = []
        self.activated: list[str] = []

    @property
    def running(self) -> dict[str, int]:
        """Adapters of running sequences, with how many use each. Read only."""
        return self._users

    @property
    def in_slots(self) -> tuple[str, ...]:
        """Adapters in slots, least recently used first."""
        return tuple(self._slots)

    @property
    def in_host_memory(self) -> tuple[str, ...]:
        """Adapters in host memory, least recently used first."""
        return tuple(self._host)

    def fits(self, adapter: Adapter) -> bool:
        """Whether a sequence of `adapter` can run beside those that run now."""
        return adapter.name in self._users or len(self._users) < self._profile.max_loras

    def begin(self, adapter: Adapter) -> float:
        """A sequence of `adapter`, which fits, begins to run.

        Returns:
            Seconds spent loading and activating.
        """
        self._users[adapter.name] = self._users.get(adapter.name, 0) + 1
        return self._load(adapter) + self._activate(adapter)

    def end(self, adapter: Adapter) -> None:
        """A sequence of `adapter` no longer runs."""
        left = self._users[adapter.name] - 1
        if left:
            self._users[adapter.name] = left
            return
        del self._users[adapter.name]
        self._host.move_to_end(adapter.name)
        self._slots.move_to_end(adapter.name)

    def load(self, adapter: Adapter) -> float:
        """Load ahead of any request: into host memory, and into a slot too, unless all hold adapters in use.

        Returns:
            Seconds spent.
        """
        if self.fits(adapter):
            return self._load(adapter) + self._activate(adapter)
        return self._load(adapter) if len(self._users) < self._profile.max_cpu_loras else 0.0

    def forget(self, name: str) -> None:
        """Drop an adapter from host memory and slots, unless a running sequence uses it."""
        if name not in self._users:
            self._host.pop(name, None)
            self._slots.pop(name, None)

    def _load(self, adapter: Adapter) -> float:
        if adapter.name in self._host:
            self._host.move_to_end(adapter.name)
            return 0.0
        if len(self._host) >= self._profile.max_cpu_loras:
            evicted = self._evict(self._host)
            self._slots.pop(evicted, None)
        self._host[adapter.name] = None
        self.loaded.append(adapter.name)
        return self._profile.adapter_load_s + self._bytes(adapter) * self._profile.adapter_load_byte_s

    def _activate(self, adapter: Adapter) -> float:
        if adapter.name in self._slots:
            self._slots.move_to_end(adapter.name)
            return 0.0
        if len(self._slots) >= self._profile.max_loras:
            self._evict(self._slots)
        self._slots[adapter.name] = None
        self.activated.append(adapter.name)
        return self._bytes(adapter) * self._profile.adapter_activate_byte_s

    def _evict(self, cache: OrderedDict[str, None]) -> str:
        name = next(held for held in cache if held not in self._users)
        del cache[name]
        return name

    def _bytes(self, adapter: Adapter) -> int:
        return self._profile.adapter_rank_bytes * adapter.rank if adapter.size_bytes is None else adapter.size_bytes
