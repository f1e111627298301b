"""A continued row of logits is the row that an uninterrupted generation would have sampled from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from sheaf_engine.continued import check
from sheaf_engine.plugin import answering
from sheaf_engine.plugin.spoken import Penalties, Spoken, force

SIZE = 12
tokens = st.lists(st.integers(0, SIZE - 1), max_size=10)
CPU = torch.device("cpu")


def penalised(logits, prompt, output, penalties):
    """vLLM's penalties, written down from their definition (`vllm/model_executor/layers/utils.py`)."""
    row = logits.clone()
    for token in {*prompt, *output}:
        row[token] = row[token] / penalties.repetition if row[token] > 0 else row[token] * penalties.repetition
    for token in set(output):
        row[token] -= penalties.frequency * output.count(token) + penalties.presence
    return row


@given(tokens, tokens, tokens, st.floats(-2, 2), st.floats(-2, 2), st.sampled_from([1.0, 1.3, 0.7]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_spoken_tokens_count_as_output(prompt, spoken, output, presence, frequency, repetition, seed):
    penalties = Penalties(presence, frequency, repetition)
    logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    counted = Spoken(spoken, penalties, CPU)
    for length in range(len(output) + 1):
        row = logits.clone()
        counted.apply(row, output[:length])
        got = penalised(row, [*prompt, *spoken], output[:length], penalties)
        assert torch.allclose(got, penalised(logits, prompt, [*spoken, *output[:length]], penalties), atol=1e-5)


def test_a_forced_token_is_the_only_one_left():
    row = torch.randn(SIZE)
    force(row, 5)
    assert row.softmax(-1).tolist() == [float(token == 5) for token in range(SIZE)]
    before = torch.randn(SIZE)
    force(row := before.clone(), SIZE)
    assert torch.equal(row, before)


@pytest.mark.parametrize("extra", [{}, {"sheaf_forced": [1, 2], "sheaf_spoken": 3}, {"other": "x"}])
def test_what_gateways_send_is_taken(extra):
    check(extra)


WRONG = {
    "sheaf_forced": ["1", [-1], [0.5], [0] * 70_000],
    "sheaf_spoken": [-1, "3", True],
}


@pytest.mark.parametrize("extra", [{name: value} for name, values in WRONG.items() for value in values])
def test_anything_else_is_refused(extra):
    with pytest.raises(ValueError, match="sheaf_"):
        check(extra)


def test_the_metric_says_what_the_computing_process_said(monkeypatch):
    monkeypatch.delenv(answering.ANSWER, raising=False)
    answering.tell()
    assert not answering.told()
    answering.publish()
    assert b"sheaf:continuation_info 0.0" in generate_latest()
    answering.tell()
    assert b"sheaf:continuation_info 1.0" in generate_latest()
    monkeypatch.setenv(answering.ANSWER, "/nowhere")
    assert not answering.told()
