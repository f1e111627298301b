"""The emulator's command line: vLLM's flags, clear errors, and the process around it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import pytest
from sheaf_engine.emulator.options import OptionError, Options, parse

BASE = ("--model", "m")


def options(*arguments: str, **environment: str) -> Options:
    return parse([*BASE, *arguments], environment)


def test_vllms_flags_change_the_profile():
    profile = options(
        *("--max-model-len", "1024", "--max_num_seqs=8", "--max-num-batched-tokens", "512", "--max-loras", "64"),
        *("--block-size", "32", "--no-enable-prefix-caching", "--profile", "h100-8b"),
    ).profile
    assert (profile.max_model_len, profile.max_num_seqs, profile.max_num_batched_tokens) == (1024, 8, 512)
    assert (profile.max_loras, profile.max_cpu_loras, profile.block_size) == (64, 64, 32)
    assert profile.num_blocks == 12500
    assert not profile.prefix_caching
    assert options("--num-gpu-blocks-override", "9999").profile.num_blocks == 9999


def test_flags_without_meaning_here_are_taken_and_listed():
    parsed = options("--enforce-eager", "--dtype", "float32", "--gpu-memory-utilization=0.9", "-O3")
    assert parsed.ignored == ("--enforce-eager", "--dtype", "--gpu-memory-utilization=0.9")


def test_the_environment_says_whether_adapters_change_at_run_time():
    assert options(VLLM_ALLOW_RUNTIME_LORA_UPDATING="True").runtime_lora
    assert options(VLLM_ALLOW_RUNTIME_LORA_UPDATING="1").runtime_lora
    assert not options(VLLM_ALLOW_RUNTIME_LORA_UPDATING="0").runtime_lora
    assert not options().runtime_lora


def test_names_default_to_the_model():
    assert options().served_names == ("m",)
    assert options("--served-model-name", "a", "b").served_names == ("a", "b")
    assert options("--task", "embed").embeds
    assert options("--lora-modules", "a=/x").lora_modules == (("a", "/x"),)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "high"], "--port"),
        (["--profile", "h900"], "no timing preset 'h900'"),
        (["--speed", "0"], "--speed must be above 0"),
        (["--max-model-len", "999999999"], "raise num_blocks"),
        (["--max-num-seqs", "100000"], "max_num_batched_tokens must be at least"),
        (["--block-size", "0"], "block_size cannot be 0"),
        (["--kv-events-config", "{"], "--kv-events-config"),
        (["--kv-events-config", '{"publisher": "kafka"}'], "--kv-events-config: publisher"),
        (["--kv-events-config", '{"speed": 1}'], "--kv-events-config: speed"),
        (["--lora-modules", "x"], "not NAME=PATH"),
        (["--lora-modules", '{"name": "x"}'], "keys name and path"),
        (["--fault", "boom:1"], "--fault"),
        (["--startup-delay", "-1"], "--startup-delay must be 0"),
    ],
)
def test_a_command_line_that_cannot_work_is_refused_with_the_reason(arguments, said):
    with pytest.raises(OptionError, match=said):
        options(*arguments)


def test_a_profile_file_is_read_and_its_mistakes_named(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"preset": "instant", "max_loras": 3}')
    assert options("--profile", str(path)).profile.max_loras == 3
    path.write_text('{"max_lora": 3}')
    with pytest.raises(OptionError, match="unknown timing profile field 'max_lora'"):
        options("--profile", str(path))


def test_a_model_is_needed():
    with pytest.raises(OptionError, match="--model"):
        parse([], {})


async def run(*arguments: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "sheaf_engine.emulator", *BASE, *arguments)
    return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_with_status_0(number):
    process = await run("--port", "0", "--profile", "instant")
    async with asyncio.timeout(20):
        while b"emulator listens" not in await process.stderr.readline():
            assert process.returncode is None
        await asyncio.sleep(0.05)
        process.send_signal(number)
        assert await process.wait() == 0


@pytest.mark.timeout(30)
async def test_a_port_in_use_is_one_line_and_status_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await run("--port", str(port))
        _, said = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert said.decode().splitlines() == [
        f"emulator: cannot listen on 127.0.0.1:{port}: Address already in use; choose another"
    ]
