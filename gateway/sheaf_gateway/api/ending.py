"""What a call that is over means for the books."""

import msgspec

from sheaf_gateway.api.entry import Given
from sheaf_gateway.api.records import Record
from sheaf_gateway.api.usage import Usage


class Ending(msgspec.Struct, frozen=True):
    """How a call went, for the accounts. Times are loop seconds; `produced` counts the tokens of a stream, or
    its events where the engine tells no ids."""

    usage: Usage
    produced: int
    opened_at: float
    last_at: float


def given(ending: Ending, record: Record, now: float, *, computes: bool) -> Given:
    """What the tenant was given, by how the call ended."""
    queued, first = record.queued_ms / 1000.0, record.ttft_ms
    service_s = now - ending.opened_at - queued
    first_s = None if first is None else first / 1000.0 - queued
    billed = record.error == "client_gone" or (record.status < 400 and record.error is None)
    well = billed and record.error is None and computes
    return Given(billed, well, ending.usage, ending.produced, service_s, first_s)
