"""One choice of an answer while it is generated: its tokens, its text, and when it ends."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sheaf_engine.emulator.speech import Speaker, Speech
from sheaf_engine.emulator.tokenizer import Tokenizer
from sheaf_engine.timing import Adapter, BlockHashes


@dataclass(frozen=True, slots=True)
class Ending:
    """When a choice ends besides at its token limit.

    Attributes:
        max_tokens: tokens to generate at most.
        min_tokens: tokens before which neither the end token nor a stop counts.
        ignore_eos: whether the model never ends by itself.
        stops: stop strings.
        stop_tokens: stop token ids.
        include_stop: whether the text keeps the stop string.
    """

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stops: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    include_stop: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """What a choice gained since it was last read."""

    text: str
    tokens: list[int]
    finish_reason: str | None
    stop_reason: str | int | None


@dataclass(slots=True)
class Times:
    """Moments of a generation on the emulator's clock, seconds; None while they have not come."""

    arrived: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass(slots=True)
class Prompt:
    """What to generate from.

    Attributes:
        tokens: prompt token ids.
        speaker: who answers.
        adapter: the adapter behind the speaker, None for the base model.
        salt: cache salt.
        seed: changes the answer.
        forced: tokens that come first whatever the speaker would say.
    """

    tokens: Sequence[int]
    speaker: Speaker
    adapter: Adapter | None = None
    salt: str | None = None
    seed: int = 0
    forced: Sequence[int] = ()


@dataclass(slots=True)
class Generation:
    """One choice.

    Attributes:
        id: the engine's name for it.
        prompt: what it answers.
        ending: when it ends.
        times: its moments.
        wake: called when there is something to read.
        cached_tokens: prompt tokens found in the prefix cache, known from admission on.
        finish_reason: None while it goes on.
        preemptions: how often it lost its blocks.
    """

    id: str
    prompt: Prompt
    ending: Ending
    tokenizer: Tokenizer
    hashes: BlockHashes
    times: Times
    wake: Callable[[], None]
    cached_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    preemptions: int = 0
    text: str = ""
    generated: int = 0
    _sent: int = 0
    _unread: list[int] = field(default_factory=list)
    _speech: Speech | None = None
    _utf8: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def emit(self) -> None:
        """Generate one token."""
        forced = self.prompt.forced
        token = forced[self.generated] if self.generated < len(forced) else self._say()
        self.hashes.append(token)
        self._unread.append(token)
        self.generated += 1
        self._stop_at(token)
        self.wake()

    def _say(self) -> int:
        if self._speech is None:
            spoken = [*self.prompt.tokens, *self.prompt.forced]
            self._speech = Speech(self.prompt.speaker, spoken, self.prompt.seed)
        may_stop = self.generated >= self.ending.min_tokens
        return self._speech.next(may_end=may_stop and not self.ending.ignore_eos)

    def finish(self, reason: str, cause: str | int | None = None) -> None:
        """End; what the tokenizer holds back comes out."""
        self.finish_reason = reason
        self.stop_reason = cause
        self.text += self._utf8.decode(b"", final=True)
        self.wake()

    def read(self) -> Delta | None:
        """What is new, None when nothing is."""
        if not self._unread and self.finish_reason is None:
            return None
        end = len(self.text) if self.finish_reason else max(self._sent, len(self.text) - self._withheld())
        delta = Delta(self.text[self._sent : end], self._unread, self.finish_reason, self.stop_reason)
        self._sent, self._unread = end, []
        return delta

    def _stop_at(self, token: int) -> None:
        stoppable = self.generated > self.ending.min_tokens
        if token == self.prompt.speaker.end and not self.ending.ignore_eos:
            self.finish("stop")
        elif stoppable and token in self.ending.stop_tokens:
            self.finish("stop", token)
        else:
            self._grow(token, stoppable=stoppable)

    def _grow(self, token: int, *, stoppable: bool) -> None:
        before = len(self.text)
        self.text += self._utf8.decode(self.tokenizer.token_bytes(token))
        found = self._find_stop(before) if stoppable else None
        if found is not None:
            start, stop = found
            self.finish("stop", stop)
            self.text = self.text[: start + len(stop) if self.ending.include_stop else start]

    def _find_stop(self, before: int) -> tuple[int, str] | None:
        hits = ((self.text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self.ending.stops)
        return min((hit for hit in hits if hit[0] >= 0), default=None)

    def _withheld(self) -> int:
        if self.ending.include_stop:
            return 0
        return max((len(stop) - 1 for stop in self.ending.stops), default=0)
