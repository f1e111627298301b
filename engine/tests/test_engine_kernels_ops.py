"""The custom operators: a traced graph runs the kernels with the batch of each call, not the one it was traced with."""

from collections.abc import Sequence

import pytest
import torch
from sheaf_engine.plugin import ops

# torch's own tracer warns about itself here.
pytestmark = [pytest.mark.timeout(20), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Recorder:
    """Adds a number that changes from call to call, where kernels would add adapters."""

    def __init__(self) -> None:
        self.addend = 1.0
        self.calls: list[tuple[object, ...]] = []

    def linear(self, y: torch.Tensor, x: torch.Tensor, a: object, b: object, scale: float, slices: object) -> None:
        self.calls.append(("linear", scale, list(slices)))  # type: ignore[call-overload]
        y += self.addend * scale * x

    def shrink(self, y: torch.Tensor, x: torch.Tensor, a: Sequence[torch.Tensor], scale: float) -> None:
        self.calls.append(("shrink", scale))
        y.copy_(x)

    def expand(self, y: torch.Tensor, x: object, b: object, slices: object, offset: int, *, accumulate: bool) -> None:
        self.calls.append(("expand", offset, accumulate))
        y += 1


def test_a_graph_follows_the_batch_that_runs() -> None:
    kernels = Recorder()
    number = ops.enroll(kernels)
    weights = [torch.zeros(2, 1, 4, 4)]

    def layer(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        torch.ops.sheaf.lora_linear(y, x, weights, weights, 0.5, [4], number)
        return y + 1

    graph = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for addend, tokens in ((1.0, 3), (4.0, 3), (4.0, 5)):
        kernels.addend = addend
        x = torch.randn(tokens, 4)
        assert torch.allclose(graph(x), x * 2 + addend * 0.5 * x + 1)
    assert kernels.calls == [("linear", 0.5, [4])] * 3


def test_each_operator_reaches_the_wrapper_that_it_names() -> None:
    first, second = Recorder(), Recorder()
    numbers = [ops.enroll(first), ops.enroll(second)]
    assert numbers[0] != numbers[1]
    y, x = torch.zeros(2, 3), torch.ones(2, 3)
    torch.ops.sheaf.lora_shrink(y, x, [x], 2.0, numbers[1])
    torch.ops.sheaf.lora_expand(y, x, [x], [3], 7, False, numbers[1])
    assert first.calls == []
    assert second.calls == [("shrink", 2.0), ("expand", 7, False)]
    assert torch.equal(y, torch.full((2, 3), 2.0))


def test_a_wrapper_that_nobody_keeps_is_forgotten() -> None:
    number = ops.enroll(Recorder())
    with pytest.raises(KeyError):
        torch.ops.sheaf.lora_shrink(torch.zeros(1), torch.zeros(1), [], 1.0, number)
