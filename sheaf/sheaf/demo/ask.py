"""Ask a running Sheaf as any user would: with the official `openai` client, plain and streaming.

Of the three texts to embed, the two that mean the same share no word and the two that do not share several, so that
only a model that understands them gets the similarities right.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import openai
from openai.types.chat import ChatCompletionMessageParam

from sheaf.demo.judge import STYLES, Answer, Answers, Vectors
from sheaf.demo.recipe import DemoError

CHAT_MODEL = "smollm2"
EMBEDDING_MODEL = "minilm"
CAPITAL = "What is the capital of France?"
PLANTS = "How do plants grow?"
LIKE = ("A cat sleeps on the sofa.", "Kittens nap upon couches.", "A tax on the house rose.")
TIMEOUT = 180.0
MAX_TOKENS = 48
RULES = 24

Heard = Callable[[Answer | Vectors], None]
Messages = Sequence[ChatCompletionMessageParam]


def handbook() -> str:
    """A text of some 450 tokens, many KV blocks of it, that two requests begin with."""
    rules = (f"Rule {n}: ship number {n} leaves harbour {n % 7 + 1} at {n % 12 + 1} o'clock." for n in range(1, RULES))
    return "You answer questions about this handbook. " + " ".join(rules)


def user(text: str) -> ChatCompletionMessageParam:
    """A message of the user."""
    return {"role": "user", "content": text}


class Asker:
    """Sends the demo's requests; every answer is also passed to `heard` at once. Raises DemoError where one fails."""

    def __init__(self, url: str, heard: Heard) -> None:
        self.heard = heard
        self.client = openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,
            timeout=TIMEOUT,
            http_client=openai.DefaultHttpxClient(trust_env=False, timeout=TIMEOUT),
        )

    def ask(self) -> Answers:
        """Everything, in the order in which the table shows it."""
        with self.client:
            return Answers(
                base=(self.plain(CHAT_MODEL, CAPITAL), self.stream(CHAT_MODEL, PLANTS)),
                adapters={name: (self.stream(name, CAPITAL), self.stream(name, PLANTS)) for name in STYLES},
                prefix=self.prefix(),
                vectors=self.embed(),
            )

    def plain(self, model: str, question: str) -> Answer:
        """One chat completion in one piece."""
        raw = self.send(model, [user(question)], stream=False)
        answer = raw.parse()
        return self.hear(model, question, answer.choices[0].message.content or "", raw, answer.usage, None)

    def stream(self, model: str, question: str, before: Messages = ()) -> Answer:
        """One streamed chat completion; the time to its first token is taken here, at the client."""
        started = time.perf_counter()
        raw = self.send(model, [*before, user(question)], stream=True)
        text, usage, ttft = read(raw.parse(), started)
        return self.hear(model, question, text, raw, usage, ttft)

    def prefix(self) -> tuple[Answer, Answer]:
        """Two requests with the same long beginning, one after the other."""
        before: Messages = [{"role": "system", "content": handbook()}]
        first, second = (f"When does ship number {n} leave?" for n in (3, 7))
        return self.stream(CHAT_MODEL, first, before), self.stream(CHAT_MODEL, second, before)

    def embed(self) -> Vectors:
        """Embeddings of three texts, two of which mean the same."""
        raw = self.call(
            EMBEDDING_MODEL,
            lambda: self.client.embeddings.with_raw_response.create(model=EMBEDDING_MODEL, input=list(LIKE)),
        )
        one, like_one, unlike = (item.embedding for item in raw.parse().data)
        vectors = Vectors(EMBEDDING_MODEL, one, like_one, unlike, *routed(raw.headers))
        self.heard(vectors)
        return vectors

    def send(self, model: str, messages: Messages, *, stream: bool) -> Any:
        """A chat completion request; greedy, so that what was checked after training is what is said here."""
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return self.call(
            model,
            lambda: self.client.chat.completions.with_raw_response.create(
                model=model, messages=list(messages), temperature=0, max_tokens=MAX_TOKENS, **options
            ),
        )

    def call(self, model: str, request: Callable[[], Any]) -> Any:
        """Make a request; what goes wrong becomes one line."""
        try:
            return request()
        except openai.APIStatusError as error:
            raise DemoError(f"{model} was answered {error.status_code}: {error.message}") from error
        except openai.APIError as error:
            raise DemoError(f"{model} got no answer: {error.message}") from error

    def hear(self, model: str, question: str, text: str, raw: Any, usage: Any, ttft_ms: float | None) -> Answer:
        """Put an answer together and pass it on."""
        pod, why = routed(raw.headers)
        details = getattr(usage, "prompt_tokens_details", None)
        answer = Answer(
            model=model,
            question=question,
            text=text,
            pod=pod,
            why=why,
            request_id=raw.headers.get("x-request-id", ""),
            prompt_tokens=getattr(usage, "prompt_tokens", None),
            cached_tokens=getattr(details, "cached_tokens", None),
            ttft_ms=ttft_ms,
        )
        self.heard(answer)
        return answer


def routed(headers: Mapping[str, str]) -> tuple[str, str]:
    """The pod that answered, and why it was chosen."""
    return headers.get("x-sheaf-pod", ""), headers.get("x-sheaf-decision", "")


def read(chunks: Iterable[Any], started: float) -> tuple[str, Any, float | None]:
    """A stream's text, its usage, and the milliseconds from `started` to the first text."""
    text, usage, first = "", None, None
    try:
        for chunk in chunks:
            piece = "".join(choice.delta.content or "" for choice in chunk.choices)
            if piece and first is None:
                first = 1000 * (time.perf_counter() - started)
            text += piece
            usage = chunk.usage or usage
    except openai.APIError as error:
        raise DemoError(f"a stream broke after {text!r}: {error.message}") from error
    return text, usage, first
