"""Starts the two engines of the contract test with one command line: the emulator and real vLLM."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import msgspec
import zmq
from tiny_models import tiny_llama

BLOCK_SIZE, MAX_LEN, MAX_LORAS, MAX_RANK = 32, 1024, 2, 16
MODULES = {"emulator": "sheaf_engine.emulator", "vllm": "vllm.entrypoints.openai.api_server"}
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class ContractEngine:
    """A running engine: a client, its KV events so far, and its ports."""

    name: str
    client: httpx.Client
    subscriber: zmq.Socket[bytes]
    events_port: int
    replay_port: int
    batches: list[tuple[bytes, int, list[Any]]] = field(default_factory=list)

    def post(self, path: str, body: object) -> httpx.Response:
        return self.client.post(path, json=body)

    def chat(self, text: str = "Hello there", **fields: object) -> dict[str, Any]:
        return self.answer("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def complete(self, prompt: object = "Hello there", **fields: object) -> dict[str, Any]:
        return self.answer("/v1/completions", {"prompt": prompt, **fields})

    def answer(self, path: str, fields: dict[str, Any]) -> dict[str, Any]:
        response = self.post(path, {"model": "tiny", "max_tokens": 4, "temperature": 0, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path: str, **fields: object) -> list[dict[str, Any]]:
        """The chunks of a stream, which must end with [DONE]."""
        body = {"model": "tiny", "max_tokens": 4, "temperature": 0, "stream": True, **fields}
        with self.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            events = response.read().decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        assert all(event.startswith("data: ") for event in events[:-1])
        return [json.loads(event[len("data: ") :]) for event in events[:-2]]

    def stream_chat(self, **fields: object) -> list[dict[str, Any]]:
        return self.stream("/v1/chat/completions", **{"messages": [{"role": "user", "content": "Hi"}], **fields})

    def stream_text(self, **fields: object) -> list[dict[str, Any]]:
        return self.stream("/v1/completions", **{"prompt": "Hello there", **fields})

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def stored_events(self, matches: Callable[[dict[str, Any]], bool], wanted: int = 1) -> list[dict[str, Any]]:
        """BlockStored events that match, once there are as many as wanted."""
        deadline = time.monotonic() + 10
        while True:
            events = [event for _, _, batch in self.batches for event in batch[1]]
            found = [event for event in events if event["type"] == "BlockStored" and matches(event)]
            if len(found) >= wanted:
                return found
            assert time.monotonic() < deadline, f"{self.name}: {len(found)} of {wanted} events; last: {events[-3:]}"
            self._receive()

    def _receive(self) -> None:
        if self.subscriber.poll(200):
            topic, number, payload = self.subscriber.recv_multipart()
            self.batches.append((topic, int.from_bytes(number, "big"), msgspec.msgpack.decode(payload)))


@contextmanager
def running(name: str, log: Path) -> Iterator[ContractEngine]:
    """The engine `name`, stopped at the end: within seconds of SIGTERM."""
    port, events_port, replay_port = free_ports(3)
    environment = {**os.environ, **VLLM_ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", MODULES[name], *arguments(port, events_port, replay_port)]
    command += ["--profile", "instant"] if name == "emulator" else logits_processor()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        with connected(name, port, events_port, replay_port) as engine:
            wait_until_healthy(engine, process, log)
            yield engine
    finally:
        stop(process)


def logits_processor() -> list[str]:
    """The flag for Sheaf's logits processor where the installed distribution does not announce it."""
    announced = [found.value for found in entry_points(group="vllm.logits_processors")]
    processor = "sheaf_engine.plugin.continuation:ContinuationProcessor"
    return [] if processor in announced else ["--logits-processors", processor]


def arguments(port: int, events_port: int, replay_port: int) -> list[str]:
    """vLLM's command line, which the emulator takes as it is."""
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{events_port}",
        "replay_endpoint": f"tcp://*:{replay_port}",
        "topic": "kv",
    }
    flags = {
        "--model": tiny_llama(),
        "--served-model-name": "tiny",
        "--host": "127.0.0.1",
        "--port": port,
        "--block-size": BLOCK_SIZE,
        "--dtype": "float32",
        "--max-model-len": MAX_LEN,
        "--max-num-seqs": 16,
        "--max-loras": MAX_LORAS,
        "--max-lora-rank": MAX_RANK,
        "--max-cpu-loras": 4,
        "--kv-events-config": json.dumps(events),
    }
    switches = ["--enforce-eager", "--enable-lora", "--enable-prompt-tokens-details"]
    return [*switches, *(str(part) for flag in flags.items() for part in flag)]


@contextmanager
def connected(name: str, port: int, events_port: int, replay_port: int) -> Iterator[ContractEngine]:
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.subscribe(b"")
        subscriber.connect(f"tcp://127.0.0.1:{events_port}")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield ContractEngine(name, client, subscriber, events_port, replay_port)


def wait_until_healthy(engine: ContractEngine, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 500
    while True:
        assert process.poll() is None, f"{engine.name} ended: {log.read_text(errors='replace')[-3000:]}"
        assert time.monotonic() < deadline, f"{engine.name} does not start: {log.read_text(errors='replace')[-3000:]}"
        try:
            if engine.client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
