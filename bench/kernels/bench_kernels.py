"""Sheaf's multi-LoRA kernels against stock vLLM's, a dense loop and the floor; writes bench-out/kernels-<device>.json.

Each cell is measured in one process, Sheaf and stock in turn, through vLLM's own wrapper interface: what a layer calls.
A cell's ratio is the median over rounds of stock's time by Sheaf's in that round, so that a disturbance hits both.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import geometric_mean, median
from time import perf_counter
from typing import Any

import torch
from machine import command, copy_bandwidth, gemm_rate, machine, versions
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shapes import Shape, slots_of_tokens, table
from vllm.config.lora import LoRAConfig
from vllm.lora.layers import LoRAMapping

OUT = Path("bench-out")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Case:
    """A cell's tensors: ``apply`` of a wrapper is what is measured."""

    shape: Shape
    slots: list[int]
    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]
    x: torch.Tensor
    y: torch.Tensor

    def run(self, wrapper: Any) -> Callable[[], None]:
        """What a layer calls."""
        return lambda: wrapper.add_lora_linear(self.y, self.x, self.a, self.b, 1.0, self.shape.widths)


def build(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    """Random adapters in slots padded to the largest rank, as vLLM keeps them."""
    slots = slots_of_tokens(shape)
    count, rank, hidden = max(slots) + 1, shape.max_rank, shape.hidden
    a = tuple(_matrices(count, rank, hidden, hidden**-0.5, dtype, device) for _ in shape.widths)
    b = tuple(_matrices(count, width, rank, 0.01, dtype, device) for width in shape.widths)
    for slot, true in enumerate(shape.ranks(count)):
        for matrix in a:
            matrix[slot, 0, true:] = 0
        for matrix in b:
            matrix[slot, 0, :, true:] = 0
    x = torch.randn(len(slots), hidden, device=device).to(dtype)
    y = torch.randn(len(slots), sum(shape.widths), device=device).to(dtype)
    return Case(shape, slots, a, b, x, y)


def _matrices(count: int, rows: int, columns: int, scale: float, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random matrices [count, 1, rows, columns], each another multiple of one: drawing all would take longest."""
    one = torch.randn(1, 1, rows, columns, device=device).mul_(scale).to(dtype)
    return one * torch.linspace(0.5, 1.5, count, device=device).to(dtype).view(count, 1, 1, 1)


def wrappers(case: Case, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """Sheaf's and stock's, both told about the batch as vLLM does before a step."""
    count = max(case.slots) + 1
    config = LoRAConfig(max_lora_rank=case.shape.max_rank, max_loras=count, lora_dtype=dtype)
    mapping = LoRAMapping(
        tuple(slot + 1 for slot in case.slots), tuple(slot + 1 for slot in case.slots), is_prefill=True
    )
    made = []
    for make in wrapper_classes(device):
        wrapper = make(len(case.slots), max_batches=len(case.slots), device=torch.device(device), lora_config=config)
        wrapper.update_metadata(mapping, list(range(1, count + 1)), count + 1, 32000)
        made.append(wrapper)
    return made[0], made[1]


def wrapper_classes(device: str) -> tuple[Any, Any]:
    """The makers of Sheaf's wrapper and of stock's."""
    if device == "cpu":
        stock = import_module("vllm.lora.punica_wrapper.punica_cpu").PunicaWrapperCPU
        return import_module("sheaf_engine.plugin.cpu").SheafPunicaWrapperCPU, stock
    stock = import_module("vllm.lora.punica_wrapper.punica_gpu").PunicaWrapperGPU
    return import_module("sheaf_engine.plugin.cuda").SheafPunicaWrapperGPU, stock


def dense_loop(case: Case) -> Callable[[], None]:
    """What one writes first: each token by itself, with its adapter's padded matrices."""

    def run() -> None:
        for token, slot in enumerate(case.slots):
            column = 0
            for a, b in zip(case.a, case.b, strict=True):
                width = b.shape[-2]
                case.y[token, column : column + width] += b[slot, 0] @ (a[slot, 0] @ case.x[token])
                column += width

    return run


def milliseconds(run: Callable[[], None], repeats: int, device: str) -> float:
    """The median of some runs; the device is waited for."""
    times = []
    for _ in range(repeats):
        begin = perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - begin)
    return median(times) * 1e3


def measure(
    case: Case, dtype: torch.dtype, device: str, floor: Callable[[Case], float], budget: float
) -> dict[str, Any]:
    """One row of the report."""
    sheaf, stock = (case.run(wrapper) for wrapper in wrappers(case, dtype, device))
    difference = compare(case, sheaf, stock)
    once = milliseconds(stock, 1, device) / 1e3
    rounds = max(3, min(9, int(budget / max(once, 1e-6))))
    repeats = max(1, min(10, int(budget / rounds / max(once, 1e-6))))
    pairs = [(milliseconds(sheaf, repeats * 2, device), milliseconds(stock, repeats, device)) for _ in range(rounds)]
    return {
        **asdict(case.shape),
        "adapters": len(set(case.slots)),
        "sheaf_ms": round(median(mine for mine, _ in pairs), 4),
        "stock_ms": round(median(theirs for _, theirs in pairs), 4),
        "ratio": round(median(theirs / mine for mine, theirs in pairs), 3),
        "dense_loop_ms": round(milliseconds(dense_loop(case), 1, device), 4),
        "floor_ms": round(floor(case), 4),
        "difference": difference,
    }


def compare(case: Case, sheaf: Callable[[], None], stock: Callable[[], None]) -> float:
    """The largest difference between the two results by the largest result; a wrong kernel has no time."""
    kept, results = case.y.clone(), []
    for run in (sheaf, stock):
        case.y.zero_()
        run()
        results.append(case.y.float())
    case.y.copy_(kept)
    difference = float((results[0] - results[1]).abs().max() / results[1].abs().max().clamp_min(1e-9))
    if not difference < 0.05:
        raise SystemExit(f"{case.shape}: Sheaf and stock differ by {difference:.3f}")
    return float(f"{difference:.2g}")


def make_floor(bandwidth: float, rate: float) -> Callable[[Case], float]:
    """Bytes that must move (each adapter in use once, x once, y there and back) or operations, by the slower."""

    def floor(case: Case) -> float:
        ranks, item = case.shape.ranks(max(case.slots) + 1), case.x.element_size()
        sides = case.shape.hidden * len(case.shape.widths) + sum(case.shape.widths)
        weights = sum(ranks[slot] for slot in set(case.slots)) * sides * item
        moved = weights + case.x.numel() * item + 2 * case.y.numel() * item
        operations = 2 * sum(ranks[slot] for slot in case.slots) * sides
        return max(moved / bandwidth, operations / rate) * 1e3

    return floor


def ratios(rows: list[dict[str, Any]], device: str) -> dict[str, float]:
    """The issue's goals; ours over theirs means stock's time by Sheaf's."""
    decode = [row["ratio"] for row in rows if row["phase"] == "decode"]
    prefill = [row for row in rows if row["phase"] == "prefill"]
    found = {
        "prefill_vs_stock_geomean": geometric_mean([row["ratio"] for row in prefill]),
        "decode_vs_stock_geomean": geometric_mean(decode),
        "decode_vs_stock_min": min(decode),
    }
    if device == "cuda":
        found["prefill_vs_roofline"] = geometric_mean([row["floor_ms"] / row["sheaf_ms"] for row in prefill])
    return {key: round(value, 3) for key, value in found.items()}


def show(console: Console, rows: list[dict[str, Any]], found: dict[str, float]) -> None:
    """The table and the ratios, for people."""
    view = Table(
        "phase", "batch", "popularity", "rank", "projection", "sheaf ms", "stock ms", "x", "loop ms", "floor ms"
    )
    for row in rows:
        batch = f"{row['tokens']} / {row['adapters']}"
        numbers = [f"{row[key]:.3g}" for key in ("sheaf_ms", "stock_ms", "ratio", "dense_loop_ms", "floor_ms")]
        rank = str(row["rank"] or "mixed")
        view.add_row(f"{row['phase']} {row['dtype']}", batch, row["popularity"], rank, row["projection"], *numbers)
    console.print(view)
    for key, value in found.items():
        console.print(f"{key}: [bold]{value}[/]")


def main() -> None:
    """Measure every cell and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cells, about a minute")
    parser.add_argument("--threads", type=int, default=0, help="torch threads on CPU (default: torch's own choice)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=0.4, help="seconds of stock's time to spend on a cell")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    dtypes = [name for name in options.dtypes if options.device == "cpu" or name != "float32"]
    console, rows = Console(), []
    floor = make_floor(copy_bandwidth(), gemm_rate())
    cells = [(shape, name) for shape in table(quick=options.quick) for name in dtypes]
    for shape, name in track(cells, "measuring", console=console):
        case = build(shape, DTYPES[name], options.device)
        rows.append({"dtype": name} | measure(case, DTYPES[name], options.device, floor, options.budget))
    found = ratios(rows, options.device)
    show(console, rows, found)
    options.out.mkdir(exist_ok=True)
    path = options.out / f"kernels-{options.device}.json"
    report = {"machine": machine(), "versions": versions(), "command": command(), "rows": rows, "ratios": found}
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"wrote {path}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    main()
