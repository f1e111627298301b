"""What was sent of one generation: raw while it streams, read only when it has to be, bounded.

The relay hands over whole events as they came; the newest `_WINDOW` reads stay as bytes and are read when a
continuation is decided or when there are twice as many. Of what is older the token ids remain, four bytes each. What a
stream has cost is counted by them too, for an event may bring any number of tokens (`stream_interval`).
"""

import re
from array import array
from collections import deque
from typing import NamedTuple

import msgspec

from sheaf_gateway.continuation.chunks import Choice, Chunk, decode_chunk, decode_middle, next_offset
from sheaf_gateway.proxy.sse import EventTooLarge, SseSplitter, event_data

_WINDOW = 64
_OVERHEAD = 33
_LARGE = 512
_TOLD = re.compile(rb'"token_ids":\s*\[([0-9][0-9,\s]*)\]')
UNREADABLE = (msgspec.MsgspecError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading may raise where an engine streams values that cannot be."""


class Mark(NamedTuple):
    """A place between two chunks: tokens before it, the chunk's text, and whether the detokeniser held nothing back
    there but what a stop string might begin with. A chunk of one token with text ends so; of more tokens the last may
    be a part of a character."""

    tokens: int
    text: str
    clean: bool


class Sent:
    """Everything that a continuation needs to know of what the client has."""

    def __init__(self) -> None:
        self.id = ""
        self.created = 0
        self.model = ""
        self.prompt = array("I")
        self.tokens = array("I")
        self.marks: deque[Mark] = deque()
        self.start = Mark(0, "", clean=True)
        self.chars = 0
        self.offset = 0
        self.finish: str | None = None
        self.closed = False
        self.done = False
        self.role = False
        self.odd = False
        self.counted = False
        self.unreadable = ""

    def read(self, event: bytes) -> None:
        """Take one whole event."""
        data = event_data(event)
        if data == b"[DONE]":
            self.done = True
            return
        try:
            self._take(decode_chunk(data or b""))
        except UNREADABLE:
            self.unreadable = "unreadable"

    def read_middle(self, events: bytes) -> bool:
        """Take whole events quickly, their texts not to be remembered. False: they are not all plain."""
        chunks = decode_middle(events)
        if chunks is None or not self.id:
            return False
        try:
            for chunk in chunks:
                choice = chunk.choices[0]
                self.tokens.extend(choice.token_ids)
                self.chars += len(choice.shown())
        except OverflowError:
            self.unreadable = "unreadable"
            return True
        self.marks.clear()
        self.start = Mark(len(self.tokens), "", clean=len(choice.token_ids) == 1 and bool(choice.shown()))
        return True

    def trim(self) -> None:
        """Forget the texts of all but the last marks."""
        while len(self.marks) > _WINDOW:
            self.start = self.marks.popleft()

    def cut(self, tokens: int) -> None:
        """Forget the tokens after so many, which nobody saw; text that was sent stays sent."""
        del self.tokens[tokens:]
        text = ""
        while self.marks and self.marks[-1].tokens > tokens:
            text = self.marks.pop().text + text
        if text:
            self.marks.append(Mark(tokens, text, clean=False))

    def _take(self, chunk: Chunk) -> None:
        self.id, self.created, self.model = chunk.id, chunk.created, chunk.model
        self.prompt = self.prompt or array("I", chunk.prompt_token_ids or ())
        self.counted = self.counted or (chunk.usage is not None and bool(chunk.choices))
        self.closed = self.closed or (chunk.usage is not None and not chunk.choices)
        for choice in chunk.choices:
            self._take_choice(choice)
        if not chunk.id:
            self.unreadable = "unreadable" if chunk.error is None else "engine_error"

    def _take_choice(self, choice: Choice) -> None:
        if choice.index:
            self.unreadable = "several_choices"
        self.prompt = self.prompt or array("I", choice.prompt_token_ids or ())
        if choice.delta is not None and "role" in choice.delta and not choice.token_ids:
            self.role = True
            return
        if choice.token_ids is None:
            self.unreadable = self.unreadable or "no_token_ids"
            return
        text = choice.shown()
        self.odd = self.odd or choice.odd()
        self.tokens.extend(choice.token_ids)
        self.marks.append(Mark(len(self.tokens), text, clean=len(choice.token_ids) == 1 and bool(text)))
        self.chars += len(text)
        self.offset = next_offset(choice.logprobs, self.offset)
        self.finish = choice.finish_reason


class Purse:
    """Bytes that all journals together may hold."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class Journal:
    """The journal of one stream; `full` says that it grew beyond a bound and is of no use any more but to count."""

    __slots__ = ("_beyond", "_limit", "_purse", "_raw", "_read_size", "_sent", "_size", "full")

    def __init__(self, purse: Purse, limit: int) -> None:
        self._purse = purse
        self._limit = limit
        self._raw: list[bytes] = []
        self._sent = Sent()
        self._size = 0
        self._read_size = 0
        self._beyond = 0
        self.full = False

    def add(self, data: bytes) -> None:
        """Take whole events as an engine sent them."""
        if self.full:
            self._beyond += _told(data)
            return
        raw = self._raw
        raw.append(data)
        size = len(data) + _OVERHEAD
        self._size += size
        purse = self._purse
        purse.used += size
        if len(raw) >= 2 * _WINDOW:
            self._fold(_WINDOW)
        if self._size > self._limit or purse.used > purse.limit:
            self._overflow()

    def sent(self) -> Sent:
        """What was sent so far."""
        self._fold(0)
        return self._sent

    def tokens(self) -> int:
        """Tokens that have ids, of all that was sent."""
        return len(self._sent.tokens) + _told(b"".join(self._raw)) + self._beyond

    def about(self) -> int:
        """The same, quickly: where events are small, one token for each read that was not looked into yet."""
        if self._size - self._read_size > _LARGE * len(self._raw):
            return self.tokens()
        return len(self._sent.tokens) + len(self._raw) + self._beyond

    def close(self) -> None:
        """Give the bytes back."""
        self._purse.used -= self._size
        self._size = 0
        self._raw = []
        self.full = True

    def _overflow(self) -> None:
        self._fold(0)
        if self._size > self._limit or self._purse.used > self._purse.limit:
            self.close()

    def _fold(self, keep: int) -> None:
        split = len(self._raw) - keep
        events = b"".join(self._raw[:split])
        if not (keep and self._sent.read_middle(events)):
            self._read(events)
        del self._raw[:split]
        self._sent.trim()
        self._read_size = self._weight()
        size = self._read_size + sum(map(len, self._raw)) + _OVERHEAD * len(self._raw)
        self._purse.used += size - self._size
        self._size = size

    def _read(self, events: bytes) -> None:
        try:
            for event in SseSplitter().feed(events):
                self._sent.read(event)
        except EventTooLarge:
            self._sent.unreadable = "unreadable"

    def _weight(self) -> int:
        sent = self._sent
        marks = sum(len(mark.text) for mark in sent.marks) + 64 * len(sent.marks)
        return marks + 4 * (len(sent.prompt) + len(sent.tokens))


def _told(events: bytes) -> int:
    told = _TOLD.findall(events)
    return len(told) + b"".join(told).count(b",")
