"""The bytes of answers: vLLM 0.32's fields in vLLM's order. Stream chunks are put together by hand, not per field."""

from __future__ import annotations

import secrets
import struct
import time
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from sheaf_engine.emulator.generation import Delta
from sheaf_engine.emulator.tokenizer import Tokenizer, decode

VERSION = "0.32.0"
FINGERPRINT = f"vllm-{VERSION}-emulated"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Form:
    """How one request wants its answer.

    Attributes:
        chat: chat completion or text completion.
        id: the answer's id.
        created: Unix time, seconds.
        model: the model's name in the answer.
        role: role of a chat answer.
        token_ids: whether token ids are told.
        top_logprobs: alternatives for each token; None for no logprobs.
        usage: whether a stream ends with its usage.
        continuous_usage: whether every chunk tells the usage so far.
        cached_details: whether usage tells the cached tokens.
    """

    chat: bool
    id: str
    created: int
    model: str
    role: str = "assistant"
    token_ids: bool = False
    top_logprobs: int | None = None
    usage: bool = False
    continuous_usage: bool = False
    cached_details: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of an answer."""

    prompt: int
    completion: int
    cached: int = 0


def answer_id(chat: bool, asked: str | None) -> str:  # noqa: FBT001
    """``chatcmpl-…`` or ``cmpl-…`` after the id asked for, else random."""
    return f"{'chatcmpl' if chat else 'cmpl'}-{asked or secrets.token_hex(8)}"


def unix_now() -> int:
    """The ``created`` of an answer, Unix seconds."""
    return int(time.time())


class Chunks:
    """The chunks of one stream; `prompts` has the prompt of each choice."""

    def __init__(self, form: Form, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> None:
        self._form = form
        self._tokenizer = tokenizer
        self._prompts = prompts
        kind = "chat.completion.chunk" if form.chat else "text_completion"
        head = orjson.dumps({"id": form.id, "object": kind, "created": form.created, "model": form.model})
        self._head = b"data: " + head[:-1]
        self._shown_prompts: set[int] = set()

    def opening(self, index: int) -> bytes:
        """A chat stream's first chunk for a choice: the role."""
        form = self._form
        delta = {"role": form.role, "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        prompt = list(self._prompts[index]) if form.token_ids else None
        tail = {"prompt_token_ids": prompt, "prompt_text": None}
        usage = self._so_far(len(self._prompts[index]), 0)
        return self._chunk(choice, usage | tail)

    def delta(self, index: int, delta: Delta, generated: int) -> bytes:
        """A choice's next tokens; `generated` counts those with them."""
        prompt = self._prompts[index]
        choice = self._chat_choice(index, delta) if self._form.chat else self._text_choice(index, delta, prompt)
        tail = self._so_far(len(prompt), generated)
        if delta.finish_reason and not self._form.usage:
            tail["system_fingerprint"] = FINGERPRINT
        return self._chunk(choice, tail)

    def closing(self, usage: Usage) -> bytes:
        """The last chunk of a stream that tells its usage."""
        counts: dict[str, Any] = _counts(usage.prompt, usage.completion)
        if self._form.cached_details:
            created = {"created_cache_tokens": 0} if self._form.chat else {}
            counts["prompt_tokens_details"] = {"cached_tokens": usage.cached} | created
        tail = {"choices": [], "usage": counts, "system_fingerprint": FINGERPRINT}
        return self._head + b"," + orjson.dumps(tail)[1:] + b"\n\n"

    def _chunk(self, choice: dict[str, Any], tail: dict[str, Any]) -> bytes:
        rest = b"," + orjson.dumps(tail)[1:] if tail else b"}"
        return self._head + b',"choices":[' + orjson.dumps(choice) + b"]" + rest + b"\n\n"

    def _so_far(self, prompt: int, generated: int) -> dict[str, Any]:
        if not self._form.continuous_usage:
            return {}
        counts: dict[str, Any] = _counts(prompt, generated)
        return {"usage": counts | ({"completion_tokens_details": None} if self._form.chat else {})}

    def _chat_choice(self, index: int, delta: Delta) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "delta": {"content": delta.text},
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason:
            choice["stop_reason"] = delta.stop_reason
        choice["token_ids"] = delta.tokens if self._form.token_ids else None
        return choice

    def _text_choice(self, index: int, delta: Delta, prompt: Sequence[int]) -> dict[str, Any]:
        first = index not in self._shown_prompts
        self._shown_prompts.add(index)
        return {
            "index": index,
            "text": delta.text,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            "prompt_token_ids": list(prompt) if self._form.token_ids and first else None,
            "token_ids": delta.tokens if self._form.token_ids else None,
        }

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        return logprobs(self._form, self._tokenizer, delta.tokens)


def whole(form: Form, tokenizer: Tokenizer, choices: Iterable[tuple[Sequence[int], Delta]], usage: Usage) -> bytes:
    """An answer that is not streamed; each choice comes with its prompt."""
    listed = list(choices)
    build = _whole_chat_choice if form.chat else _whole_text_choice
    body: dict[str, Any] = {
        "id": form.id,
        "object": "chat.completion" if form.chat else "text_completion",
        "created": form.created,
        "model": form.model,
        "choices": [build(form, tokenizer, index, *choice) for index, choice in enumerate(listed)],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": _whole_usage(form, usage),
    }
    if form.chat:
        prompt = list(listed[0][0]) if form.token_ids else None
        body |= {"prompt_logprobs": None, "prompt_token_ids": prompt, "prompt_text": None}
    return orjson.dumps(body | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None})


