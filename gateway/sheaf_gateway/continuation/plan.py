"""Whether a stream can be continued, where from, and by what request: a pure decision with its reason.

From the middle, the new engine gets the prompt's tokens and those sent as a prompt of `/v1/completions`. It begins at a
`Mark` that is clean and lies so far back that whatever the first engine held back (the beginning of a stop string, a
part of a character) is generated again. Tokens generated again that the client has seen, or seen text of, must come out
the same and are checked. The plug-in in the engine forces them; without it sampling would not, and greedy decoding does
but for ties, which another batch may break the other way.

From the start, the request itself is repeated and what was sent is swallowed, token by token the same. That serves what
a prompt of tokens cannot express (tools, structured output, reasoning parsers, a seed's position).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from sheaf_gateway.continuation.chunks import asking_for_ids, event, with_last
from sheaf_gateway.continuation.journal import Mark, Sent
from sheaf_gateway.continuation.wish import TEXT, Wish

_encode = msgspec.json.Encoder().encode


class Facts(NamedTuple):
    """What is known of the Model's engines: the longest context in tokens (0: unknown), whether Sheaf's plug-in is in
    all of them, whether they parse reasoning out of the text; and how many tokens may be generated again."""

    max_model_len: int = 0
    plugin: bool = False
    parses: bool = False
    max_replay: int = 1024


class Refusal(msgspec.Struct, frozen=True):
    """The stream ends with an error; `reason` is a word from a fixed set."""

    reason: str


class Ending(msgspec.Struct, frozen=True):
    """Nothing is missing but these events."""

    events: bytes


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for the rest: `keep` of the tokens sent are in the prompt, the `replay` after them come again, and with them
    `chars` characters that the client has, of which `tail` are the last. `whole` says that the request is repeated."""

    path: str
    body: bytes
    whole: bool
    keep: int
    replay: Sequence[int]
    chars: int
    tail: str


Decision = Refusal | Ending | Rest


def decide(sent: Sent, wish: Wish, facts: Facts, body: bytes, path: str) -> Decision:
    """What becomes of a stream that broke off; `body` is the client's request (salted), `path` where it went."""
    if sent.unreadable or wish.never:
        return Refusal(sent.unreadable or wish.never)
    if sent.done or sent.finish is not None:
        return Ending(closing(sent, wish))
    if not sent.id:
        return Rest(path=path, body=asking_for_ids(body), whole=True, keep=0, replay=(), chars=0, tail="")
    if not sent.prompt:
        return Refusal("no_token_ids")
    why = _why_whole(sent, wish, facts)
    return _whole(sent, wish, facts, body, path, why) if why else _middle(sent, wish, facts)


def seam(sent: Sent, wish: Wish) -> tuple[int, int]:
    """Tokens to keep, and the characters that come again after them."""
    hidden = 0 if wish.includes else wish.held
    after = 0
    for mark in reversed(sent.marks):
        if mark.clean and after >= wish.held:
            return mark.tokens, after - hidden
        after += len(mark.text)
    start: Mark = sent.start
    if start.tokens and start.clean and after >= wish.held:
        return start.tokens, after - hidden
    return 0, sent.chars


def closing(sent: Sent, wish: Wish) -> bytes:
    """The events after the last token, as far as they were not sent."""
    told = b""
    options = wish.fields.get("stream_options") or {}
    if (options.get("include_usage") or sent.counted) and not sent.closed:
        told = event({**head(sent, chat=wish.chat), "choices": [], "usage": usage(sent)})
    return told if sent.done else told + b"data: [DONE]\n\n"


def head(sent: Sent, *, chat: bool) -> dict[str, Any]:
    """The fields that all chunks of a stream share."""
    kind = "chat.completion.chunk" if chat else "text_completion"
    return {"id": sent.id, "object": kind, "created": sent.created, "model": sent.model}


