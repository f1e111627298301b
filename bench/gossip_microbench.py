"""CPU time of gossip for each request: what the one that serves it pays to tell, and what each other pays to hear.

`python bench/gossip_microbench.py`: batches of so many requests, as they gather in 5 ms, sealed and opened, without
the system calls (about 5 us a datagram and receiver).
"""

import time

from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.fleet.view import Pod
from sheaf_gateway.gossip.hearing import Hearing
from sheaf_gateway.gossip.telling import Teller
from sheaf_gateway.gossip.wire import decode
from sheaf_gateway.peers.seal import opened, sealed
from sheaf_gateway.routing.prefix import BLOCK, chain
from sheaf_gateway.routing.router import Ask, Router

REQUESTS = 20_000
GATHERED = 25
PODS = [Pod(name=f"model-7d9f8c-{place}", model="model", engine_url="http://e", epoch=1) for place in range(8)]


def main() -> None:
    """Measure and print."""
    print(f"{'prompt':>8} {'alone':>8} {'telling':>8} {'hearing':>8} {'bytes':>7}   (us and bytes a request)")
    for size in (2_048, 32_768):
        alone, _, _ = _run(size, tell=False)
        told, heard, sent = _run(size, tell=True)
        print(f"{size:>8} {alone:8.2f} {told - alone:8.2f} {heard:8.2f} {sent:7.0f}")


def _run(size: int, *, tell: bool) -> tuple[float, float, float]:
    router, other, key = Router(), Router(), b"k" * 32
    teller = Teller(1, lambda: None)
    router.teller = teller if tell else None
    hearing = Hearing(2, other, Admission())
    bodies = [chain(seed, bytes([seed % 251]) * size) for seed in range(64)]
    telling = hearing_s = sent = 0.0
    for place in range(REQUESTS // GATHERED):
        began = time.process_time()
        for number in range(GATHERED):
            _request(router, bodies[(place + number) % 64], float(place))
        batches = [sealed(key, payload) for payload in teller.flush(0.0)] if tell else []
        middle = time.process_time()
        for data in batches:
            hearing.take(decode(opened((key,), data) or b""), float(place))
        telling, hearing_s = telling + middle - began, hearing_s + time.process_time() - middle
        sent += sum(map(len, batches))
    return telling / REQUESTS * 1e6, hearing_s / REQUESTS * 1e6, sent / REQUESTS


def _request(router: Router, found: list[int], now: float) -> None:
    ask = Ask(request_id="r", model="model", chain=found, prompt_bytes=len(found) * BLOCK)
    decision = router.decide(ask, PODS, now)
    ticket = router.sent(ask, decision, next(pod for pod in PODS if pod.name == decision.pod), now)
    router.answered(ticket, now, streamed=True)
    router.finished(ticket)


if __name__ == "__main__":
    main()
