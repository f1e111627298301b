"""Where requests come from: recorded traces in three formats, and a generator for when there is none."""

from sheaf.simulator.traces.errors import TraceError
from sheaf.simulator.traces.reading import read_trace
from sheaf.simulator.traces.shaping import Shape, shaped
from sheaf.simulator.traces.synthetic import Chat, conversations

__all__ = ["Chat", "Shape", "TraceError", "conversations", "read_trace", "shaped"]
