"""How others learn that continued streams are exact in this engine: the metric ``sheaf:continuation_info``.

vLLM leaves processors out where it decodes speculatively, so that what is installed says little. The processor itself,
where it is made, writes into a file whose path it inherited from the API server's process; the metric there follows the
file at every scrape.
"""

import atexit
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Gauge, Metric

METRIC = "sheaf:continuation_info"
ANSWER = "SHEAF_CONTINUATION_ANSWER"


class _Told(Gauge):
    """The metric, brought up to date whenever it is read."""

    def collect(self) -> Iterable[Metric]:
        """1 where the processor was made in a computing process."""
        self.set(float(told()))
        return super().collect()


_gauges: list[_Told] = []


def publish() -> None:
    """Show the metric in this process, and open the file that its children answer in."""
    if not _gauges:
        text = "Whether continued streams are sampled as if they had not been interrupted."
        _gauges.append(_Told(METRIC, text, multiprocess_mode="mostrecent"))
    if ANSWER not in os.environ:
        descriptor, path = tempfile.mkstemp(prefix="sheaf-continuation-")
        os.close(descriptor)
        os.environ[ANSWER] = path
        atexit.register(Path(path).unlink, missing_ok=True)


def tell() -> None:
    """Say, from the process that computes, that the processor is there."""
    path = os.environ.get(ANSWER)
    if path:
        Path(path).write_text("1")


def told() -> bool:
    """Whether a computing process has said so."""
    path = os.environ.get(ANSWER)
    try:
        return bool(path) and Path(str(path)).read_text() == "1"
    except OSError:
        return False
