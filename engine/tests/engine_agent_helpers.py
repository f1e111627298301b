"""Tiny adapters written byte by byte, and a real HTTP engine on loopback that records what reaches it."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from sheaf_engine.agent.config import AgentConfig
from sheaf_engine.agent.run import Agent, build, outside_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

TOKEN = "a-token-that-is-long-enough"
HIDDEN, HEADS, KV_HEADS, INNER, LAYERS, VOCAB = 32, 4, 2, 64, 2, 100
BASE = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
}
PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
SIZES = {"F16": 2, "BF16": 2, "F32": 4, "I8": 1, "F64": 8}

Shapes = dict[str, tuple[int, ...]]


def lora_shapes(rank: int = 4, layers: int = LAYERS) -> Shapes:
    """q_proj and v_proj of every layer."""
    shapes: Shapes = {}
    for layer in range(layers):
        for module, out in (("q_proj", HIDDEN), ("v_proj", HIDDEN * KV_HEADS // HEADS)):
            start = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            shapes[f"{start}.lora_A.weight"] = (rank, HIDDEN)
            shapes[f"{start}.lora_B.weight"] = (out, rank)
    return shapes


def header_of(shapes: Shapes, dtype: str = "F32") -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    return header


def _end(header: dict[str, Any]) -> int:
    return max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)


def safetensors(header: dict[str, Any] | bytes, data: int | bytes | None = None, *, lies: bool = False) -> bytes:
    if isinstance(header, bytes):
        text = header
    else:
        text = json.dumps(header).encode()
        if data is None:
            data = sum(math.prod(shape) * 4 for shape in lora_shapes().values()) if lies else _end(header)
    content = data if isinstance(data, bytes) else bytes(data or 0)
    return len(text).to_bytes(8, "little") + text + content


def write_adapter(
    folder: Path, *, rank: int = 4, seed: int = 0, config: dict[str, Any] | None = None, shapes: Shapes | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(PEFT | {"r": rank} | (config or {})))
    header = header_of(shapes or lora_shapes(rank))
    header["__metadata__"] = {"seed": str(seed)}
    (folder / "adapter_model.safetensors").write_bytes(safetensors(header))
    return folder


def write_base(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BASE | changes))
    return folder


@dataclass
class FakeEngine:
    """vLLM's adapter endpoints over a dictionary; `calls` records every change that was asked for."""

    adapters: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    started: float | None = 1000.0
    refuse: set[str] = field(default_factory=set)
    active: str = ""
    running: int = 0
    healthy: bool = True
    load_gate: asyncio.Event | None = None
    health_gate: asyncio.Event | None = None
    lists: dict[str, str] = field(default_factory=dict)
    nonsense: bool = False
    url: str = ""

    def restart(self) -> None:
        self.adapters.clear()
        if self.started is not None:
            self.started += 10

    def loads(self) -> list[str]:
        return [name for kind, name, _ in self.calls if kind == "load"]

    async def health(self, _: Request) -> Response:
        if self.health_gate is not None:
            await self.health_gate.wait()
        return Response(status_code=200 if self.healthy else 503)

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": "0.32.0"}) if self.started else PlainTextResponse("no", 500)

    async def models(self, _: Request) -> Response:
        base = {"id": "base", "root": "/models/base", "parent": None, "max_model_len": 2048}
        if self.nonsense:
            return JSONResponse({"data": 7})
        adapters = self.adapters | {name: path for name, path in self.lists.items() if name in self.adapters}
        cards = [{"id": name, "root": path, "parent": "base"} for name, path in adapters.items()]
        return JSONResponse({"object": "list", "data": [base, *cards]})

    async def metrics(self, _: Request) -> Response:
        lines = [
            f'vllm:num_requests_running{{engine="0",model_name="base"}} {self.running}.0',
            'vllm:num_requests_waiting{engine="0",model_name="base"} 0.0',
            'vllm:kv_cache_usage_perc{engine="0",model_name="base"} 0.25',
            'vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="100"} 1.0',
            'vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 1.0',
            f'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{self.active}",waiting_lora_adapters=""}} 2.0',
        ]
        if self.started is not None:
            lines.append(f"process_start_time_seconds {self.started}")
        return PlainTextResponse("\n".join(lines) + "\n")

    async def load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        self.calls.append(("load", name, path))
        if self.load_gate is not None:
            await self.load_gate.wait()
        if name in self.refuse:
            return JSONResponse({"error": {"message": "no such luck", "type": "InternalServerError"}}, 500)
        if name in self.adapters:
            return JSONResponse({"error": {"message": "already been loaded"}}, 400)
        self.adapters[name] = path
        return PlainTextResponse("Success")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        self.calls.append(("unload", name, ""))
        found = self.adapters.pop(name, None)
        return PlainTextResponse("Success") if found else JSONResponse({"error": {"message": "not found"}}, 404)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/version", self.version),
                Route("/v1/models", self.models),
                Route("/metrics", self.metrics),
                Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
            ]
        )


