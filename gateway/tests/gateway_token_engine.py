"""A tiny engine that writes streams as vLLM 0.32 does: its next token is a function of all tokens before it, its tokens are
pieces of UTF-8, characters that are not whole are held back, and so is what a stop string might begin with."""

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random

END = 0
PIECES = [b"", b"a", b" be", b"cat", b"\n", b"\xf0\x9f", b"\xa6", b"\x9c", "é".encode(), "日".encode(), b" stop", b"st", b"op", b'"', b"\\", b"x y"]  # fmt: skip
VOCABULARY = len(PIECES)


def decode(tokens) -> str:
    return b"".join(PIECES[token] for token in tokens).decode("utf-8", "replace")


def next_token(tokens, seed: int, *, may_end: bool) -> int:
    """After the first part of a bird comes the rest of it, nearly always."""
    draw = int.from_bytes(blake2b(bytes([seed % 256]) + bytes(tokens), digest_size=4).digest(), "big")
    if tokens and tokens[-1] == 5 and draw % 8:
        return 6
    if tokens and tokens[-1] == 6 and draw % 8:
        return 7
    found = draw % VOCABULARY
    return found if found != END or may_end else 1 + draw % (VOCABULARY - 1)


class Detokenizer:
    """As tokenizers' DecodeStream primed with a prompt: where the prompt ends within a character, everything comes out
    once that is whole."""

    def __init__(self, prompt) -> None:
        self.ids = list(prompt)
        text = decode(self.ids)
        self.prefix = "" if text.endswith("�") else text

    def step(self, token: int) -> str:
        self.ids.append(token)
        text = decode(self.ids)
        if len(text) <= len(self.prefix) or text.endswith("�"):
            return ""
        new, self.prefix = text[len(self.prefix) :], text
        return new


@dataclass
class Generated:
    """One step: the token, text given out, and whether it was the last one."""

    token: int
    text: str
    finish: str | None = None
    stop: str | None = None


def generate(prompt, body) -> list[Generated]:
    """Every step of a generation, by a request's parameters."""
    stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    includes, least, limit = body.get("include_stop_str_in_output"), body.get("min_tokens", 0), body["max_tokens"]
    held = 0 if includes else max((len(stop) - 1 for stop in stops), default=0)
    greedy = body.get("temperature") == 0
    seed = 0 if greedy else body.get("seed") or body.get("entropy", 1)
    tokens, text, sent, steps = list(prompt), "", 0, []
    detokenizer, forced = Detokenizer(prompt), (body.get("vllm_xargs") or {}).get("sheaf_forced") or []
    while True:
        count = len(steps) + 1
        token = next_token(tokens, seed, may_end=count > least and not body.get("ignore_eos"))
        token = forced[count - 1] if count <= len(forced) else token
        tokens.append(token)
        finish, stop = None, None
        if token == END:
            finish = "stop"
        else:
            new = detokenizer.step(token)
            text += new
            starts = {each: text.find(each, max(0, len(text) - len(new) - len(each) + 1)) for each in stops if new}
            hits = [(start + len(each), each) for each, start in starts.items() if start >= 0]
            if hits and count > least:
                end, stop = min(hits)
                finish, text = "stop", text[: end if includes else end - len(stop)]
        if finish is None and count >= limit:
            finish = "length"
        until = len(text) if finish else max(sent, len(text) - held)
        steps.append(Generated(token, text[sent:until], finish, stop))
        sent = until
        if finish:
            return steps


