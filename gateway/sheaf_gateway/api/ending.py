"""How a call that is over went."""

from sheaf_gateway.admission.ending import Ending, Usage
from sheaf_gateway.api.records import Record
from sheaf_gateway.routing.sessions import Counted


def ending(
    record: Record, usage: Usage, produced: int, opened_at: float, last_at: float, now: float, *, tells: bool
) -> Ending:
    """How a call went that ends now; `tells` says that its times are those of a pod: it computed, and nobody waited for
    pods that were lost."""
    queued, first, error = record.queued_ms / 1000.0, record.ttft_ms, record.error
    first_s = None if first is None or not tells else first / 1000.0 - queued
    billed = record.status < 400 if error is None else error == "client_gone"
    well = billed and error is None and tells
    return Ending(usage, produced, opened_at, last_at, now - opened_at - queued, first_s, billed, well)


def counted(over: Ending) -> Counted:
    """What a turn of a session that ended, or was left by its client, leaves in its pod's cache."""
    return Counted(over.output() or 0.0, over.usage.prompt, over.usage.cached)
