"""What the loops count. Labels are bounded: words of the program, never names of objects."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The reconciler's figures."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.registry = registry
        self.turns = Counter("sheaf_operator_turns", "Plans made and carried out.", ["result"], registry=registry)
        self.actions = Counter("sheaf_operator_actions", "Actions.", ["action", "result"], registry=registry)
        self.planning = Histogram(
            "sheaf_operator_planning_seconds", "Time to plan one key.", registry=registry, buckets=LATENCIES
        )
        self.latency = Histogram(
            "sheaf_operator_change_to_done_seconds",
            "From the first change of a key until all that it needs is done.",
            registry=registry,
            buckets=LATENCIES,
        )
        self.depth = Gauge("sheaf_operator_queue_depth", "Keys that wait to be planned.", registry=registry)
        self.running = Gauge("sheaf_operator_turns_running", "Keys that are planned now.", registry=registry)
        self.waiting = Gauge("sheaf_operator_backing_off", "Actions held back after failures.", registry=registry)
        self.settled = Gauge(
            "sheaf_operator_last_success_timestamp_seconds", "End of the last turn without failure.", registry=registry
        )
