"""How others learn which kernels run: the metric ``sheaf:kernels_info`` on the engine's own ``/metrics``.

It reads ``sheaf:kernels_info{kernels="sheaf",reason="CPU"} 1.0``. The API server's process publishes what the engine's
processes decide from the same facts; an engine whose compiler then fails falls back and says so in its log.
"""

from prometheus_client import Gauge

from sheaf_engine.plugin.decision import Decision

METRIC = "sheaf:kernels_info"
_gauges: list[Gauge] = []


def publish(decision: Decision) -> None:
    """Show a decision; a later one replaces it."""
    if not _gauges:
        text = "Which multi-LoRA kernels the engine uses, and why; always 1."
        _gauges.append(Gauge(METRIC, text, ["kernels", "reason"], multiprocess_mode="mostrecent"))
    _gauges[0].clear()
    _gauges[0].labels(kernels=decision.kernels, reason=decision.reason).set(1)
