"""The engine under measurement, over HTTP: what it serves, and one streamed answer with the time of each chunk."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from sheaf.profiling.plan import OUTPUT, NotStreamedError, Stream

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


class ProfilingError(Exception):
    """An engine that cannot be measured: what is wrong and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class Card:
    """What is served: the base model's name, and tokens of the longest request (None: it does not say)."""

    name: str
    max_model_len: int | None


class Engine:
    """One OpenAI-compatible endpoint. Close its client when done."""

    def __init__(self, url: str, key: str | None) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None)
        self.url = url
        self.client = httpx.AsyncClient(headers=headers, trust_env=False, timeout=None, limits=limits)  # noqa: S113
        self._words_a_token = 1.0

    async def card(self, model: str | None) -> Card:
        """The model that is asked for, else the first that is no adapter.

        Raises:
            ProfilingError: where nothing answers, or there is no such model.
        """
        answer = await self._get("/v1/models")
        try:
            cards = [one for one in orjson.loads(answer.content)["data"] if isinstance(one["id"], str)]
        except (ValueError, KeyError, TypeError) as error:
            raise ProfilingError(
                f"{self.url} does not answer as an OpenAI API does; give the URL without /v1"
            ) from error
        fits = [one for one in cards if (one["id"] == model if model else not one.get("parent"))]
        if not fits:
            names = ", ".join(one["id"] for one in cards[:5]) or "nothing"
            raise ProfilingError(f"{self.url} does not serve {model or 'any base model'}; it serves {names}")
        longest = fits[0].get("max_model_len")
        return Card(fits[0]["id"], longest if isinstance(longest, int) else None)

    async def page(self) -> str:
        """Its metrics; empty where it shows none."""
        try:
            answer = await self.client.get(f"{self.url}/metrics")
        except httpx.HTTPError:
            return ""
        return answer.text if answer.status_code == 200 else ""

    async def learn_words(self, model: str) -> None:
        """Ask once to wake the engine up, and learn how many of our words make a token."""
        count = 200
        stream = await self.ask(model, count)
        self._words_a_token = count / max(1, stream.prompt)

    async def ask(self, model: str, tokens: int) -> Stream:
        """One answer to a prompt of about so many tokens that nobody ever asked.

        Raises:
            ProfilingError: where there is none.
            NotStreamedError: where it is no stream.
        """
        count = max(1, round(tokens * self._words_a_token))
        prompt = " ".join([secrets.token_hex(4), *(secrets.choice(WORDS) for _ in range(count - 1))])
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": OUTPUT,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            return await self._stream(body)
        except httpx.HTTPError as error:
            raise ProfilingError(f"{self.url} broke off: {error or type(error).__name__}; see its log") from error

    async def _stream(self, body: dict[str, Any]) -> Stream:
        clock = asyncio.get_running_loop().time
        chunks: list[float] = []
        usage: dict[str, Any] = {}
        sent = clock()
        async with self.client.stream("POST", f"{self.url}/v1/completions", json=body) as answer:
            await self._check(answer)
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = _event(line)
                if event.get("choices"):
                    chunks.append(clock())
                usage = event.get("usage") or usage
        return _finished(sent, chunks, usage)

    async def _check(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            said = (await answer.aread())[:2000]
            raise ProfilingError(
                f"{self.url} answered {answer.status_code}: {_message(said)}{_remedy(answer.status_code)}"
            )
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise NotStreamedError(f"{self.url} answers whole, not token by token")

    async def _get(self, path: str) -> httpx.Response:
        try:
            answer = await self.client.get(f"{self.url}{path}")
        except httpx.HTTPError as error:
            raise ProfilingError(f"nothing answers at {self.url} ({error or type(error).__name__})") from error
        if answer.status_code != 200:
            remedy = _remedy(answer.status_code) or "; give the URL of an engine or a gateway, without /v1"
            raise ProfilingError(f"{self.url}{path} answered {answer.status_code}{remedy}")
        return answer


def _event(line: str) -> dict[str, Any]:
    try:
        found = orjson.loads(line[6:])
    except orjson.JSONDecodeError as error:
        raise ProfilingError("an event of the stream is no JSON; this is no OpenAI API") from error
    if found.get("error"):
        raise ProfilingError(f"the stream ended in an error: {_message(orjson.dumps(found))}")
    return dict(found)


def _finished(sent: float, chunks: list[float], usage: dict[str, Any]) -> Stream:
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not chunks or not isinstance(prompt, int) or not isinstance(output, int) or output < 1:
        raise NotStreamedError("a stream ended without tokens or without usage (stream_options.include_usage)")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Stream(sent, chunks, prompt, cached, output)


def _message(said: bytes) -> str:
    try:
        return str(orjson.loads(said)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return said.decode(errors="replace")[:300]


def _remedy(status: int) -> str:
    return "; set SHEAF_API_KEY or --key" if status in (401, 403) else ""
