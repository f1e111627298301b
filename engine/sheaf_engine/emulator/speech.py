"""What the emulated model says: readable words that depend on everything before them and on who speaks.

The next token is a function of the speaker's name, the seed and all tokens so far, as with greedy decoding: a stream
that another engine continues from the tokens already sent goes on exactly as it would have. Every answer names its
speaker at the start and every so often, as ``[name]``, so that a reader sees at once which adapter answered.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from sheaf_engine.emulator.tokenizer import Tokenizer

_WORDS_BETWEEN_TAGS = 16
_MEAN_LENGTH = 64


class Speaker:
    """A model or adapter by name."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        bare = name.replace("[", "").replace("]", "")
        self.name = name
        self.tag = tuple(tokenizer.encode(f"[{bare}]"))
        self.end = tokenizer.end
        self.special = tokenizer.special
        self.words = _own_words(tokenizer.words(), name)


class Speech:
    """A speaker in the middle of a sequence of tokens."""

    def __init__(self, speaker: Speaker, tokens: Sequence[int], seed: int) -> None:
        self._speaker = speaker
        self._state = blake2b(array("I", tokens).tobytes(), digest_size=8, key=_key(speaker.name, seed))
        self._spoken = _tag_progress(speaker.tag, tokens)
        self._since_tag = _since_tag(speaker, tokens)

    def next(self, *, may_end: bool) -> int:
        """Say the next token, the end token only where it may end."""
        token = self._choose(may_end=may_end)
        self._state.update(token.to_bytes(4, "little"))
        return token

    def _choose(self, *, may_end: bool) -> int:
        tag = self._speaker.tag
        if self._spoken or self._since_tag >= _WORDS_BETWEEN_TAGS:
            token = tag[self._spoken]
            self._spoken = (self._spoken + 1) % len(tag)
            self._since_tag = 0
            return token
        self._since_tag += 1
        draw = int.from_bytes(self._state.digest(), "little")
        if may_end and draw % _MEAN_LENGTH == 0:
            return self._speaker.end
        return self._speaker.words[(draw >> 16) % len(self._speaker.words)]


def _key(name: str, seed: int) -> bytes:
    return blake2b(f"{seed}/{name}".encode(), digest_size=32).digest()


def _own_words(words: Sequence[int], name: str) -> list[int]:
    """A third of the words, chosen by the speaker's name."""
    start = int.from_bytes(_key(name, 0)[:4], "little")
    count = max(1, len(words) // 3)
    return [words[(start + 7 * index) % len(words)] for index in range(count)]


def _tag_progress(tag: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens of the tag the sequence ends with, if it ends within a tag."""
    for length in range(min(len(tag) - 1, len(tokens)), 0, -1):
        if tuple(tokens[-length:]) == tuple(tag[:length]):
            return length
    return 0


def _since_tag(speaker: Speaker, tokens: Sequence[int]) -> int:
    """Tokens since the last whole tag of this turn; as many as call for a tag when there is none."""
    tag = speaker.tag
    for back in range(min(_WORDS_BETWEEN_TAGS, len(tokens))):
        end = len(tokens) - back
        if tuple(tokens[max(0, end - len(tag)) : end]) == tag:
            return back
        if tokens[end - 1] in speaker.special:
            break
    return _WORDS_BETWEEN_TAGS
