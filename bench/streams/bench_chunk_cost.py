"""What a chunk of a stream costs in the gateway's relay: passed on as it is, and with the journal of a stream that can
be continued.

    python bench/streams/bench_chunk_cost.py

Prints microseconds for each chunk (best of several rounds), the bytes that a chunk grows by between engine and gateway,
and the bytes that a journal holds after so many tokens.
"""

import gc
import json
import time
from collections.abc import Callable

from sheaf_gateway.api.stream import EventRelay
from sheaf_gateway.continuation.journal import Journal, Purse

CHUNKS, ROUNDS = 2_000, 15


class Sink:
    """A responder that takes everything."""

    def write(self, data: bytes) -> None:
        """Take it."""


def chunks(*, ids: bool, prompt: int) -> list[bytes]:
    """A chat stream as vLLM writes it."""
    head = {"id": "chatcmpl-" + "a" * 36, "object": "chat.completion.chunk", "created": 1790000000, "model": "smollm2"}
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    first = {**head, "choices": [role], "prompt_token_ids": list(range(20_000, 20_000 + prompt)) if ids else None}
    found = [first]
    for number in range(CHUNKS):
        choice = {"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}
        found.append({**head, "choices": [{**choice, "token_ids": [10_000 + number] if ids else None}]})
    return [b"data: " + json.dumps(each, separators=(",", ":")).encode() + b"\n\n" for each in found]


def best(feed: Callable[[], None]) -> float:
    """Microseconds for each chunk."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        feed()
        times.append(time.perf_counter() - start)
    return min(times) / CHUNKS * 1e6


def main() -> None:
    """Measure and print."""
    gc.disable()
    bare, told = chunks(ids=False, prompt=1_000), chunks(ids=True, prompt=1_000)
    purse = Purse(2**40)

    def plain() -> None:
        relay = EventRelay(Sink())  # type: ignore[arg-type]
        for data in bare:
            relay.feed(data)

    def journalled() -> None:
        journal = Journal(purse, 2**30)
        relay = EventRelay(Sink(), journal, masks=True)  # type: ignore[arg-type]
        for data in told:
            relay.feed(data)
        journal.close()

    before, after = best(plain), best(journalled)
    journal = Journal(purse, 2**30)
    for data in told:
        journal.add(data)
    print(f"a chunk passed on as it is:             {before:6.2f} µs")
    print(f"with its token ids taken out, journal:  {after:6.2f} µs  (+{after - before:.2f})")
    print(f"a chunk's bytes, without and with ids:  {len(bare[5])} and {len(told[5])}")
    print(f"a journal of 1,000 + {CHUNKS:,} tokens:      {purse.used:,} bytes")


if __name__ == "__main__":
    main()
