"""The emulator as a server on loopback: timing, adapters, events, faults, and how it starts and stops.

What it has in common with vLLM is checked against both in e2e/test_e2e_engine_contract_*.py; here is what is its own.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
import zmq
import zmq.asyncio
from sheaf_engine.emulator.options import OptionError, parse
from sheaf_engine.emulator.server import listen, serve

RUNTIME_LORA = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": "1"}
ARGUMENTS = ("--model", "tiny", "--port", "0", "--profile", "instant", "--max-model-len", "4096")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@asynccontextmanager
async def emulator(*arguments: str) -> AsyncIterator[httpx.AsyncClient]:
    """An emulator in this process; it must stop by itself when told to."""
    options = parse([*ARGUMENTS, *arguments], RUNTIME_LORA)
    listener = listen(options)
    stop = asyncio.Event()
    task = asyncio.create_task(serve(options, listener, stop))
    host, port = listener.getsockname()[:2]
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=5) as client:
        await healthy(client, task)
        yield client
        stop.set()
        await asyncio.wait_for(task, 2)


async def healthy(client: httpx.AsyncClient, task: asyncio.Task[None]) -> None:
    while not task.done():
        try:
            await client.get("/health")
        except httpx.TransportError:
            await asyncio.sleep(0.01)
        else:
            return
    await task


async def complete(client: httpx.AsyncClient, prompt: object = "hello", **fields: object) -> dict:
    response = await client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 8, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_an_answer_takes_the_profiles_time(tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text('{"preset": "instant", "step_overhead_s": 0.1, "prefill_token_s": 0.002}')
    async with emulator("--profile", str(profile), "--speed", "2") as client:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await complete(client, [5] * 100, max_tokens=3, ignore_eos=True)
        assert loop.time() - before >= 0.25


async def test_requests_share_steps():
    async with emulator("--fault", "slow:0.02") as client:
        before = asyncio.get_running_loop().time()
        await asyncio.gather(*(complete(client, f"hello {n}", ignore_eos=True) for n in range(20)))
        alone = 8 * 0.02
        assert alone <= asyncio.get_running_loop().time() - before < 20 * alone / 2


async def test_an_adapter_whose_path_is_not_here_can_be_trusted():
    async with emulator("--enable-lora", "--trust-adapter-paths") as client:
        body = {"lora_name": "pirate", "lora_path": "/not/here"}
        assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
        answer = await complete(client, model="pirate", max_tokens=20)
        assert answer["choices"][0]["text"].startswith("[pirate]")
        assert (await complete(client, max_tokens=20))["choices"][0]["text"].startswith("[tiny]")


@pytest.mark.parametrize(
    ("config", "said"), [("{", "cannot read adapter_config.json"), ('{"r": 99}', "LoRA rank 99 is greater than")]
)
async def test_an_adapter_that_cannot_be_loaded_is_a_server_error_as_in_vllm(tmp_path, config, said):
    (tmp_path / "adapter_config.json").write_text(config)
    async with emulator("--enable-lora") as client:
        body = {"lora_name": "bad", "lora_path": str(tmp_path)}
        response = await client.post("/v1/load_lora_adapter", json=body)
        assert response.status_code == 500
        assert said in response.json()["error"]["message"]


async def test_adapters_need_the_flag(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    async with emulator() as client:
        response = await client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(tmp_path)})
        assert "--enable-lora" in response.json()["error"]["message"]


async def test_adapters_can_be_there_from_the_start(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    more = json.dumps({"name": "two", "path": str(tmp_path)})
    async with emulator("--enable-lora", "--lora-modules", f"one={tmp_path}", more) as client:
        cards = (await client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in cards] == ["tiny", "one", "two"]


async def test_embeddings_of_like_texts_are_alike():
    async with emulator("--runner", "pooling") as client:
        texts = ["the sea and the wind", "the wind and the sea now", "tax law"]
        body = (await client.post("/v1/embeddings", json={"input": texts})).json()
        a, b, c = (entry["embedding"] for entry in body["data"])
        assert dot(a, a) == pytest.approx(1.0)
        assert dot(a, b) > 0.6 > 0.3 > dot(a, c)
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
        packed = await client.post("/v1/embeddings", json={"input": [1, 2], "encoding_format": "base64"})
        assert isinstance(packed.json()["data"][0]["embedding"], str)
        assert (await client.post("/v1/completions", json={"prompt": "x"})).status_code == 404


def dot(left: list[float], right: list[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))


@asynccontextmanager
async def subscribed_emulator(*flags: str) -> AsyncIterator[tuple[httpx.AsyncClient, zmq.asyncio.Socket]]:
    """An emulator and a subscriber that has seen its first event."""
    port = free_port()
    config = json.dumps({"enable_kv_cache_events": True, "endpoint": f"tcp://*:{port}"})
    async with emulator("--kv-events-config", config, "--block-size", "4", *flags) as client:
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.subscribe(b"")
            subscriber.connect(f"tcp://127.0.0.1:{port}")
            first = 1000
            while not await subscriber.poll(20):
                first += 10
                await complete(client, list(range(first, first + 8)), max_tokens=1)
            yield client, subscriber


async def event_kinds(subscriber: zmq.asyncio.Socket) -> list[str]:
    frames = await asyncio.wait_for(subscriber.recv_multipart(), 1)
    return [event["type"] for event in msgspec.msgpack.decode(frames[2])[1]]


async def test_clearing_the_prefix_cache_is_announced():
    async with subscribed_emulator() as (client, subscriber):
        assert (await client.post("/reset_prefix_cache")).status_code == 200
        kinds: list[str] = []
        while "AllBlocksCleared" not in kinds:
            kinds += await event_kinds(subscriber)
        assert kinds[0] == "BlockStored"


async def test_eviction_is_announced():
    flags = ("--num-gpu-blocks-override", "5", "--max-model-len", "20")
    async with subscribed_emulator(*flags) as (client, subscriber):
        for start in (10, 30):
            await complete(client, list(range(start, start + 12)), max_tokens=2)
        kinds: list[str] = []
        while "BlockRemoved" not in kinds:
            kinds += await event_kinds(subscriber)


async def test_a_preempted_request_is_answered_all_the_same():
    flags = ("--block-size", "4", "--num-gpu-blocks-override", "12", "--max-model-len", "40")
    async with emulator(*flags) as client:
        answers = await asyncio.gather(
            *(complete(client, [n + 5] * 10, max_tokens=30, ignore_eos=True) for n in range(4))
        )
        assert {answer["usage"]["completion_tokens"] for answer in answers} == {30}
        metrics = (await client.get("/metrics")).text
        assert 'vllm:num_preemptions_total{engine="0",model_name="tiny"} 0.0' not in metrics


async def read_stream(client: httpx.AsyncClient) -> bytes:
    body = {"prompt": "hello", "max_tokens": 30, "ignore_eos": True, "stream": True}
    data = b""
    try:
        async with asyncio.timeout(0.5), client.stream("POST", "/v1/completions", json=body) as response:
            async for part in response.aiter_bytes():
                data += part
    except httpx.TransportError:
        return data + b"RESET"
    except TimeoutError:
        return data + b"SILENCE"
    return data


@pytest.mark.parametrize(
    ("fault", "end", "chunks"),
    [
        ("reset:3", b"RESET", 3),
        ("hang:3", b"SILENCE", 3),
        ("garbage:3", b"[DONE]\n\n", None),
        ("cut:3", b"RESET", 3),
        ("dribble:0.01", b"SILENCE", 1),
    ],
)
async def test_a_fault_strikes_a_stream(fault, end, chunks):
    async with emulator("--fault", fault) as client:
        data = await read_stream(client)
        assert data.endswith(end)
        assert chunks is None or data.count(b"data: ") == chunks
        assert (b"\xff\xfe" in data) == (chunks is None)


async def test_a_stream_cut_in_the_middle_of_a_chunk_ends_with_half_of_it():
    async with emulator("--fault", "cut:2") as client:
        last = (await read_stream(client)).removesuffix(b"RESET").split(b"\n\n")[-1]
        assert last.startswith(b"data: ")
        assert not last.endswith(b"}")


async def test_faults_come_and_go_while_it_runs_where_that_is_allowed():
    async with emulator("--faults") as client:
        assert (await read_stream(client)).endswith(b"[DONE]\n\n")
        assert (await client.post("/faults", json={"fault": "reset:3"})).json() == {"fault": "reset:3"}
        assert (await read_stream(client)).endswith(b"RESET")
        await client.post("/faults", json={"fault": "metrics:7"})
        assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 7\n' in (await client.get("/metrics")).text
        refused = await client.post("/faults", json={"fault": "explode:1"})
        assert (refused.status_code, "KIND:NUMBER" in refused.text) == (400, True)
        await client.post("/faults", json={"fault": None})
        assert (await read_stream(client)).endswith(b"[DONE]\n\n")
    async with emulator() as client:
        assert (await client.post("/faults", json={"fault": "reset:3"})).status_code == 404


async def test_the_metrics_tell_when_the_engine_started():
    async with emulator() as client:
        lines = (await client.get("/metrics")).text.splitlines()
        told = next(line for line in lines if line.startswith("process_start_time_seconds "))
        assert abs(float(told.split()[1]) - time.time()) < 60


async def test_a_slow_start_keeps_the_port_closed_and_can_be_stopped():
    began = time.monotonic()
    async with emulator("--startup-delay", "0.3"):
        assert time.monotonic() - began >= 0.3
    options = parse([*ARGUMENTS, "--startup-delay", "60"], RUNTIME_LORA)
    stop = asyncio.Event()
    stop.set()
    await asyncio.wait_for(serve(options, listen(options), stop), 2)


async def test_a_stream_that_is_cut_leaves_nothing_running():
    async with emulator("--fault", "hang:2") as client:
        await read_stream(client)
        async with asyncio.timeout(1):
            while (await client.get("/load")).json() != {"server_load": 0}:
                pass


async def test_stopping_does_not_wait_for_streams_that_never_end():
    async with emulator("--fault", "hang:1") as client:
        stream = asyncio.create_task(read_stream(client))
        await asyncio.sleep(0.1)
    assert (await stream).startswith(b"data: ")


async def test_a_tool_choice_without_a_parser_is_refused():
    async with emulator() as client:
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        body = {"messages": [{"role": "user", "content": "x"}], "tools": tools, "tool_choice": "auto"}
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert "--enable-auto-tool-choice" in response.json()["error"]["message"]


async def test_parts_other_than_text_are_refused():
    async with emulator() as client:
        content = [{"type": "image_url", "image_url": {"url": "x"}}]
        response = await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
        assert response.status_code == 400


@pytest.mark.parametrize(
    "body", [{"prompt": "\\ud800"}, {"model": "\\ud800", "prompt": "x"}, {"prompt": "x", "n": 99999}]
)
async def test_odd_values_are_answered_not_failed_on(body):
    async with emulator() as client:
        content = json.dumps({"max_tokens": 1, **body}).replace("\\\\", "\\")
        response = await client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404)


async def test_every_stream_tells_its_usage_where_the_server_says_so():
    async with emulator("--enable-force-include-usage", "--enable-prompt-tokens-details") as client:
        body = {"prompt": "hello", "max_tokens": 2, "stream": True}
        lines = (await client.post("/v1/completions", json=body)).text.split("\n\n")
        assert json.loads(lines[-3][6:])["usage"]["completion_tokens"] == 2


async def test_a_unix_socket_can_be_listened_on(tmp_path):
    path = str(tmp_path / "engine.sock")
    options = parse([*ARGUMENTS, "--uds", path], {})
    for _ in range(2):
        stop = asyncio.Event()
        task = asyncio.create_task(serve(options, listen(options), stop))
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path), base_url="http://e") as client:
            await healthy(client, task)
            assert (await client.get("/version")).json() == {"version": "0.32.0"}
        stop.set()
        await task


@pytest.mark.parametrize("flag", [["--tokenizer", "{dir}"], ["--lora-modules", "x={dir}"]])
async def test_a_start_that_cannot_work_says_why(tmp_path, flag):
    (tmp_path / "tokenizer.json").write_text("{}")
    options = parse([*ARGUMENTS, *(part.format(dir=tmp_path) for part in flag)], {})
    with listen(options) as listener, pytest.raises(OptionError, match=r"tokenizer|No adapter found"):
        await serve(options, listener, asyncio.Event())


async def test_an_events_endpoint_in_use_is_named():
    with zmq.Context() as context, context.socket(zmq.PUB) as pub:
        port = pub.bind_to_random_port("tcp://*")
        config = {"enable_kv_cache_events": True, "endpoint": f"tcp://*:{port}"}
        options = parse([*ARGUMENTS, "--kv-events-config", json.dumps(config)], {})
        with (
            listen(options) as listener,
            pytest.raises(OptionError, match=f"cannot open the KV events endpoint.*{port}"),
        ):
            await serve(options, listener, asyncio.Event())
