"""The agent as a process: one clear line for what is wrong, clean ends, and figures read from an engine's metrics."""

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_agent_helpers import FakeEngine, config_for, engine_running, write_base
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_engine.agent.cli import main
from sheaf_engine.agent.config import load_config
from sheaf_engine.agent.engine_figures import parse_figures
from sheaf_engine.agent.errors import ConfigError, Reason


def written(tmp_path: Path, **changes: Any) -> Path:
    """A configuration file; a change to None leaves the field out."""
    config = json.loads(config_for(tmp_path, "http://127.0.0.1:1").model_dump_json(by_alias=True, exclude_none=True))
    file = tmp_path / "agent.json"
    file.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))
    return file


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model"),
    "model with capitals": ({"model": "Base"}, "model"),
    "misspelt field": ({"capasity": 3}, "capasity"),
    "engine is no url": ({"engineUrl": "localhost:8000"}, "engineUrl"),
    "engine with a path": ({"engineUrl": "http://localhost:8000/x"}, "engineUrl"),
    "no port": ({"listen": "127.0.0.1"}, "listen"),
    "port of text": ({"listen": "127.0.0.1:http"}, "listen"),
    "relative cache": ({"adapterDir": "cache"}, "adapterDir"),
    "relative root": ({"allowedFileRoots": ["a"]}, "allowedFileRoots"),
    "negative capacity": ({"capacity": -1}, "capacity"),
    "rank zero": ({"maxRank": 0}, "maxRank"),
    "no token file": ({"tokenFile": "/nonexistent/token"}, "/nonexistent/token"),
    "short token": ({"tokenFile": "SHORT"}, "token file"),
    "port that does not exist": ({"listen": "127.0.0.1:99999"}, "127.0.0.1:99999"),
    "broken base": ({"modelDir": "BROKEN"}, "config.json"),
    "cache is a file": ({"adapterDir": "FILE"}, "cannot be written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_is_one_line_that_names_the_field(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "SHORT").write_text("abc")
    (tmp_path / "FILE").write_text("")
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "config.json").write_text("[")
    changes, word = WRONG[case]
    real = {key: str(tmp_path / value) if str(value).isupper() else value for key, value in changes.items()}
    assert main(["--config", str(written(tmp_path, **real))]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("error: ")
    assert word in line


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a":' * 10_000, b" " * 2**21])
def test_a_configuration_that_is_not_json_is_one_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "agent.json").write_bytes(content)
    assert main(["--config", str(tmp_path / "agent.json")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.json")


def test_a_port_in_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["--config", str(written(tmp_path, listen=address))]) == 1
    assert f"cannot listen on {address}" in capsys.readouterr().err


@pytest.mark.timeout(20)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_ends_cleanly_on_a_signal_also_with_a_long_poll_open(
    tmp_path: Path, number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    async with engine_running(FakeEngine()) as engine:
        file = written(tmp_path, listen=address, engineUrl=engine.url)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sheaf_engine.agent", "--config", str(file), stderr=asyncio.subprocess.PIPE
        )
        reader, writer = await opened(address)
        token = (tmp_path / "token").read_text()
        writer.write(
            f"GET /v1/state?after=0&wait=60 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n".encode()
        )
        assert b"200" in await reader.readline()
        writer.write(
            f"GET /v1/state?after=99&wait=60 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n".encode()
        )
        process.send_signal(number)
        _, errors = await asyncio.wait_for(process.communicate(), 10)
        writer.close()
        assert (process.returncode, b"Traceback" in errors) == (0, False), errors.decode()


async def opened(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.split(":")
    while True:
        try:
            return await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(0.05)


def test_fetch_prints_the_folder_as_its_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_base(tmp_path / "models" / "base")
    roots = ["--allow-file-root", str(tmp_path / "models")]
    assert main(["fetch", "--source", f"file://{model}", "--to", str(tmp_path / "to"), *roots]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"model-dir {model}"
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "source", ["file:///etc", "hf://nope", "s3://", "gopher://a", "https://127.0.0.1/m", "file:///gone"]
)
def test_fetch_says_in_one_line_why_it_cannot(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--source", source, "--to", str(tmp_path / "to")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_drain_says_in_one_line_that_no_agent_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, listen="127.0.0.1:1")
    assert main(["drain", "--config", str(file), "--deadline", "1"]) == 1
    assert "cannot be asked to drain" in capsys.readouterr().err


def test_figures_are_read_as_vllm_writes_them() -> None:
    text = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base"} 3.0
vllm:num_requests_running{engine="1",model_name="base"} 2.0
vllm:num_requests_waiting{engine="0",model_name="base"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="base",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="base"} 0.375
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",num_gpu_blocks="1000"} 1.0
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="1",num_gpu_blocks="900"} 1.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="pirate,chef",waiting_lora_adapters="poet"} 1.8e+09
process_start_time_seconds 1.7637e+09
"""
    found = parse_figures(text)
    assert (found.load.running, found.load.waiting, found.load.kv_usage) == (5, 7, 0.375)
    assert (found.block_size, found.started) == (32, 1.7637e9)
    assert found.kv_tokens == 28_800
    assert found.active == {"pirate", "chef", "poet"}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from(["vllm:num_requests_running", "{", "}", " ", '"', "=", "NaN", "+Inf", "1", "\n", "#", "-9"])
    )
)
def test_no_text_makes_reading_figures_fail(parts: list[str]) -> None:
    assert parse_figures("".join(parts)).load.running >= 0


def test_every_reason_is_documented() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "adapters.md").read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in text] == []


def test_the_kernels_that_run_are_read_and_are_stock_where_the_engine_does_not_say() -> None:
    assert parse_figures('sheaf:kernels_info{kernels="sheaf",reason="CPU"} 1.0').kernels == "sheaf"
    assert parse_figures("").kernels == "stock"


def test_an_engine_with_sheafs_logits_processor_says_so() -> None:
    assert parse_figures("sheaf:continuation_info 1.0").continues
    assert not parse_figures("sheaf:continuation_info 0.0").continues
    assert not parse_figures("").continues
