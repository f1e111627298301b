"""Real vLLM end to end with Sheaf's kernels and with stock's, same requests; writes bench-out/engine-cpu.json.

A random Llama of hidden size 1024 or more and few layers, with adapters of mixed rank, is served twice, once with
SHEAF_KERNELS=auto and once with off. Prefill: prompts of one token to generate, several at once. Decode: short prompts
and many tokens to generate, one request an adapter at once. Each engine is measured in rounds, and the answers of the
two are compared token by token.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter, sleep
from typing import Any

import httpx
import numpy as np
import torch
from machine import command, machine, versions
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

OUT = Path("bench-out")
VOCABULARY, HEADS, KV_HEADS = 2048, 16, 8
RANKS = (8, 16, 32, 64)


@dataclass(frozen=True)
class Plan:
    """What is served and asked."""

    hidden: int
    layers: int
    mlp: int
    adapters: int
    prompt: int
    prefills: int
    decode: int
    rounds: int
    threads: int

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Output and input size of each linear module of a layer."""
        key_value = self.hidden // HEADS * KV_HEADS
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (key_value, self.hidden),
            "self_attn.v_proj": (key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.mlp, self.hidden),
            "mlp.up_proj": (self.mlp, self.hidden),
            "mlp.down_proj": (self.hidden, self.mlp),
        }


def write_model(plan: Plan, folder: Path) -> Path:
    """A random Llama in bfloat16 with a tokenizer of plain words."""
    folder.mkdir()
    g = torch.Generator().manual_seed(0)
    weights = {f"model.{name}.weight": torch.ones(plan.hidden) for name in ("norm",)}
    weights["model.embed_tokens.weight"] = torch.randn(VOCABULARY, plan.hidden, generator=g)
    weights["lm_head.weight"] = torch.randn(VOCABULARY, plan.hidden, generator=g) * 0.1
    for layer in range(plan.layers):
        for name, (rows, columns) in plan.projections.items():
            matrix = torch.randn(rows, columns, generator=g) * columns**-0.5
            weights[f"model.layers.{layer}.{name}.weight"] = matrix
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(plan.hidden)
    bf16 = {name: weight.bfloat16().contiguous() for name, weight in weights.items()}
    save_file(bf16, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model_config(plan)))
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def model_config(plan: Plan) -> dict[str, Any]:
    """Llama's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": plan.hidden,
        "intermediate_size": plan.mlp,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }


def write_adapter(plan: Plan, folder: Path, rank: int, seed: int) -> Path:
    """A random PEFT adapter of all linear modules."""
    folder.mkdir()
    g = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(plan.layers):
        for name, (rows, columns) in plan.projections.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            a = torch.randn(rank, columns, generator=g) * columns**-0.5
            b = torch.randn(rows, rank, generator=g) * 0.3 * rank**-0.5
            weights |= {f"{prefix}.lora_A.weight": a.bfloat16(), f"{prefix}.lora_B.weight": b.bfloat16()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = [name.rsplit(".", 1)[1] for name in plan.projections]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def engine(plan: Plan, model: Path, adapters: dict[str, Path], switch: str, log: Path) -> Iterator[str]:
    """A vLLM server on a free loopback port, ended with the block; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    words += ["--host", "127.0.0.1", "--served-model-name", "base", "--enforce-eager", "--block-size", "32"]
    words += ["--max-model-len", "2048", "--max-num-batched-tokens", "2048", "--max-num-seqs", "64"]
    words += ["--no-enable-prefix-caching", "--enable-lora", "--max-loras", str(plan.adapters)]
    words += ["--max-lora-rank", str(max(RANKS)), "--lora-modules"]
    words += [f"{name}={path}" for name, path in adapters.items()]
    settings = {"SHEAF_KERNELS": switch, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    settings |= {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(plan.threads),
    }
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, env={**os.environ, **settings})
        try:
            await_ready(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def await_ready(url: str, process: subprocess.Popen[bytes], log: Path, timeout: float = 420.0) -> None:
    """Until the engine answers."""
    deadline = monotonic() + timeout
    while monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        sleep(0.5)
    raise SystemExit("vLLM did not start; the end of its log:\n" + "\n".join(log.read_text().splitlines()[-20:]))


def ask(url: str, model: str, prompt: list[int], tokens: int) -> dict[str, Any]:
    """One greedy completion by token ids, streamed: its tokens, time to first token and leads over the second best."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "temperature": 0}
    body |= {"ignore_eos": True, "stream": True, "logprobs": 2, "return_token_ids": True}
    begin, first, found, leads = perf_counter(), 0.0, [], []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line[6:])["choices"][0]
            first = first or perf_counter() - begin
            found += choice.get("token_ids") or []
            tops = (choice.get("logprobs") or {}).get("top_logprobs") or []
            leads += [max(top.values()) - min(top.values()) if len(top) > 1 else 0.0 for top in tops]
    return {"tokens": found, "ttft": first, "leads": leads}


def burst(url: str, asked: list[tuple[str, list[int], int]]) -> tuple[float, list[dict[str, Any]]]:
    """All at once; the seconds until the last has ended, and the answers."""
    begin = perf_counter()
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: ask(url, *one), asked))
    return perf_counter() - begin, answers


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Random token ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, length).tolist() for _ in range(count)]


def measure(plan: Plan, url: str, names: list[str]) -> dict[str, Any]:
    """Prefill and decode figures of one engine, and what it said."""
    prefills = prompts(plan.prefills, plan.prompt, 1)
    decodes = prompts(len(names), 16, 2)
    prefill = [(names[i % len(names)], prompt, 1) for i, prompt in enumerate(prefills)]
    decode = [(name, prompt, plan.decode) for name, prompt in zip(names, decodes, strict=True)]
    burst(url, prefill[:1]), burst(url, [(name, prompt, 4) for name, prompt, _ in decode])
    prefill_rounds = [burst(url, prefill) for _ in range(plan.rounds)]
    decode_rounds = [burst(url, decode) for _ in range(plan.rounds)]
    step = [(took - max(a["ttft"] for a in answers)) / (plan.decode - 1) for took, answers in decode_rounds]
    return {
        "prefill_tokens_per_s": plan.prefills * plan.prompt / median(took for took, _ in prefill_rounds),
        "ttft_ms": 1e3 * median(a["ttft"] for _, answers in prefill_rounds for a in answers),
        "decode_tokens_per_s": len(names) / median(step),
        "answers": [*prefill_rounds[0][1], *decode_rounds[0][1]],
    }


def equal(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tie: float) -> dict[str, Any]:
    """How many answers agree; a difference counts as a tie if stock's two best tokens were that close there."""
    found: dict[str, Any] = {"equal": 0, "tie": 0, "different": 0, "leads": []}
    for mine, other in zip(ours, theirs, strict=True):
        pairs = zip(mine["tokens"], other["tokens"], other["leads"], strict=False)
        lead = next((lead for a, b, lead in pairs if a != b), None)
        found["leads"] += [] if lead is None else [round(lead, 4)]
        found["equal" if lead is None else "tie" if lead < tie else "different"] += 1
    return found


def show(console: Console, rows: list[dict[str, Any]], ratios: dict[str, float], output: dict[str, Any]) -> None:
    """For people."""
    view = Table("kernels", "prefill tokens/s", "decode tokens/s", "TTFT ms")
    for row in rows:
        figures = [f"{row[key]:.1f}" for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "ttft_ms")]
        view.add_row(row["kernels"], *figures)
    console.print(view)
    console.print(f"answers: {output}")
    for key, value in ratios.items():
        console.print(f"{key}: [bold]{value}[/]")


