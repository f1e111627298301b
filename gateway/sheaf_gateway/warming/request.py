"""A request of which only the prompt is wanted: the same rendering, one token, nothing that costs more."""

from typing import Any

import msgspec

_DROPPED = frozenset(
    {
        "best_of", "bad_words", "echo", "frequency_penalty", "ignore_eos", "kv_transfer_params", "logit_bias",
        "logprobs", "max_completion_tokens", "min_tokens", "n", "presence_penalty", "priority", "prompt_logprobs",
        "repetition_penalty", "response_format", "return_token_ids", "seed", "service_tier", "stop", "stop_token_ids",
        "stream_options", "structured_outputs", "top_logprobs", "use_beam_search", "vllm_xargs",
    }
)  # fmt: skip


def one_token(body: bytes, salt: str) -> bytes | None:
    """The request for the least that an engine generates, under its tenant's salt; None where it has more than texts
    in it, which would have to be fetched again, or cannot be read."""
    try:
        asked: dict[str, Any] = msgspec.json.decode(body, type=dict)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    if not _texts_only(asked):
        return None
    fields = {name: value for name, value in asked.items() if name not in _DROPPED}
    fields |= {"max_tokens": 1, "stream": False, "temperature": 0}
    return msgspec.json.encode(fields | ({"cache_salt": salt} if salt else {}))


def _texts_only(asked: dict[str, Any]) -> bool:
    messages = asked.get("messages")
    if messages is None:
        return isinstance(asked.get("prompt"), str)
    return isinstance(messages, list) and all(isinstance(one, dict) and _is_text(one) for one in messages)


def _is_text(message: dict[str, Any]) -> bool:
    content = message.get("content")
    if not isinstance(content, list):
        return content is None or isinstance(content, str)
    return all(isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text") for part in content)
