"""What a request asked for, read only when its stream has to be continued: which fields go along, which make a
continuation from the middle wrong, which make any wrong.

Fields that are known to be carried are carried; fields that are known to mean nothing after the prompt was rendered are
left out; whatever else is set, to false or nought too, and not to what it is by itself (`_NEUTRAL`), makes the
generation one that can only be repeated whole. Engines read numbers out of
strings (`"min_tokens": "3"`), so what is computed with here is read as they do.
"""

from typing import Any

import msgspec

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

_CARRIED = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "logit_bias",
    "allowed_token_ids",
    "cache_salt",
    "priority",
    "session_id",
    "user",
    "stream_options",
    "stream_interval",
    "return_tokens_as_token_ids",
)
_RENDERED = frozenset(
    {
        *("messages", "prompt", "stream", "n", "max_tokens", "max_completion_tokens", "min_tokens", "return_token_ids"),
        *("add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template", "documents"),
        *("chat_template_kwargs", "truncate_prompt_tokens", "truncation_side", "reasoning_effort"),
        *("request_id", "service_tier", "metadata", "store", "prompt_cache_key", "safety_identifier"),
        *("parallel_tool_calls", "include_reasoning", "return_token_offsets", "mm_payload", "best_of"),
    }
)
_READ = frozenset({*_CARRIED, *_RENDERED, "tools", "tool_choice", "response_format", "logprobs"})
_NEVER = {
    "use_beam_search": "beam_search",
    "echo": "echo",
    "prompt_embeds": "prompt_embeds",
    "kv_transfer_params": "kv_transfer",
    "ec_transfer_params": "kv_transfer",
    "prompt_logprobs": "prompt_logprobs",
}
_NEUTRAL: dict[str, Any] = {
    "bad_words": [],
    "echo": False,
    "ec_transfer_params": {},
    "kv_transfer_params": {},
    "length_penalty": 1.0,
    "logprob_token_ids": [],
    "media_io_kwargs": {},
    "mm_processor_kwargs": {},
    "prompt_embeds": [],
    "return_prompt_text": False,
    "routed_experts_prompt_start": 0,
    "structured_outputs": {},
    "suffix": "",
    "top_logprobs": 0,
    "use_beam_search": False,
    "vllm_xargs": {},
}
_NO_LIMIT = 16


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a continuation must respect. `held` counts the characters that an engine holds back for stop strings, or
    looks back for where it includes them (`includes`); `never` and `whole` say why it cannot be continued at all, or
    not from the middle; empty: it can."""

    chat: bool
    fields: dict[str, Any]
    greedy: bool
    seeded: bool
    penalised: bool
    held: int
    includes: bool
    limit: int | None
    least: int
    shows_tokens: bool
    logprobs: int | None
    never: str
    whole: str


class _Read(msgspec.Struct):
    """The fields that are computed with, as engines read them."""

    temperature: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    stream_options: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None


class _ReadChat(_Read):
    """Chats say whether they want log probabilities."""

    logprobs: bool | None = None


class _ReadText(_Read):
    """Text completions say how many."""

    logprobs: int | None = None


def read_wish(body: bytes, path: str) -> Wish:
    """The wish of a request body that was parsed well before.

    Raises:
        Exception: One of `journal.UNREADABLE`, where a field is of a type that it cannot have.
    """
    asked: dict[str, Any] = msgspec.json.decode(body)
    chat = path == CHAT
    kind: type[_ReadChat | _ReadText] = _ReadChat if chat else _ReadText
    read = msgspec.convert(asked, kind, strict=False)
    return Wish(
        chat=chat,
        fields={name: asked[name] for name in _CARRIED if asked.get(name) is not None},
        greedy=read.temperature is not None and read.temperature < 1e-5,
        seeded=asked.get("seed") is not None,
        penalised=bool(read.presence_penalty or read.frequency_penalty),
        held=max((len(stop) - 1 for stop in _stops(asked)), default=0),
        includes=bool(read.include_stop_str_in_output),
        limit=_limit(read, chat=chat),
        least=read.min_tokens or 0,
        shows_tokens=bool(read.return_token_ids) or (read.logprobs is not None and read.logprobs is not False),
        logprobs=read.logprobs if isinstance(read, _ReadText) else None,
        never=_never(asked, read.n),
        whole=_whole(asked, chat=chat),
    )


def _stops(asked: dict[str, Any]) -> list[str]:
    stop = asked.get("stop") or []
    return [stop] if isinstance(stop, str) else msgspec.convert(stop, list[str])


def _limit(read: _Read, *, chat: bool) -> int | None:
    if not chat:
        return _NO_LIMIT if read.max_tokens is None else read.max_tokens
    return read.max_tokens if read.max_completion_tokens is None else read.max_completion_tokens


def _never(asked: dict[str, Any], copies: int | None) -> str:
    prompt = asked.get("prompt")
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int) and len(prompt) > 1
    if several or (copies or 1) > 1:
        return "several_choices"
    return next((why for name, why in _NEVER.items() if asked.get(name)), "")


def _whole(asked: dict[str, Any], *, chat: bool) -> str:
    if asked.get("tools"):
        return "tools"
    kind = asked.get("response_format") or {}
    if asked.get("structured_outputs") or kind.get("type", "text") != "text":
        return "structured_output"
    if chat and asked.get("logprobs"):
        return "chat_logprobs"
    if any(_is_mixed(message) for message in asked.get("messages") or ()):
        return "multimodal"
    set_to = {name: value for name, value in asked.items() if value is not None and name not in _READ}
    return "parameter" if any(value != _NEUTRAL.get(name) for name, value in set_to.items()) else ""


def _is_mixed(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(
        not isinstance(part, str) and part.get("type", "text") != "text" for part in content
    )
