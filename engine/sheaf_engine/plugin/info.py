"""How others learn which kernels run: the metric ``sheaf:kernels_info`` on the engine's own ``/metrics``.

It reads ``sheaf:kernels_info{kernels="sheaf",reason="CPU"} 1.0``. The API server's process publishes what all of the
engine's processes decide from the same facts. Whether the kernels can really be set up shows later, in the processes
that compute: one that has to fall back writes that into a file whose path it inherited, and the metric follows the file
at every scrape. Where Prometheus itself gathers over processes, the last one to publish is shown.
"""

import atexit
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from prometheus_client import Gauge, Metric

from sheaf_engine.plugin.decision import Decision

METRIC = "sheaf:kernels_info"
OUTCOME = "SHEAF_KERNELS_OUTCOME"


class _Told(Gauge):
    """The metric, brought up to date whenever it is read."""

    def collect(self) -> Iterable[Metric]:
        """The samples, with a fallback of a computing process in place of what was decided."""
        fallback = _fallback()
        if fallback is not None:
            _show(self, fallback)
        return super().collect()


_gauges: list[_Told] = []


def publish(decision: Decision) -> None:
    """Show a decision; a later one replaces it."""
    if not _gauges:
        text = "Which multi-LoRA kernels the engine uses, and why; always 1."
        _gauges.append(_Told(METRIC, text, ["kernels", "reason"], multiprocess_mode="mostrecent"))
    _show(_gauges[0], decision)
    if decision.wrapper and OUTCOME not in os.environ:
        _open_outcome()


def fall_back(reason: str) -> None:
    """Tell, from the process that computes, that stock kernels run although Sheaf's were chosen."""
    decision = Decision("stock", None, reason)
    publish(decision)
    path = os.environ.get(OUTCOME)
    if path:
        Path(path).write_text(json.dumps(asdict(decision)))


def _show(gauge: Gauge, decision: Decision) -> None:
    gauge.clear()
    gauge.labels(kernels=decision.kernels, reason=decision.reason).set(1)


def _open_outcome() -> None:
    """Make the file that child processes write to; it ends with this process."""
    descriptor, path = tempfile.mkstemp(prefix="sheaf-kernels-")
    os.close(descriptor)
    os.environ[OUTCOME] = path
    atexit.register(Path(path).unlink, missing_ok=True)


def _fallback() -> Decision | None:
    path = os.environ.get(OUTCOME)
    try:
        return Decision(**json.loads(Path(path).read_text())) if path else None
    except (OSError, ValueError, TypeError):
        return None
