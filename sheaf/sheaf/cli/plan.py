"""`sheaf plan`: the cheapest mix of accelerators for a trace and a promise, before anything is bought."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sheaf_operator.planning.autoscaling import Promise, Work
from sheaf_operator.planning.autoscaling.mix import Bucket, Kind, Mix, mix, profile_table
from sheaf_operator.planning.autoscaling.speeds import BY_ACCELERATOR, PRESETS

from sheaf.cli.errors import CliError
from sheaf.simulator.calls import Call
from sheaf.simulator.market import DEFAULT_PRICES, read_prices
from sheaf.simulator.traces import TraceError, read_trace

LARGEST_BUCKETS = 24


def plan(
    trace: Annotated[Path, typer.Option(help="Requests: Mooncake or Sheaf JSON lines, Azure CSV.")],
    ttft: Annotated[float, typer.Option(min=0.001, help="Seconds to the first token, for 95 % of requests.")] = 2.0,
    tpot: Annotated[float, typer.Option(min=0.001, help="Seconds for each further token, for 95 %.")] = 0.2,
    prices: Annotated[Path | None, typer.Option(help="JSON of prices an hour by accelerator type.")] = None,
    kinds: Annotated[str, typer.Option(help="Accelerator types, with commas [default: all that are known].")] = "",
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests a second [default: the trace's].")] = None,
) -> int:
    """Show how many pods of which accelerators serve a trace's requests within a promise at the least price."""
    try:
        calls = read_trace(trace)
        costs = read_prices(prices) if prices else DEFAULT_PRICES
    except TraceError as error:
        raise CliError(str(error)) from error
    chosen = [_kind(name, {key: price.on_demand for key, price in costs.items()}) for name in _names(kinds)]
    buckets = _buckets(calls, rate)
    promise = Promise(ttft=((0.95, ttft),), tpot=((0.95, tpot),))
    table = profile_table(chosen, buckets, promise)
    found = mix(chosen, buckets, table)
    if found is None:
        raise CliError("no accelerator keeps the promise for every length of request; raise --ttft or --tpot")
    _show(chosen, buckets, table, found)
    return 0


def _names(kinds: str) -> list[str]:
    return [name for name in kinds.split(",") if name] or list(BY_ACCELERATOR)


def _kind(name: str, costs: Mapping[str, float]) -> Kind:
    if name not in BY_ACCELERATOR or name not in costs:
        raise CliError(f"--kinds {name}: its speed or price is not known; there are {', '.join(BY_ACCELERATOR)}")
    return Kind(name, costs[name], PRESETS[BY_ACCELERATOR[name]])


def _buckets(calls: Sequence[Call], rate: float | None) -> list[Bucket]:
    """Requests by powers of four of both lengths, the rarest joined into the longest."""
    if not calls:
        raise CliError("the trace has no requests")
    mean = len(calls) / max(calls[-1].arrival, 1.0) if rate is None else rate
    groups: defaultdict[tuple[int, int], list[Call]] = defaultdict(list)
    for call in calls:
        groups[_place(call.input_tokens), _place(call.output_tokens)].append(call)
    common = Counter({place: len(some) for place, some in groups.items()}).most_common(LARGEST_BUCKETS)
    return [_bucket(groups[place], mean / len(calls)) for place, _ in sorted(common)]


def _place(tokens: int) -> int:
    return int(math.log(max(1, tokens), 4))


def _bucket(calls: Sequence[Call], each: float) -> Bucket:
    prompt = sum(call.input_tokens for call in calls) / len(calls)
    square = sum(call.input_tokens**2 for call in calls) / len(calls)
    output = sum(call.output_tokens for call in calls) / len(calls)
    spread = max(0.0, square / prompt**2 - 1.0)
    return Bucket(Work(prompt, prompt, output, spread, *_contexts(calls)), each * len(calls))


def _contexts(calls: Sequence[Call]) -> tuple[float, float]:
    """What decoding sequences have behind them, over all steps: the mean, and its squared coefficient of variation."""
    lengths = [(float(call.input_tokens), float(call.output_tokens)) for call in calls]
    steps = sum(output for _, output in lengths)
    if not steps:
        return 0.0, 0.0
    mean = sum(output * (prompt + output / 2.0) for prompt, output in lengths) / steps
    square = sum(output * (prompt**2 + prompt * output + output**2 / 3.0) for prompt, output in lengths) / steps
    return mean, max(0.0, square / mean**2 - 1.0)


def _show(kinds: Sequence[Kind], buckets: Sequence[Bucket], table: Mapping[str, Sequence[float]], found: Mix) -> None:
    shown = Table("PROMPT", "OUTPUT", "REQUESTS/S", *(f"{kind.name} (a pod serves)" for kind in kinds), box=None)
    for place, bucket in enumerate(buckets):
        cells = [f"{found.shares[kind.name][place]:.2f} ({table[kind.name][place]:.2f})" for kind in kinds]
        shown.add_row(f"{bucket.work.prompt:.0f}", f"{bucket.work.output:.0f}", f"{bucket.rate:.2f}", *cells)
    Console(width=140).print(shown)
    pods = ", ".join(f"{count} {name}" for name, count in found.pods.items() if count)
    print(f"{pods or 'no pods'}: {found.cost:.2f} an hour{'' if found.proven else ' (a cheaper mix may exist)'}")