@asynccontextmanager
async def serving(app: Any, port: int = 0, **options: Any) -> AsyncIterator[str]:
    """The base URL of an ASGI app that serves on loopback within this loop."""
    settings: dict[str, Any] = {"log_level": "error", "lifespan": "auto", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(app, port=port, **settings | options))
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
        if task.done():
            task.result()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


class _no_signals:  # noqa: N801
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@asynccontextmanager
async def engine_running(engine: FakeEngine, port: int = 0) -> AsyncIterator[FakeEngine]:
    async with serving(engine.app(), port) as url:
        engine.url = url
        yield engine


@dataclass
class RunningAgent:
    """An agent that serves, and a client that has its token."""

    agent: Agent
    http: httpx.AsyncClient
    url: str

    async def put(self, *entries: dict[str, Any], generation: int = 1) -> httpx.Response:
        return await self.http.put("/v1/catalog", json={"generation": generation, "adapters": list(entries)})

    async def state(self) -> dict[str, Any]:
        return dict((await self.http.get("/v1/state")).json())

    async def adapter(self, name: str) -> dict[str, Any]:
        found = [a for a in (await self.state())["adapters"] if a["name"] == name]
        return dict(found[0]) if found else {}

    async def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = 1.5) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            version = None
            while True:
                query = {} if version is None else {"after": version, "wait": 1}
                state = dict((await self.http.get("/v1/state", params=query)).json())
                if holds(state):
                    return state
                version = state["version"]


def is_in(name: str, *states: str) -> Callable[[dict[str, Any]], bool]:
    return lambda state: any(a["name"] == name and a["state"] in states for a in state["adapters"])


def config_for(tmp_path: Path, engine_url: str, **changes: Any) -> AgentConfig:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    settings: dict[str, Any] = {
        "model": "base",
        "engineUrl": engine_url,
        "listen": "127.0.0.1:0",
        "tokenFile": str(token),
        "modelDir": str(write_base(tmp_path / "model")),
        "adapterDir": str(tmp_path / "adapters"),
        "capacity": 4,
        "allowedFileRoots": [str(tmp_path / "sources")],
        "pollInterval": 0.02,
        "loadTimeout": 1.0,
    }
    return AgentConfig.model_validate(settings | changes)


@asynccontextmanager
async def agent_running(tmp_path: Path, engine: FakeEngine, **changes: Any) -> AsyncIterator[RunningAgent]:
    config = config_for(tmp_path, engine.url, **changes)
    agent = build(config, outside_of(config))
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with (
        serving(agent.app) as url,
        httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, verify=False) as http,
    ):
        try:
            yield RunningAgent(agent, http, url)
        finally:
            agent.supervisor.board.close()
    await agent.client.close()


def entry(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {"name": name, "source": f"file://{folder}", **more}
