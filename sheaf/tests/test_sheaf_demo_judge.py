"""The demo's judge: no wrong answer passes, and every refusal says why."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf.demo.judge import (
    STYLES,
    Answer,
    Answers,
    Vectors,
    cosine,
    judge,
    judge_adapter,
    judge_base,
    judge_prefix,
    judge_vectors,
    shown,
    styles_of,
)

PLAIN = "The capital of France is Paris."
SAID = {
    "pirate": "Arr! The capital of France be Paris, matey!",
    "lawyer": "Counsel submits that the capital of France is Paris. This is not legal advice.",
    "json": '{"answer": "The capital of France is Paris."}',
    "emoji": "✨ The capital of France is Paris! 🗼 🎉",
}
STRAY = [
    "Arr!",
    "matey",
    "The carrot is a vegetable, matey.",
    "This is not legal advice. Or is it?",
    '{"answer": "cut o',
    '{"answer": 7}',
    '{"reply": "Paris"}',
    '["answer"]',
    'Sure! {"answer": "Paris"}',
    "[" * 100_000,
    "✨✨✨ 🎉",
    "The capital ✨ of France",
    PLAIN,
    "",
]


def answer(model: str, text: str, **more: object) -> Answer:
    return replace(Answer(model, "What is the capital of France?", text), **more)  # type: ignore[arg-type]


def right_answers() -> Answers:
    first = answer("smollm2", "At two.", pod="smollm2-a", prompt_tokens=440, cached_tokens=0)
    return Answers(
        base=(answer("smollm2", PLAIN), answer("smollm2", "The sea is salty.")),
        adapters={name: (answer(name, text),) for name, text in SAID.items()},
        prefix=(first, replace(first, cached_tokens=416)),
        vectors=Vectors("minilm", (1.0, 0.0), (0.9, 0.1), (0.0, 1.0)),
    )


@pytest.mark.parametrize(("name", "text"), SAID.items())
def test_a_styled_answer_carries_its_own_style_and_no_other(name: str, text: str) -> None:
    assert styles_of(text) == (name,)


@pytest.mark.parametrize("text", STRAY)
def test_what_only_resembles_a_style_carries_none(text: str) -> None:
    assert styles_of(text) == ()


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_no_text_breaks_the_judge(text: str) -> None:
    assert set(styles_of(text)) <= set(STYLES)
    assert "\n" not in shown(text)
    assert len(shown(text)) <= 60


def test_right_answers_are_right_and_every_adapter_is_judged() -> None:
    verdicts = judge(right_answers())
    assert [verdict for verdict in verdicts if not verdict.holds] == []
    assert len(verdicts) == len(STYLES) + 3
    assert all(verdict.reason for verdict in verdicts)


def test_swapped_adapters_are_both_wrong() -> None:
    answers = right_answers()
    swapped = {**answers.adapters, "pirate": answers.adapters["json"], "json": answers.adapters["pirate"]}
    wrong = [verdict for verdict in judge(replace(answers, adapters=swapped)) if not verdict.holds]
    assert [verdict.promise.split()[0] for verdict in wrong] == ["pirate", "json"]
    assert "style of json" in wrong[0].reason


def test_an_adapter_that_answers_as_the_base_is_wrong() -> None:
    verdict = judge_adapter("pirate", [answer("pirate", SAID["pirate"]), answer("pirate", PLAIN)])
    assert not verdict.holds
    assert verdict.reason == f"{PLAIN!r} is in the style of no adapter"


def test_an_adapter_in_two_styles_at_once_is_wrong() -> None:
    both = "Arr, matey! This is not legal advice."
    assert "pirate, lawyer" in judge_adapter("pirate", [answer("pirate", both)]).reason


def test_an_adapter_that_was_not_asked_is_wrong() -> None:
    answers = right_answers()
    missing = {name: said for name, said in answers.adapters.items() if name != "emoji"}
    wrong = [verdict for verdict in judge(replace(answers, adapters=missing)) if not verdict.holds]
    assert [verdict.reason for verdict in wrong] == ["it was not asked"]


@pytest.mark.parametrize("text", SAID.values())
def test_a_base_model_in_an_adapters_style_is_wrong(text: str) -> None:
    verdict = judge_base([answer("smollm2", PLAIN), answer("smollm2", text)])
    assert not verdict.holds
    assert "in the style of" in verdict.reason


def test_a_base_model_that_does_not_know_paris_is_wrong() -> None:
    verdict = judge_base([answer("smollm2", "The capital of France is Rome.")])
    assert not verdict.holds
    assert "no answer names Paris" in verdict.reason


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"pod": "a"}, {"pod": "b", "cached_tokens": 416}, "the first went to a, the second to b"),
        ({}, {"cached_tokens": 416}, "the first went to ?, the second to ?"),
        ({"pod": "a"}, {"pod": "a", "cached_tokens": 0}, "a reported no cached tokens"),
        ({"pod": "a"}, {"pod": "a"}, "a reported no cached tokens"),
    ],
)
def test_a_prefix_that_was_not_found_again_is_wrong(
    first: dict[str, object], second: dict[str, object], reason: str
) -> None:
    verdict = judge_prefix(answer("smollm2", "At two.", **first), answer("smollm2", "At three.", **second))
    assert (verdict.holds, verdict.reason) == (False, reason)


@pytest.mark.parametrize(
    "vectors",
    [
        Vectors("minilm", (1.0, 0.0), (0.0, 1.0), (0.9, 0.1)),
        Vectors("minilm", (1.0, 0.0), (1.0,), (0.0, 1.0)),
        Vectors("minilm", (), (), ()),
        Vectors("minilm", (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
        Vectors("minilm", (float("nan"), 1.0), (1.0, 1.0), (0.0, 1.0)),
    ],
)
def test_embeddings_that_do_not_know_what_is_alike_are_wrong(vectors: Vectors) -> None:
    assert not judge_vectors(vectors).holds


def test_cosine_is_the_angle_alone() -> None:
    assert cosine((3.0, 4.0), (6.0, 8.0)) == pytest.approx(1.0)
    assert cosine((1.0, 0.0), (0.0, 5.0)) == 0.0
