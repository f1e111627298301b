"""From the events of a second engine to the rest of the first one's stream, as the first would have sent it.

What comes out has token ids, so that the journal goes on across the seam, and a third engine can go on from there.
Nothing comes out before everything that comes again has been found the same.
"""

from typing import Any

import msgspec

from sheaf_gateway.continuation.chunks import DONE, Choice, Chunk, decode_chunk, event, next_offset
from sheaf_gateway.continuation.journal import UNREADABLE, Sent
from sheaf_gateway.continuation.plan import Rest, head
from sheaf_gateway.continuation.wish import Wish
from sheaf_gateway.proxy.sse import EventTooLarge, SseSplitter, event_data


class SeamError(Exception):
    """The second stream is not the rest of the first one; the message is a word from a fixed set."""


class Joiner:
    """Joins one continuation. Feed it bytes as they come."""

    def __init__(self, sent: Sent, wish: Wish, rest: Rest) -> None:
        self._wish = wish
        self._rest = rest
        self._fresh = not sent.id
        self._head = head(sent, chat=wish.chat)
        self._prompt = len(sent.prompt)
        self._offset = sent.offset
        self._skipped = 0
        self._role = sent.role
        self._splitter = SseSplitter()
        self._behind = list(rest.replay)
        self._chars = rest.chars
        self._dropped: list[str] = []
        self._checked = not rest.chars
        self.output = rest.keep
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """The events for the client that these bytes make whole.

        Raises:
            SeamError: This cannot be the rest.
        """
        try:
            events = self._splitter.feed(data)
        except EventTooLarge:
            raise SeamError("unreadable") from None
        try:
            return b"".join(map(self._joined, events))
        except UNREADABLE:
            raise SeamError("unreadable") from None

    def _joined(self, whole: bytes) -> bytes:
        data = event_data(whole) or b""
        if data == b"[DONE]":
            self._finished()
            return DONE
        chunk, plain = decode_chunk(data), msgspec.json.decode(data)
        if chunk.error is not None:
            raise SeamError("engine_error")
        return whole if self._fresh else self._part(chunk, plain)

    def _finished(self) -> None:
        if self._behind or not self._checked:
            raise SeamError("not_the_same")
        self.done = True

    def _part(self, chunk: Chunk, plain: dict[str, Any]) -> bytes:
        if not chunk.choices:
            self._finished()
            self.done = False
            return event({**plain, **self._head, **self._counted(plain)})
        choice = chunk.choices[0]
        if choice.delta is not None and "role" in choice.delta and not choice.token_ids:
            return b"" if self._role else event({**plain, **self._head})
        if choice.token_ids is None:
            raise SeamError("no_token_ids")
        return self._choice(choice, plain)

    def _choice(self, choice: Choice, plain: dict[str, Any]) -> bytes:
        tokens, again = self._new_tokens(choice.token_ids or [])
        text = self._new_text(choice.shown())
        self._check(choice, tokens, again=again)
        if again and not tokens:
            self._skipped = next_offset(choice.logprobs, self._skipped)
            if not (text or choice.finish_reason):
                return b""
        if again and tokens and text:
            return self._event(choice, plain, [], text, last=False) + self._event(choice, plain, tokens, "", last=True)
        return self._event(choice, plain, tokens, text, last=True)

    def _new_tokens(self, tokens: list[int]) -> tuple[list[int], bool]:
        """The tokens that the client does not have, and whether some of these come again."""
        again = min(len(tokens), len(self._behind))
        if tokens[:again] != self._behind[:again]:
            raise SeamError("not_the_same")
        del self._behind[:again]
        self.output += len(tokens)
        return tokens[again:], bool(again)

    def _new_text(self, text: str) -> str:
        again = min(len(text), self._chars)
        if again:
            self._dropped.append(text[:again])
            self._chars -= again
        return text[again:]

    def _check(self, choice: Choice, tokens: list[int], *, again: bool) -> None:
        if again and tokens and (choice.odd() or choice.logprobs):
            raise SeamError("seam_within_a_chunk")
        if not self._chars and not self._checked:
            self._checked = True
            if not "".join(self._dropped).endswith(self._rest.tail):
                raise SeamError("not_the_same")
        over = bool(tokens) or choice.finish_reason is not None
        if over and (self._chars or self._behind):
            raise SeamError("not_the_same")

    def _event(self, choice: Choice, plain: dict[str, Any], tokens: list[int], text: str, *, last: bool) -> bytes:
        found: dict[str, Any] = {**plain["choices"][0], "token_ids": tokens}
        if not last:
            found |= {"finish_reason": None, "logprobs": None}
        told = {**plain, **self._head, "choices": [self._told(choice, found, text)]}
        told.pop("prompt_token_ids", None)
        return event({**told, **self._counted(plain)})

    def _told(self, choice: Choice, found: dict[str, Any], text: str) -> dict[str, Any]:
        if found.get("logprobs") and choice.logprobs and "text_offset" in choice.logprobs:
            found["logprobs"] = self._shifted(choice.logprobs)
        if choice.delta is not None:
            return found | ({} if choice.odd() else {"delta": {"content": text}})
        if not self._wish.chat:
            return found | {"text": text} | ({"prompt_token_ids": None} if "prompt_token_ids" in found else {})
        return _chat_choice(found, text)

    def _shifted(self, logprobs: dict[str, Any]) -> dict[str, Any]:
        shift = self._offset - self._skipped
        return {**logprobs, "text_offset": [offset + shift for offset in logprobs["text_offset"]]}

    def _counted(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Usage in terms of the first request."""
        found = plain.get("usage")
        if not found:
            return {}
        total = {"prompt_tokens": self._prompt, "total_tokens": self._prompt + self.output}
        told = {**found, **total, "completion_tokens": self.output}
        details = found.get("prompt_tokens_details")
        if details and "cached_tokens" in details:
            told["prompt_tokens_details"] = {**details, "cached_tokens": min(details["cached_tokens"], self._prompt)}
        return {"usage": told}


def _chat_choice(found: dict[str, Any], text: str) -> dict[str, Any]:
    """A text completion's choice as a chat's, its fields in the order that engines write them in."""
    told = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": found["finish_reason"]}
    if found["finish_reason"]:
        told["stop_reason"] = found.get("stop_reason")
    return {**told, "token_ids": found["token_ids"]}
