"""What operators and gateways logged as an error, as far as the kubelets still have it.

That a call to the API server is made again while that is away is no surprise, though kopf calls it an error.
"""

from __future__ import annotations

from pathlib import Path

from resilience.fleet import Fleet

SIGNS = ('"level":"error"', '"level": "error"', "Traceback (most recent call last)")
RETRIED = "Request attempt "
PARTS = ("operator", "gateway")


def surprises(fleet: Fleet) -> list[str]:
    """Their error lines, each with its pod."""
    machines = fleet.cluster.layout.state / "machines"
    pattern = f"*/pod-logs/{fleet.namespace}_sheaf-*/*/*.log"
    return [line for log in machines.glob(pattern) if log.parent.name in PARTS for line in _bad(log)]


def _bad(log: Path) -> list[str]:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [f"{log.parent.parent.name}: {line}" for line in lines if _surprising(line)]


def _surprising(line: str) -> bool:
    return RETRIED not in line and any(sign in line for sign in SIGNS)
