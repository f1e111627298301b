"""What an operator has cost so far: calls and writes by its own count, time and memory by the kernel's."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import orjson

WRITES = frozenset({"create", "update", "patch", "delete"})
TICKS = os.sysconf("SC_CLK_TCK")
_CALLS = "sheaf_operator_api_calls_total"


@dataclass(frozen=True)
class Cost:
    """Sums since the operator's start; times are seconds, memory MiB. The Lease's own calls are left out."""

    calls: float = 0.0
    writes: float = 0.0
    turns: float = 0.0
    planning: float = 0.0
    polls: float = 0.0
    cpu: float = 0.0

    def since(self, before: "Cost") -> "Cost":
        """What was spent since."""
        return Cost(*(getattr(self, one.name) - getattr(before, one.name) for one in fields(Cost)))


async def cost(url: str, pid: int) -> Cost:
    """The operator's cost so far."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        figures = dict(_figures(await answer.text()))
    calls = {name: value for name, value in figures.items() if name.startswith(_CALLS) and '"leases"' not in name}
    return Cost(
        calls=sum(calls.values()),
        writes=sum(value for name, value in calls.items() if _verb(name) in WRITES),
        turns=sum(value for name, value in figures.items() if name.startswith("sheaf_operator_turns_total")),
        planning=figures.get("sheaf_operator_planning_seconds_sum", 0.0),
        polls=sum(value for name, value in figures.items() if name.startswith("sheaf_operator_agent_polls_total")),
        cpu=cpu_seconds(pid),
    )


async def is_up(url: str) -> bool:
    """Whether the operator's first view is complete."""
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def _figures(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            yield name, float(value)


def _verb(name: str) -> str:
    return name.partition('verb="')[2].partition('"')[0]


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields_[11]) + int(fields_[12])) / TICKS


def memory(pid: int) -> tuple[float, float]:
    """Memory of a process now and at its peak, MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024


def audited_writes(log: Path, offset: int) -> int | None:
    """Writes of operators in the audit log after that offset, the Lease's aside; None where the log was rotated."""
    if log.stat().st_size < offset:
        return None
    with log.open("rb") as lines:
        lines.seek(offset)
        return sum(_is_write(line) for line in lines)


def _is_write(line: bytes) -> bool:
    if b'"userAgent":"sheaf-operator' not in line or not line.endswith(b"\n"):
        return False
    entry = orjson.loads(line)
    return entry["verb"] in WRITES and entry["objectRef"]["resource"] != "leases"


def machine() -> dict[str, Any]:
    """What this ran on; the load is that before the start."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    total = Path("/proc/meminfo").read_text().split()[1]
    return {
        "processor": next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), ""),
        "cores": os.cpu_count(),
        "memory_gib": round(int(total) / 2**20, 1),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def versions(pins: dict[str, str]) -> dict[str, str]:
    """Of everything that the figures depend on."""
    names = ("kopf", "kubernetes", "aiohttp", "pydantic", "uvloop")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}, **pins}
