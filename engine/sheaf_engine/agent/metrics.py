"""The agent's own metrics. Labels are words of this code only, never names that users choose."""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sheaf_crds.agent_api import AgentState

_STATES: tuple[Literal["Resident", "Loading", "Failed"], ...] = ("Resident", "Loading", "Failed")
_PHASES = ("Starting", "Ready", "Unhealthy", "Stopped")


class Metrics:
    """Counters of what was done, gauges of what is."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.operations = Counter(
            "sheaf_agent_operations",
            "What was done to adapters, by kind (prepare, load, unload) and result (ok or the reason of the failure).",
            ["operation", "result"],
            registry=registry,
        )
        self.seconds = Histogram(
            "sheaf_agent_operation_seconds",
            "How long it took.",
            ["operation"],
            buckets=(0.01, 0.05, 0.2, 1, 5, 20, 60, 300),
            registry=registry,
        )
        self.refused = Counter(
            "sheaf_agent_refused_calls", "Calls that were refused, by HTTP status.", ["status"], registry=registry
        )
        self._adapters = Gauge("sheaf_agent_adapters", "Adapters by state.", ["state"], registry=registry)
        self._phase = Gauge("sheaf_agent_engine_phase", "1 for the engine's phase.", ["phase"], registry=registry)
        self._epoch = Gauge("sheaf_agent_engine_epoch", "Grows with every start of the engine.", registry=registry)
        self._draining = Gauge("sheaf_agent_draining", "1 while the pod drains.", registry=registry)
        self._notice = Gauge(
            "sheaf_agent_notice", "1 while the cloud says that the machine goes; 0.5: it may go.", registry=registry
        )
        self.metadata = Gauge(
            "sheaf_agent_metadata_reachable",
            "1 while the cloud's metadata service answers, where it is read.",
            ["cloud"],
            registry=registry,
        )

    def text(self, state: AgentState) -> bytes:
        """Everything in Prometheus' text format."""
        found = [adapter.state for adapter in state.adapters]
        for one in _STATES:
            self._adapters.labels(one).set(found.count(one))
        for phase in _PHASES:
            self._phase.labels(phase).set(phase == state.engine)
        self._epoch.set(state.engine_epoch)
        self._draining.set(state.draining)
        self._notice.set(0.0 if state.notice is None else 0.5 if state.notice.advisory else 1.0)
        return generate_latest(self._registry)
