"""Sheaf's wrapper in vLLM on CPU: every call that a layer makes gives what stock gives, and leaves the base alone."""

import warnings
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.timeout(20, func_only=True)
IDS = [11, 12, None, 14]
TOKENS = (11, 11, 0, 14, 14, 14, 12, 14)
REQUESTS = (11, 0, 14, 12, 14)
RANK, HIDDEN, WIDTHS = 16, 64, (48, 16, 16)


@pytest.fixture(scope="module")
def vllm() -> Iterator[SimpleNamespace]:
    """vLLM's parts, imported once; importing it warns of things that are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = import_module("vllm.lora.punica_wrapper.punica_cpu").PunicaWrapperCPU
        mapping = import_module("vllm.lora.layers").LoRAMapping
        wrapper = import_module("sheaf_engine.plugin.cpu")
        wrapper.warm_up(torch.float32)
        yield SimpleNamespace(stock=stock, mapping=mapping, cpu=wrapper)


@pytest.fixture
def pair(vllm: SimpleNamespace) -> tuple[Any, Any]:
    """Sheaf's wrapper and stock's, told of the same batch."""
    return told(vllm, TOKENS, REQUESTS)


def told(vllm: SimpleNamespace, tokens: tuple[int, ...], requests: tuple[int, ...]) -> tuple[Any, Any]:
    config = SimpleNamespace(lora_dtype=torch.float32, max_loras=len(IDS))
    made = (vllm.cpu.sheaf_or_stock_wrapper, vllm.stock)
    wrappers = [make(32, max_batches=8, device=torch.device("cpu"), lora_config=config) for make in made]
    for wrapper in wrappers:
        wrapper.update_metadata(vllm.mapping(tokens, requests, is_prefill=True), IDS, len(IDS) + 1, 1000)
    return wrappers[0], wrappers[1]


def stacked(*shape: int) -> torch.Tensor:
    return torch.randn(len(IDS), 1, *shape) * shape[-1] ** -0.5


def adapted(ids: tuple[int, ...]) -> list[int]:
    return [row for row, adapter in enumerate(ids) if adapter]


def test_a_linear_layer_adds_what_stock_adds_and_nothing_for_the_base(pair: tuple[Any, Any]) -> None:
    a, b = tuple(stacked(RANK, HIDDEN) for _ in WIDTHS), tuple(stacked(width, RANK) for width in WIDTHS)
    x, y = torch.randn(len(TOKENS), HIDDEN), torch.randn(len(TOKENS), sum(WIDTHS))
    mine, theirs = y.clone(), y.clone()
    pair[0].add_lora_linear(mine, x, a, b, 1.0, WIDTHS)
    pair[1].add_lora_linear(theirs, x, a, b, 1.0, WIDTHS)
    rows = adapted(TOKENS)
    assert torch.allclose(mine[rows], theirs[rows], atol=1e-5)
    assert torch.equal(mine[2], y[2])
    assert not torch.equal(theirs[2], y[2]), "stock vLLM no longer touches the base: the docs should say so"


def test_shrink_and_expand_alone_add_up_to_a_linear_layer(pair: tuple[Any, Any]) -> None:
    a, b = tuple(stacked(RANK, HIDDEN) for _ in WIDTHS), tuple(stacked(width, RANK) for width in WIDTHS)
    x, y = torch.randn(len(TOKENS), HIDDEN), torch.randn(len(TOKENS), sum(WIDTHS))
    whole, parts = y.clone(), y.clone()
    between = torch.full((len(WIDTHS), len(TOKENS), RANK), float("nan"))
    pair[0].add_lora_linear(whole, x, a, b, 0.5, WIDTHS)
    pair[0].add_shrink(between, x, a, 0.5)
    pair[0].add_expand(parts, between, b, WIDTHS, 0, add_inputs=True)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_expand_without_adding_replaces_its_columns_only(pair: tuple[Any, Any]) -> None:
    b = (stacked(16, RANK),)
    y, x = torch.ones(len(TOKENS), 48), torch.randn(1, len(TOKENS), RANK)
    pair[0].add_expand(y, x, b, (16,), 16, add_inputs=False)
    assert torch.equal(y[:, :16], torch.ones(len(TOKENS), 16))
    assert torch.equal(y[:, 32:], torch.ones(len(TOKENS), 16))
    assert torch.equal(y[2, 16:32], torch.zeros(16))
    assert torch.allclose(y[3, 16:32], x[0, 3] @ b[0][3, 0].T, atol=1e-5)


def test_an_embedding_adds_what_stock_adds(pair: tuple[Any, Any]) -> None:
    b, x, y = stacked(HIDDEN, RANK), torch.randn(len(TOKENS), RANK), torch.randn(len(TOKENS), HIDDEN)
    mine, theirs = y.clone(), y.clone()
    pair[0].add_lora_embedding(mine, x, b, add_input=True)
    pair[1].add_lora_embedding(theirs, x, b, add_input=True)
    rows = adapted(TOKENS)
    assert torch.allclose(mine[rows], theirs[rows], atol=1e-5)
    assert torch.equal(mine[2], y[2])


@pytest.mark.parametrize("vocabulary", [100, 96])
def test_logits_of_sampled_rows_add_what_stock_adds(pair: tuple[Any, Any], vocabulary: int) -> None:
    """The adapter's vocabulary may be padded beyond the model's."""
    a, b = stacked(RANK, HIDDEN), stacked(112, RANK)
    x, y = torch.randn(len(REQUESTS), HIDDEN), torch.randn(len(REQUESTS), vocabulary)
    mine, theirs = y.clone(), y.clone()
    pair[0].add_lora_logits(mine, x, a, b, 1.0)
    pair[1].add_lora_logits(theirs, x, a, b, 1.0)
    rows = adapted(REQUESTS)
    assert torch.allclose(mine[rows], theirs[rows], atol=1e-5)
    assert torch.equal(mine[1], y[1])


def test_the_next_batch_replaces_the_last(vllm: SimpleNamespace, pair: tuple[Any, Any]) -> None:
    a, b = (stacked(RANK, HIDDEN),), (stacked(HIDDEN, RANK),)
    x, y = torch.randn(4, HIDDEN), torch.zeros(4, HIDDEN)
    pair[0].update_metadata(vllm.mapping((0,) * 4, (0,), is_prefill=True), IDS, len(IDS) + 1, 1000)
    pair[0].add_lora_linear(y, x, a, b, 1.0, (HIDDEN,))
    pair[0].add_lora_logits(y[:1], x[:1], a[0], b[0], 1.0)
    assert not y.any()


def test_a_batch_that_does_not_fit_its_tensors_is_refused_and_never_read_past(pair: tuple[Any, Any]) -> None:
    a, b = (stacked(RANK, HIDDEN),), (stacked(HIDDEN, RANK),)
    with pytest.raises(ValueError, match="8 tokens: x has 3 rows"):
        pair[0].add_lora_linear(torch.zeros(3, HIDDEN), torch.zeros(3, HIDDEN), a, b, 1.0, (HIDDEN,))
    with pytest.raises(ValueError, match="do not fit"):
        pair[0].add_lora_linear(torch.zeros(8, 8), torch.zeros(8, HIDDEN), a, b, 1.0, (HIDDEN,))
    with pytest.raises(ValueError, match="slot 3 is behind the last of 2"):
        pair[0].add_lora_linear(
            torch.zeros(8, HIDDEN), torch.zeros(8, HIDDEN), (a[0][:2],), (b[0][:2],), 1.0, (HIDDEN,)
        )


def test_stock_takes_over_where_the_kernels_do_not_compile(
    vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_dtype: torch.dtype) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(vllm.cpu, "warm_up", broken)
    sheaf, _ = told(vllm, TOKENS, REQUESTS)
    assert type(sheaf) is vllm.stock
