"""The operator in a process that ends itself, with no good-bye, before or after its Nth write. For tests only."""

from __future__ import annotations

import multiprocessing
import os
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from sheaf_operator.__main__ import main
from sheaf_operator.cluster.agent_calls import AgentCalls
from sheaf_operator.cluster.kubernetes.client import ApiServer

KILLED = 137
READS = ("get", "list")


@dataclass(frozen=True)
class Orders:
    """When to end: at the Nth write after the file `armed` is there, before it is sent or after it was answered."""

    armed: Path
    log: Path
    at: int = 0
    when: str = "before"


def start(config: Path, kubeconfig: Path, orders: Orders) -> ForkServerProcess:
    """Start an operator; forked from a process that has everything imported, so it begins at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in sys.modules if name.startswith("sheaf_operator.")])
    process = context.Process(target=operate, args=(config, kubeconfig, orders), daemon=True)
    process.start()
    return process


def operate(config: Path, kubeconfig: Path, orders: Orders) -> None:
    """The process: the product as it is, with its writes counted."""
    count_writes(orders)
    with Path(f"{orders.log}.log").open("a", buffering=1) as log:
        sys.stderr = log
        code = main(["--config", str(config), "--kubeconfig", str(kubeconfig)])
        sys.stderr = sys.__stderr__
    sys.exit(code)


def count_writes(orders: Orders) -> None:
    """Wrap the two places through which every write leaves the process; the Lease is not counted."""
    to_api, to_agent, count = ApiServer._request, AgentCalls._call, 0

    async def write(what: str, send: Any) -> Any:
        nonlocal count
        if not orders.armed.exists():
            return await send()
        count += 1
        mine = count
        with orders.log.open("a") as file:
            file.write(f"{mine} {what}\n")
        if mine == orders.at and orders.when == "before":
            os._exit(KILLED)
        try:
            return await send()
        finally:
            if mine == orders.at:
                os._exit(KILLED)

    async def request(self: Any, verb: str, path: str, resource: Any, *rest: Any) -> Any:
        def send() -> Any:
            return to_api(self, verb, path, resource, *rest)

        if verb in READS or resource.plural == "leases":
            return await send()
        return await write(f"{verb} {path.rpartition('/namespaces/')[2].partition('/')[2]}", send)

    async def call(self: Any, method: str, url: str, **rest: Any) -> Any:
        def send() -> Any:
            return to_agent(self, method, url, **rest)

        return await send() if method == "GET" else await write(f"{method} {url}", send)

    ApiServer._request, AgentCalls._call = request, call  # type: ignore[method-assign]
