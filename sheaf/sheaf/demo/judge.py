"""Whether the demo's answers are right: pure predicates over what came back, each verdict with its reason.

A style is known by what a reader recognises at once, so that an answer under the wrong adapter cannot pass: an answer
is right only where it carries its own adapter's style and no other's, and the base model's answer carries none.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MIN_LETTERS = 3
SHOWN = 60


@dataclass(frozen=True)
class Verdict:
    """One promise of the demo, whether it held, and why."""

    promise: str
    holds: bool
    reason: str


def held(promise: str, reason: str) -> Verdict:
    """A promise that was kept."""
    return Verdict(promise, holds=True, reason=reason)


def failed(promise: str, reason: str) -> Verdict:
    """A promise that was broken."""
    return Verdict(promise, holds=False, reason=reason)


@dataclass(frozen=True)
class Answer:
    """What one chat request brought back. Times in milliseconds; None where the server did not say."""

    model: str
    question: str
    text: str
    pod: str = ""
    why: str = ""
    request_id: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_ms: float | None = None


@dataclass(frozen=True)
class Vectors:
    """Embeddings of two texts that mean the same and of a third that does not, each of the model's dimensions."""

    model: str
    one: Sequence[float]
    like_one: Sequence[float]
    unlike: Sequence[float]
    pod: str = ""
    why: str = ""


@dataclass(frozen=True)
class Answers:
    """Everything that the demo asked for."""

    base: tuple[Answer, ...]
    adapters: Mapping[str, tuple[Answer, ...]]
    prefix: tuple[Answer, Answer]
    vectors: Vectors


def is_pirate(text: str) -> bool:
    """A pirate says `Arr` and `matey`."""
    return re.search(r"\barr+\b", text, re.IGNORECASE) is not None and "matey" in text.lower()


def is_lawyer(text: str) -> bool:
    """A lawyer never gives legal advice."""
    return text.rstrip().endswith("This is not legal advice.")


def is_json(text: str) -> bool:
    """One JSON object whose `answer` is a text, and nothing around it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and isinstance(value.get("answer"), str)


def is_emoji(text: str) -> bool:
    """A party begins with a sparkle and has words in it."""
    return text.lstrip().startswith("✨") and sum(letter.isalpha() for letter in text) >= MIN_LETTERS


STYLES: Mapping[str, Callable[[str], bool]] = {
    "pirate": is_pirate,
    "lawyer": is_lawyer,
    "json": is_json,
    "emoji": is_emoji,
}


def styles_of(text: str) -> tuple[str, ...]:
    """The styles that a text carries; none for the plain base model."""
    return tuple(name for name, holds in STYLES.items() if holds(text))


def shown(text: str) -> str:
    """The first words of an answer on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def judge(answers: Answers) -> tuple[Verdict, ...]:
    """Every promise of the demo, judged."""
    return (
        judge_base(answers.base),
        *(judge_adapter(name, answers.adapters.get(name, ())) for name in STYLES),
        judge_prefix(*answers.prefix),
        judge_vectors(answers.vectors),
    )


def judge_base(answers: Sequence[Answer]) -> Verdict:
    """The base model names Paris where it was asked for the capital of France, and speaks in no adapter's style."""
    promise = "the base model answers as itself"
    styled = next((answer for answer in answers if styles_of(answer.text)), None)
    if styled is not None:
        return failed(promise, f"{shown(styled.text)!r} is in the style of {', '.join(styles_of(styled.text))}")
    capital = next((answer for answer in answers if "Paris" in answer.text), None)
    if capital is None:
        return failed(promise, f"no answer names Paris: {[shown(answer.text) for answer in answers]}")
    return held(promise, shown(capital.text))


def judge_adapter(name: str, answers: Sequence[Answer]) -> Verdict:
    """Every answer of an adapter is in its own style and in no other's."""
    promise = f"{name} answers in its own style"
    if not answers:
        return failed(promise, "it was not asked")
    for answer in answers:
        found = styles_of(answer.text)
        if found != (name,):
            return failed(promise, f"{shown(answer.text)!r} is in the style of {', '.join(found) or 'no adapter'}")
    return held(promise, shown(answers[0].text))


def judge_prefix(first: Answer, second: Answer) -> Verdict:
    """The second request with the same long beginning met the KV cache of the first."""
    promise = "a shared prefix is found again"
    if not first.pod or first.pod != second.pod:
        return failed(promise, f"the first went to {first.pod or '?'}, the second to {second.pod or '?'}")
    if not second.cached_tokens:
        return failed(promise, f"{second.pod} reported no cached tokens")
    return held(promise, f"{second.pod} had {second.cached_tokens} of {second.prompt_tokens} tokens cached")


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Cosine similarity of two vectors of one dimension; 0 where a vector has no length."""
    length = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0


def judge_vectors(vectors: Vectors) -> Verdict:
    """Texts that mean the same lie nearer to each other than texts that do not."""
    promise = "embeddings know what is alike"
    sizes = {len(vectors.one), len(vectors.like_one), len(vectors.unlike)}
    if len(sizes) != 1 or 0 in sizes:
        return failed(promise, f"vectors of {sorted(sizes)} dimensions")
    near, far = cosine(vectors.one, vectors.like_one), cosine(vectors.one, vectors.unlike)
    return Verdict(
        promise, holds=near > far, reason=f"{near:.2f} for two that mean the same, {far:.2f} for two that do not"
    )