def plan_from_arguments() -> tuple[Plan, Path, float]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer layers, shorter requests")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of the engines")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument(
        "--tie", type=float, default=0.07, help="nats: one bfloat16 step of a logit of 8 to 16 is 0.0625"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    size = (2, 128, 4, 24, 2) if chosen.quick else (4, 256, 8, 48, 3)
    layers, prompt, prefills, decode, rounds = size
    adapters = len(RANKS) * (1 if chosen.quick else 2)
    mlp = chosen.hidden * 11 // 4
    rounds = chosen.rounds or rounds
    plan = Plan(chosen.hidden, layers, mlp, adapters, prompt, prefills, decode, rounds, chosen.threads)
    return plan, chosen.out, chosen.tie


def progress(console: Console, what: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Say what takes long."""
    with console.status(what):
        return run()


def main() -> None:
    """Serve twice, measure, compare, write the report."""
    plan, out, tie = plan_from_arguments()
    console, rows = Console(), []
    out.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="sheaf-bench-") as scratch:
        folder = Path(scratch)
        model = write_model(plan, folder / "model")
        names = [f"adapter{number}" for number in range(plan.adapters)]
        ranks = [RANKS[number % len(RANKS)] for number in range(plan.adapters)]
        adapters = {
            name: write_adapter(plan, folder / name, rank, seed)
            for seed, (name, rank) in enumerate(zip(names, ranks, strict=True), 1)
        }
        for kernels, switch in (("sheaf", "auto"), ("stock", "off")):
            with engine(plan, model, adapters, switch, folder / f"{kernels}.log") as url:
                metric = httpx.get(f"{url}/metrics", timeout=30).text
                if f'sheaf:kernels_info{{kernels="{kernels}"' not in metric:
                    raise SystemExit(f"the engine does not run {kernels} kernels: is sheaf[engine] installed here?")
                figures = progress(console, f"measuring {kernels}", lambda url=url: measure(plan, url, names))
            rows.append({"kernels": kernels, **figures})
    output = equal(rows[0].pop("answers"), rows[1].pop("answers"), tie)
    ours, theirs = rows
    ratios = {
        "prefill_vs_stock": round(ours["prefill_tokens_per_s"] / theirs["prefill_tokens_per_s"], 3),
        "decode_vs_stock": round(ours["decode_tokens_per_s"] / theirs["decode_tokens_per_s"], 3),
    }
    show(console, rows, ratios, output)
    facts = {"machine": machine(), "versions": versions(), "command": command(), "plan": plan.__dict__}
    path = out / "engine-cpu.json"
    path.write_text(json.dumps({**facts, "rows": rows, "output": output, "ratios": ratios}, indent=1) + "\n")
    console.print(f"wrote {path}")
    if output["different"]:
        raise SystemExit("some answers differ by more than a tie")


if __name__ == "__main__":
    main()