def usage(sent: Sent) -> dict[str, int]:
    """Tokens of the prompt and of all that was sent."""
    prompt, output = len(sent.prompt), len(sent.tokens)
    return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}


def _why_whole(sent: Sent, wish: Wish, facts: Facts) -> str:
    if wish.whole:
        return wish.whole
    if sent.odd or facts.parses:
        return "reasoning"
    if wish.seeded and not wish.greedy:
        return "seed"
    return "penalties" if wish.penalised and not facts.plugin else ""


def _whole(sent: Sent, wish: Wish, facts: Facts, body: bytes, path: str, why: str) -> Decision:
    if not (wish.greedy or wish.seeded or facts.plugin):
        return Refusal(why)
    if len(sent.tokens) > facts.max_replay:
        return Refusal("too_long_to_repeat")
    again = asking_for_ids(body)
    if facts.plugin:
        again = _forcing(again, sent.tokens.tolist())
    tail = "".join(mark.text for mark in sent.marks)
    return Rest(path=path, body=again, whole=True, keep=0, replay=tuple(sent.tokens), chars=sent.chars, tail=tail)


def _middle(sent: Sent, wish: Wish, facts: Facts) -> Decision:
    keep, chars = seam(sent, wish)
    replay = tuple(sent.tokens[keep:])
    known = bool(chars) or (bool(replay) and wish.shows_tokens)
    if known and not (wish.greedy or facts.plugin):
        return Refusal("sampled_text_held_back")
    if len(replay) > facts.max_replay:
        return Refusal("too_long_to_repeat")
    length = len(sent.prompt) + keep
    limit = _limit(wish, facts, keep, length)
    if limit is None:
        return Refusal("context_unknown")
    if limit < 1:
        return Ending(_cut_off(sent, wish))
    body = _body(sent, wish, facts, keep, limit, replay if known else ())
    shown = "".join(mark.text for mark in sent.marks)
    tail = shown[max(0, len(shown) - chars) :] if chars else ""
    return Rest(path=TEXT, body=body, whole=False, keep=keep, replay=replay if known else (), chars=chars, tail=tail)


def _limit(wish: Wish, facts: Facts, keep: int, length: int) -> int | None:
    room = facts.max_model_len - length if facts.max_model_len else None
    asked = wish.limit - keep if wish.limit is not None else None
    return min((bound for bound in (room, asked) if bound is not None), default=None)


def _body(sent: Sent, wish: Wish, facts: Facts, keep: int, limit: int, forced: Sequence[int]) -> bytes:
    fields = {**wish.fields, "prompt": sent.prompt.tolist() + sent.tokens[:keep].tolist(), "stream": True}
    fields |= {"max_tokens": limit, "min_tokens": max(0, wish.least - keep), "return_token_ids": True}
    if wish.logprobs is not None:
        fields["logprobs"] = wish.logprobs
    extra: dict[str, Any] = {}
    if facts.plugin and wish.penalised and keep:
        extra["sheaf_spoken"] = keep
    if facts.plugin and forced:
        extra["sheaf_forced"] = list(forced)
    return _encode(fields | ({"vllm_xargs": extra} if extra else {}))


def _forcing(body: bytes, tokens: list[int]) -> bytes:
    """The request with its tokens forced; arguments of other plug-ins stay."""
    if not tokens:
        return body
    asked = msgspec.json.decode(body).get("vllm_xargs") or {}
    return with_last(body, b'"vllm_xargs":' + _encode({**asked, "sheaf_forced": tokens}))


def _cut_off(sent: Sent, wish: Wish) -> bytes:
    """The context or the limit is reached: the end that the engine would have told."""
    choice: dict[str, Any] = {"index": 0, **({"delta": {"content": ""}} if wish.chat else {"text": ""})}
    choice |= {"logprobs": None, "finish_reason": "length", "stop_reason": None}
    return event({**head(sent, chat=wish.chat), "choices": [choice]}) + closing(sent, wish)