@dataclass
class TokenEngine:
    """Answers requests with the bytes of a stream. `merge` says how many steps go into a chunk."""

    seed: int = 0
    merge: Random = field(default_factory=lambda: Random(0))
    most: int = 1
    created: int = 1
    context: int = 10_000

    def prompt(self, path: str, body) -> list[int]:
        if path == "/v1/completions":
            given = body["prompt"]
            return given if isinstance(given, list) else [1 + byte % 15 for byte in given.encode()]
        text = "".join(message["content"] for message in body["messages"])
        return [1, *(1 + byte % 15 for byte in text.encode()), 1]

    def events(self, path: str, body) -> list[bytes]:
        """The events of the stream."""
        chat, prompt = path.endswith("chat/completions"), self.prompt(path, body)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        limit = limit or (self.context - len(prompt) if chat else 16)
        steps = generate(prompt, {**body, "max_tokens": min(limit, self.context - len(prompt))})
        head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{self.created}", "object": "chat.completion.chunk" if chat else "text_completion",
                "created": self.created, "model": body["model"]}  # fmt: skip
        options, ids = body.get("stream_options") or {}, body.get("return_token_ids")
        counts = bool(options.get("continuous_usage_stats"))
        told, offset, events = 0, 0, []

        def usage():
            return {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + told, "completion_tokens": told}

        if chat:
            choice = {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            first = {**head, "choices": [choice], "prompt_token_ids": prompt if ids else None, "prompt_text": None}
            events.append(event({**first, **({"usage": usage()} if counts else {})}))
        while told < len(steps):
            part = steps[told : told + 1 + self.merge.randrange(self.most)]
            first, last = not told, part[-1]
            told += len(part)
            tokens, text = [step.token for step in part], "".join(step.text for step in part)
            logprobs = None
            if body.get("logprobs") is not None and body["logprobs"] is not False:
                texts = [decode([token]) for token in tokens]
                starts = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
                offset += sum(map(len, texts))
                logprobs = {
                    "text_offset": starts,
                    "token_logprobs": [-0.5] * len(tokens),
                    "tokens": texts,
                    "top_logprobs": [],
                }
                if chat:
                    logprobs = {
                        "content": [{"token": text, "logprob": -0.5, "bytes": [], "top_logprobs": []} for text in texts]
                    }
            told_ids = tokens if ids else None
            if chat:
                choice = {"index": 0, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": last.finish}
                choice |= {"stop_reason": last.stop} if last.finish else {}
                choice |= {"token_ids": told_ids}
            else:
                choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": last.finish, "stop_reason": last.stop,
                          "prompt_token_ids": prompt if ids and first else None, "token_ids": told_ids}  # fmt: skip
            chunk = {**head, "choices": [choice]}
            if last.finish and not options.get("include_usage"):
                chunk["system_fingerprint"] = "f"
            events.append(event({**chunk, **({"usage": usage()} if counts else {})}))
        if options.get("include_usage"):
            events.append(event({**head, "choices": [], "usage": usage()}))
        return [*events, b"data: [DONE]\n\n"]


def event(document) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def read(stream: bytes) -> dict:
    """What a client gets out of a stream: every fact once, whatever the chunks were."""
    parts = stream.split(b"\n\n")
    assert parts.pop() == b""
    assert parts.pop() == b"data: [DONE]"
    chunks = [json.loads(part.removeprefix(b"data: ")) for part in parts]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    roles = [c["delta"]["role"] for c in choices if "role" in c.get("delta", {})]
    return {
        "heads": {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks},
        "roles": roles,
        "text": "".join(c["delta"]["content"] if "delta" in c else c["text"] for c in choices),
        "tokens": [token for c in choices for token in c.get("token_ids") or ()],
        "prompt": [
            chunk.get("prompt_token_ids") or chunk["choices"][0].get("prompt_token_ids") for chunk in chunks[:1]
        ],
        "finish": [(c["finish_reason"], c.get("stop_reason")) for c in choices if c["finish_reason"]],
        "offsets": [place for c in choices for place in (c["logprobs"] or {}).get("text_offset", ())],
        "logged": [each["token"] for c in choices for each in (c["logprobs"] or {}).get("content", ())],
        "usage": [chunk["usage"] for chunk in chunks if chunk.get("usage") and not chunk["choices"]],
        "counted": [chunk["usage"] for chunk in chunks if chunk.get("usage") and chunk["choices"]][-1:],
        "order": bool(choices) and all(not c["finish_reason"] for c in choices[:-1]),
    }
