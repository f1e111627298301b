"""The last decisions, by request id: why a request went where it went. Bounded; the oldest leave first."""

from collections import OrderedDict

import msgspec

from sheaf_gateway.routing.choose import Decision


class Attempt(msgspec.Struct, gc=False):
    """One attempt: the decision and what became of it (`outcome` is a word for programs). `expected_cached` are the
    prompt's tokens that the pod should have had in its cache; `continues` the characters that the client had when a
    stream was continued there, None where it was not."""

    decision: Decision
    started_at: float
    outcome: str = "pending"
    loaded_adapter: bool = False
    expected_cached: int = 0
    continues: int | None = None


class Record(msgspec.Struct, gc=False):
    """One request. Times are Unix seconds and milliseconds; tokens are what the engine reported, None where
    it did not. `held_by` is the pod that keeps the response which it goes on from: no other could be chosen."""

    request_id: str
    served: str
    model: str
    adapter: str | None
    tenant: str
    path: str
    received_at: float
    prompt_bytes: int
    attempts: list[Attempt]
    status: int = 0
    queued_ms: float = 0.0
    ttft_ms: float | None = None
    total_ms: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    held_by: str | None = None


class Records:
    """A bounded map in order of arrival."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._records: OrderedDict[str, Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> None:
        """Keep a record; one of the same request id is replaced."""
        self._records.pop(record.request_id, None)
        self._records[record.request_id] = record
        if len(self._records) > self._size:
            self._records.popitem(last=False)

    def get(self, request_id: str) -> Record | None:
        """The record of a request, where it is still held."""
        return self._records.get(request_id)


def told(record: Record) -> bytes:
    """What is told of a request, as JSON; only now is worked out what the decisions weighed."""
    attempts = [{**msgspec.structs.asdict(attempt), "decision": attempt.decision.told()} for attempt in record.attempts]
    return msgspec.json.encode({**msgspec.structs.asdict(record), "attempts": attempts})
