"""A fit finds the coefficients that made the measurements, whatever delays came on top, or says why it cannot."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_engine.timing.fitting import Decoding, FirstToken, Fit, UnfitError, fit, load_seconds, regress

BUDGET = 1024
LENGTHS = (64, 128, 256, 512, 1024, 1536)
COEFFICIENTS = st.fixed_dictionaries(
    {
        "step_overhead_s": st.floats(1e-3, 0.1),
        "decode_sequence_s": st.floats(0.0, 5e-3),
        "kv_token_s": st.floats(0.0, 2e-6),
        "prefill_token_s": st.floats(2e-5, 2e-3),
        "prefill_attention_s": st.floats(0.0, 1e-7),
        "request_s": st.floats(0.0, 0.02),
    }
)


def truth(**known: float) -> Fit:
    return Fit(**{**dict.fromkeys(Fit.__slots__, 0.0), **known})


def step(made: Fit, one: Decoding) -> float:
    return (
        made.step_overhead_s
        + one.sequences * made.decode_sequence_s
        + one.context * made.kv_token_s
        + one.adapters * made.lora_adapter_s
        + one.ranks * made.lora_rank_token_s
    )


def answer(made: Fit, one: FirstToken) -> float:
    steps = -(-one.tokens // BUDGET)
    work = one.tokens * made.prefill_token_s + one.pairs * made.prefill_attention_s
    return made.request_s + steps * made.step_overhead_s + work


def measured(
    made: Fit, noise: random.Random | None = None, *, rank: int = 0
) -> tuple[list[FirstToken], list[Decoding]]:
    """Five rounds; with noise, every time is some per cent off and one in eight comes much too late."""

    def seen(seconds: float) -> float:
        if noise is None:
            return seconds
        late = 1.0 + 3.0 * noise.random() if noise.random() < 0.125 else 1.0
        return seconds * noise.uniform(0.98, 1.02) * late

    first, decoding = [], []
    for _ in range(5):
        for length in LENGTHS:
            for sequences in (1, 2, 4, 8):
                adapters = min(sequences, 3) if rank else 0
                one = Decoding(sequences, float(sequences * (length + 16)), 1.0, adapters, sequences * rank)
                decoding.append(replace(one, seconds=seen(step(made, one))))
            whole = FirstToken(length, 0, 1.0)
            first.append(replace(whole, seconds=seen(answer(made, whole))))
    return first, decoding


@settings(max_examples=12, deadline=None)
@given(COEFFICIENTS)
def test_without_noise_every_coefficient_comes_back(made):
    known = truth(**made)
    found = fit(*measured(known), BUDGET)
    for name, value in made.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-3, abs=1e-9 if name.endswith("token_s") else 1e-6)
    assert max(found.decode_error, found.first_error) < 1e-6


@settings(max_examples=12, deadline=None)
@given(COEFFICIENTS, st.integers(0, 1000))
def test_under_noise_and_delays_steps_and_first_tokens_are_told_within_a_twentieth(made, seed):
    known = truth(**made)
    found = fit(*measured(known, random.Random(seed)), BUDGET)
    for length in LENGTHS:
        one = FirstToken(length, 0, 1.0)
        assert answer(found, one) == pytest.approx(answer(known, one), rel=0.05)
        for sequences in (1, 3, 8):
            some = Decoding(sequences, float(sequences * length), 1.0)
            assert step(found, some) == pytest.approx(step(known, some), rel=0.05)


def test_what_dominates_is_found_itself_under_noise():
    made = truth(step_overhead_s=0.01, decode_sequence_s=2e-3, prefill_token_s=4e-4, request_s=0.002)
    found = fit(*measured(made, random.Random(7)), BUDGET)
    assert found.step_overhead_s == pytest.approx(0.01, rel=0.05)
    assert found.decode_sequence_s == pytest.approx(2e-3, rel=0.05)
    assert found.prefill_token_s == pytest.approx(4e-4, rel=0.05)


def test_adapters_are_told_from_the_sequences_that_use_them():
    made = truth(step_overhead_s=0.01, prefill_token_s=1e-4, lora_adapter_s=3e-3, lora_rank_token_s=2e-5)
    (first, plain), (_, adapted) = measured(made), measured(made, rank=16)
    found = fit(first, plain + adapted, BUDGET)
    assert found.lora_adapter_s == pytest.approx(3e-3, rel=1e-3)
    assert found.lora_rank_token_s == pytest.approx(2e-5, rel=1e-3)


def test_no_coefficient_is_ever_negative():
    noise = random.Random(3)
    rows = [(1.0, float(x), float(x * x)) for x in range(1, 30)]
    found = regress(rows, [5.0 - 0.1 * x + noise.random() for _, x, _ in rows])
    assert min(found) >= 0.0
    assert found[0] == pytest.approx(4.0, abs=1.0)


def test_cached_tokens_are_not_computed_but_attended_to():
    assert FirstToken(10, 100, 1.0).pairs == 1055.0


def test_loading_is_how_much_later_the_first_answer_of_an_adapter_came():
    assert load_seconds([(0.06, 0.01), (0.062, 0.011), (0.4, 0.01)], 0.02) == pytest.approx(0.051)
    assert load_seconds([(0.0101, 0.01), (0.009, 0.01)], 0.02) is None


FIRST, DECODING = measured(truth(step_overhead_s=0.01, decode_sequence_s=1e-3, prefill_token_s=1e-4))


@pytest.mark.parametrize(
    ("first", "decoding", "said"),
    [
        (FIRST[:5], DECODING, "5 first tokens, 6 are needed"),
        ([FIRST[0]] * 9, DECODING, "1 prompt lengths, 3 are needed"),
        (FIRST, DECODING[:3], "3 batches that decode"),
        (FIRST, DECODING[::4], "1 batch sizes"),
        (FIRST, [replace(one, context=one.sequences * 9.0) for one in DECODING], "too much alike"),
        (FIRST, [*DECODING, Decoding(1, 1.0, 0.0)], "no time at all"),
        (FIRST, [replace(one, seconds=one.sequences * 1e-3) for one in DECODING], "cost nothing"),
        ([replace(one, seconds=1.0) for one in FIRST], DECODING, "longer prompts take no longer"),
        (FIRST, [replace(one, seconds=one.seconds * (1, 9)[i % 2]) for i, one in enumerate(DECODING)], "nobody else"),
    ],
)
def test_measurements_without_sense_are_refused_with_the_reason(first, decoding, said):
    with pytest.raises(UnfitError, match=said):
        fit(first, decoding, BUDGET)
