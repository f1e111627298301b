"""What following agents costs one process: `python bench/gateway/bench_polls.py [--pods 1000] [--news 1.0]`.

One process plays all agents, on loopback addresses of their own; each has news every so many seconds (0: never). The
other is measured: the product's pollers and store, CPU seconds for each second of time.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import time

import uvloop
from sheaf_gateway.fleet.agents import AGENT_LIMITS, AgentClient
from sheaf_gateway.fleet.residency import Residency
from sheaf_gateway.fleet.snapshot import read_snapshot
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.proxy.upstream import Pool

ADAPTERS = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What following agents costs one process.")
    parser.add_argument("--pods", type=int, default=1_000)
    parser.add_argument("--news", type=float, default=1.0, help="seconds between an agent's reports; 0: none")
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    agents = multiprocessing.Process(target=_play, args=(ports, options.news), daemon=True)
    agents.start()
    try:
        share, known = uvloop.run(_measure(ports.get(timeout=30), options))
    finally:
        agents.terminate()
        agents.join()
    print(json.dumps({"pods": options.pods, "news_s": options.news, "known": known, "cores": round(share, 4)}))


async def _measure(port: int, options: argparse.Namespace) -> tuple[float, int]:
    pods = [
        {"name": f"p-{n}", "uid": "u", "model": f"m-{n // 10}", "engineUrl": "http://127.0.0.1:1", "ready": True,
         "agentUrl": f"http://127.{1 + n // 65_025}.{n // 255 % 255}.{1 + n % 255}:{port}"}
        for n in range(options.pods)
    ]  # fmt: skip
    store, pool = FleetStore(), Pool(AGENT_LIMITS)
    residency = Residency(store, AgentClient(pool, None))
    store.apply_snapshot(read_snapshot({"version": 1, "pods": pods})[0])
    await residency.first_round(30.0)
    await asyncio.sleep(3.0)
    before, began = _cpu(), time.perf_counter()
    await asyncio.sleep(options.seconds)
    share = (_cpu() - before) / (time.perf_counter() - began)
    known = len(store.states)
    await residency.stop()
    await pool.close()
    return share, known


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _play(ports: "multiprocessing.Queue[int]", news: float) -> None:
    uvloop.run(_agents(ports, news))


async def _agents(ports: "multiprocessing.Queue[int]", news: float) -> None:
    adapters = [{"name": f"a-{n}", "state": "Resident", "digest": "sha256:" + "a" * 64} for n in range(ADAPTERS)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"after=" in head:
                    await asyncio.sleep(news or 20.0)
                version += 1
                state = {"version": version, "model": "m", "engine": "Ready", "engineEpoch": 1, "adapters": adapters,
                         "load": {"running": version % 7, "waiting": 0, "kvUsage": 0.5}}  # fmt: skip
                body = json.dumps(state).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", 0, backlog=4_096)
    ports.put(server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
