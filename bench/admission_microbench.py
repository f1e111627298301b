"""What the door costs by itself: `python bench/admission_microbench.py [--requests 20000] [--repeats 5]`.

No sockets: the pure decisions alone, in microseconds of CPU for each request, medians of the repeats. `admit` is an
uncontended request from the door to its end (decide, routed, release), plain and under each policy with limits;
`queue` is one that waits (decide, next_waiter, release) behind as many as named, of as many tenants; `figures` is what
an SLO's books cost for one outcome.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from sheaf_gateway.admission.admission import Admission
from sheaf_gateway.admission.attainment import Attainment, Bound, Outcome
from sheaf_gateway.admission.terms import Ask, Policy, Terms, Work
from sheaf_gateway.fleet.view import Rate

RATE = Rate(requests_per_minute=10**9, tokens_per_minute=10**12, max_concurrent=10**6)
SCOPES = (("key `a`", RATE), ("tenant `a` by SLO `chat`", RATE))
GOAL_US = 15.0


def asks(count: int, policy: Policy, tenants: int, slots: int, *, limited: bool = False) -> list[Ask]:
    """Requests of some tenants in turn."""
    terms = Terms(policy=policy, weights={"t0": 4}, ttft=1e6, ttft_limit=None)
    return [
        Ask(
            request_id=str(number),
            model="m",
            availability="Ready",
            slots=slots,
            tenant=f"t{number % tenants}",
            terms=terms,
            scopes=SCOPES if limited else (),
            tokens=700.0,
            prompt=600.0,
            max_queue=10**6,
            max_wait=1e6,
        )
        for number in range(count)
    ]


def admit(count: int, policy: Policy, *, limited: bool) -> float:
    """Seconds for requests that enter at once, one after the other, eight under way."""
    door, requests, under_way = Admission(), asks(count, policy, 10, 100, limited=limited), []
    began = time.process_time()
    for number, ask in enumerate(requests):
        now = number * 1e-4
        door.decide(ask, now)
        door.routed(ask, 100.0)
        under_way.append(ask)
        if len(under_way) > 8:
            door.release(under_way.pop(0), now, used_tokens=650.0, uncached=90.0, output=50.0, service_s=0.1)
    return time.process_time() - began


def queue(count: int, policy: Policy, depth: int, tenants: int) -> float:
    """Seconds for requests that all wait, behind `depth` others."""
    door, requests = Admission(), asks(count + depth + 1, policy, tenants, 1)
    works = [Work(100.0, float(number % 500), 0.01) for number in range(len(requests))]
    running = requests[0]
    door.decide(running, 0.0)
    for number in range(1, depth + 1):
        door.decide(requests[number], 0.0, lambda number=number: works[number])
    began = time.process_time()
    for number in range(depth + 1, len(requests)):
        now = number * 1e-4
        door.decide(requests[number], now, lambda number=number: works[number])
        door.release(running, now, uncached=100.0, output=50.0, service_s=0.1)
        called = door.next_waiter("m", 1, now)
        if called is None:
            raise RuntimeError("somebody waits, and nobody was called")
        running = called
    return time.process_time() - began


def figures(count: int) -> float:
    """Seconds for outcomes counted under an SLO with four promises."""
    bounds = [Bound("ttft", 0.5, 0.2), Bound("ttft", 0.95, 0.8), Bound("tpot", 0.95, 0.06), Bound("e2e", 0.99, 30.0)]
    books = Attainment(bounds, 0.0)
    outcomes = [Outcome(0.1 + number % 97 / 100, 0.02, 3.0) for number in range(count)]
    began = time.process_time()
    for number, outcome in enumerate(outcomes):
        books.answered(outcome, number * 1e-3)
    return time.process_time() - began


def cases(count: int) -> dict[str, Callable[[], float]]:
    """Every measurement by name."""
    found: dict[str, Callable[[], float]] = {
        "admit, no SLO": lambda: admit(count, "None", limited=False),
        "admit, VTC, limits": lambda: admit(count, "VTC", limited=True),
        "admit, DLPM, limits": lambda: admit(count, "DLPM", limited=True),
        "figures": lambda: figures(count),
    }
    few = max(500, count // 10)
    for policy in ("None", "VTC", "DLPM"):
        for depth, tenants in ((100, 10), (1_000, 10), (1_000, 200)):
            name = f"queue, {policy}, {depth} waiting, {tenants} tenants"
            found[name] = lambda policy=policy, depth=depth, tenants=tenants: (
                queue(few, policy, depth, tenants) * count / few
            )
    return found


def main() -> None:
    """Measure, print the table, write it where asked."""
    parser = argparse.ArgumentParser(description="CPU time of the gateway's admission")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'case':44} {'µs/request':>10} {'lowest':>8}")
    for name, measure in cases(options.requests).items():
        times = sorted(measure() / options.requests * 1e6 for _ in range(options.repeats))
        rows.append({"case": name, "us": median(times), "lowest_us": times[0]})
        print(f"{name:44} {median(times):10.2f} {times[0]:8.2f}")
    worst = max(row["us"] for row in rows if row["case"].startswith("admit"))
    print(f"uncontended: {worst:.2f} µs of {GOAL_US:g} allowed")
    if options.out is not None:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
