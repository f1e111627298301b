"""Real vLLM with Sheaf's kernels says what stock vLLM says, for many adapters in one batch and for each alone; and
which kernels run is told as it is, by the engine and by the agent beside it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import running_sheaf
from tiny_models import tiny_adapter, tiny_llama

RANKS = {"ewe": 8, "ram": 16, "lamb": 4, "wether": 16}
NAMES = ["base", *RANKS]
ARGUMENTS = ["--enable-lora", "--max-loras", str(len(RANKS)), "--max-lora-rank", "16", "--block-size", "32"]
ARGUMENTS += ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"]
PROMPTS = [
    "The capital of France is",
    "A sheaf binds many stalks together; one band holds them all, " * 6,
    "Please write a short poem about the sea.",
]
TIE = 1e-4


@dataclass(frozen=True)
class Said:
    """A greedy answer: the tokens, and at each step how far the best token was ahead of the second best."""

    tokens: tuple[str, ...]
    leads: tuple[float, ...]


def ask(url: str, model: str, prompt: str) -> Said:
    body = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0, "logprobs": 2, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120).raise_for_status().json()
    logprobs = answer["choices"][0]["logprobs"]
    leads = [max(top.values()) - min(top.values()) if len(top) > 1 else 0.0 for top in logprobs["top_logprobs"]]
    return Said(tuple(logprobs["tokens"]), tuple(leads))


def alone(url: str) -> dict[tuple[str, str], Said]:
    return {(name, prompt): ask(url, name, prompt) for name in NAMES for prompt in PROMPTS}


def together(url: str) -> dict[tuple[str, str], Said]:
    asked = [(name, prompt) for prompt in PROMPTS for name in NAMES]
    with ThreadPoolExecutor(len(asked)) as pool:
        return dict(zip(asked, pool.map(lambda pair: ask(url, *pair), asked), strict=True))


def kernels(url: str) -> str:
    lines = httpx.get(f"{url}/metrics", timeout=10).raise_for_status().text.splitlines()
    return next(line for line in lines if line.startswith("sheaf:kernels_info{"))


@dataclass
class Engine:
    url: str
    log: Path


@contextmanager
def serve(tmp: Path, switch: str, *arguments: str) -> Iterator[Engine]:
    adapters = {name: tiny_adapter(seed, rank) for seed, (name, rank) in enumerate(RANKS.items(), 1)}
    log = tmp / f"vllm-{switch}.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(running_sheaf.VLLM_ENV, "SHEAF_KERNELS", switch)
        with running_sheaf.bare_vllm(tiny_llama(), "base", adapters, [*ARGUMENTS, *arguments], log) as url:
            yield Engine(url, log)


def kernels_in_state(url: str, tmp: Path) -> str:
    """What an agent beside the engine says of its kernels."""
    tmp.mkdir()
    token, port = "a-token-for-this-test", running_sheaf.free_port()
    (tmp / "token").write_text(token)
    config = {"model": "base", "engineUrl": url, "listen": f"127.0.0.1:{port}", "tokenFile": str(tmp / "token"),
              "adapterDir": str(tmp / "adapters"), "runDir": str(tmp)}  # fmt: skip
    (tmp / "agent.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "sheaf_engine.agent", "--config", str(tmp / "agent.json")]
    with (tmp / "log").open("w") as log:
        agent = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        running_sheaf.await_health(f"http://127.0.0.1:{port}/healthz", agent, tmp / "log", 60)
        return ready_state(f"http://127.0.0.1:{port}", token)["kernels"]
    finally:
        running_sheaf.stop(agent)


def ready_state(url: str, token: str) -> dict[str, str]:
    """The agent's state once it has seen its engine."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        headers = {"authorization": f"Bearer {token}"}
        state = dict(httpx.get(f"{url}/v1/state", headers=headers, timeout=10).raise_for_status().json())
        if state["engine"] == "Ready":
            return state
        time.sleep(0.2)
    raise AssertionError("the agent never saw its engine")


# A compiler that fails in every process, as on a machine that it does not know.
BROKEN_COMPILER = """
import sys
from importlib.machinery import PathFinder


class Breaker:
    def find_spec(self, name, path=None, target=None):
        if name != "numba":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            module.cfunc = fails
        spec.loader.exec_module = exec_module
        return spec


def fails(*arguments, **named):
    raise OSError("this machine is not known")


sys.meta_path.insert(0, Breaker())
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Said]:
    """What stock vLLM says when asked one thing at a time."""
    with serve(tmp_path_factory.mktemp("stock"), "off", "--enforce-eager") as engine:
        assert 'kernels="stock"' in kernels(engine.url)
        assert "sheaf_or_stock_wrapper" not in engine.log.read_text()
        assert kernels_in_state(engine.url, engine.log.parent / "agent") == "stock"
        return alone(engine.url)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with serve(tmp_path_factory.mktemp("sheaf"), "auto") as engine:
        yield engine


def same(got: Said, wanted: Said) -> bool:
    """Equal tokens up to the first tie: from there on the two are different texts."""
    for mine, theirs, lead in zip(got.tokens, wanted.tokens, wanted.leads, strict=True):
        if mine != theirs:
            return lead < TIE
    return True


def test_sheafs_kernels_run_and_say_so(engine: Engine) -> None:
    assert 'kernels="sheaf"' in kernels(engine.url)
    log = engine.log.read_text()
    assert "Sheaf kernels: sheaf (CPU)" in log
    assert "Sheaf kernels: ready for torch.float32" in log
    assert "Using sheaf_or_stock_wrapper" in log


def test_the_agent_says_the_same_in_its_state(engine: Engine, tmp_path: Path) -> None:
    assert kernels_in_state(engine.url, tmp_path / "agent") == "sheaf"


def test_the_adapters_differ_from_each_other_and_from_the_base(expected: dict[tuple[str, str], Said]) -> None:
    assert len({expected[name, PROMPTS[0]].tokens for name in NAMES}) == len(NAMES)


def test_each_alone_says_what_stock_vllm_says(engine: Engine, expected: dict[tuple[str, str], Said]) -> None:
    got = alone(engine.url)
    assert [key for key in expected if not same(got[key], expected[key])] == []


def test_all_in_one_batch_say_what_each_says_alone(engine: Engine, expected: dict[tuple[str, str], Said]) -> None:
    """Requests for the base model share batches with those of adapters here, and must not feel them."""
    for _ in range(2):
        got = together(engine.url)
        assert [key for key in expected if not same(got[key], expected[key])] == []


@pytest.fixture
def uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BROKEN_COMPILER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    with serve(tmp_path, "auto", "--enforce-eager") as engine:
        yield engine


def test_where_the_compiler_fails_stock_kernels_run_and_everyone_is_told(uncompiled: Engine, tmp_path: Path) -> None:
    assert "Sheaf kernels: stock (they do not compile on this machine)" in uncompiled.log.read_text()
    assert 'kernels="stock",reason="they do not compile on this machine: OSError"' in kernels(uncompiled.url)
    assert kernels_in_state(uncompiled.url, tmp_path / "agent") == "stock"
    assert ask(uncompiled.url, "ewe", PROMPTS[0]).tokens