def model_card(name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    """An entry of ``/v1/models``."""
    now = unix_now()
    card = {"id": name, "object": "model", "created": now, "owned_by": "vllm", "root": root, "parent": parent}
    permission = {
        "id": f"modelperm-{secrets.token_hex(8)}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return card | {"max_model_len": max_model_len, "permission": [permission]}


def embeddings(model: str, vectors: Sequence[Sequence[float]], tokens: int, *, base64: bool) -> bytes:
    """The answer of ``/v1/embeddings``; in base64, little-endian 32-bit floats."""
    listed: list[dict[str, Any]] = [
        {"index": index, "object": "embedding", "embedding": _packed(vector) if base64 else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    head = {"id": f"embd-{secrets.token_hex(8)}", "object": "list", "created": unix_now(), "model": model}
    return orjson.dumps(head | {"data": listed, "usage": usage})


def logprobs(form: Form, tokenizer: Tokenizer, tokens: Sequence[int]) -> dict[str, Any] | None:
    """Invented log probabilities in the asked-for shape: the token itself, then runners-up."""
    if form.top_logprobs is None:
        return None
    if form.chat:
        return {"content": [_chat_logprob(tokenizer, token, form.top_logprobs) for token in tokens]}
    texts = [decode(tokenizer, [token]) for token in tokens]
    offsets = [sum(map(len, texts[:index])) for index in range(len(texts))]
    tops = [dict(_ranked(tokenizer, token, max(1, form.top_logprobs))) for token in tokens]
    return {"text_offset": offsets, "token_logprobs": [-0.1] * len(texts), "tokens": texts, "top_logprobs": tops}


def _whole_chat_choice(form: Form, tokenizer: Tokenizer, index: int, _: Sequence[int], delta: Delta) -> dict[str, Any]:
    message = {"role": form.role, "content": delta.text, "refusal": None, "annotations": None, "audio": None}
    return {
        "index": index,
        "message": message | {"function_call": None, "reasoning": None},
        "logprobs": logprobs(form, tokenizer, delta.tokens),
        "finish_reason": delta.finish_reason,
        "stop_reason": delta.stop_reason,
        "token_ids": delta.tokens if form.token_ids else None,
        "routed_experts": None,
    }


def _whole_text_choice(
    form: Form, tokenizer: Tokenizer, index: int, prompt: Sequence[int], delta: Delta
) -> dict[str, Any]:
    return {
        "index": index,
        "text": delta.text,
        "logprobs": logprobs(form, tokenizer, delta.tokens),
        "finish_reason": delta.finish_reason,
        "stop_reason": delta.stop_reason,
        "token_ids": delta.tokens if form.token_ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": list(prompt) if form.token_ids else None,
        "routed_experts": None,
    }


def _whole_usage(form: Form, usage: Usage) -> dict[str, Any]:
    created = 0 if form.chat else None
    details = {"cached_tokens": usage.cached, "created_cache_tokens": created, "multimodal_tokens": None}
    shown = details if form.cached_details else None
    counts = _counts(usage.prompt, usage.completion)
    return counts | {"prompt_tokens_details": shown, "completion_tokens_details": None}


def _packed(vector: Sequence[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _counts(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def _chat_logprob(tokenizer: Tokenizer, token: int, top: int) -> dict[str, Any]:
    ranked = [_logprob_entry(text, value) for text, value in _ranked(tokenizer, token, top)]
    return _logprob_entry(decode(tokenizer, [token]), -0.1) | {"top_logprobs": ranked}


def _logprob_entry(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def _ranked(tokenizer: Tokenizer, token: int, count: int) -> list[tuple[str, float]]:
    words = tokenizer.words()
    others = [words[(token + step) % len(words)] for step in range(1, count)]
    ranked = [token, *others][:count]
    return [(decode(tokenizer, [each]), -0.1 - 2.0 * rank) for rank, each in enumerate(ranked)]
