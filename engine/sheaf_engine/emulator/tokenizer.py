"""Text to token ids and back: a built-in tokenizer that needs no download, or a model's own ``tokenizer.json``.

The built-in one has an id for every byte and one for every common word with a space before it; encoding is exact, so
decoding what it encoded gives the text again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

PAD, START, END = 0, 1, 2
_SPECIAL = {PAD: "<|pad|>", START: "<|im_start|>", END: "<|im_end|>"}
_FIRST_BYTE = len(_SPECIAL)
_FIRST_WORD = _FIRST_BYTE + 256
_PIECES = re.compile(r" [a-z]+|[^ ]+| ")
_WORD_LIST = """
a about above across after again all along also always amber an anchor and any apple are around as at autumn away
bay be beach before behind bell below beside between bind birch bird blue boat both bound branch bread breeze bridge
bright bring brook brown build bundle but by call calm candle carry cedar chart choose clay clear cliff cloud coast
cold come copper coral corn count cover crane creek crew cross dawn day deep deer down drift dry dune each early earth
east ebb edge elm ember end evening every fair fall far farm feather fern few field find fine fir fire first fish flax
flint flow flower fog follow for forest found four fresh from full garden gate gather give glade gold good grain grass
gray great green ground grove grow gull harbour harvest have hawk hazel hear heather held help herb here high hill hold
home honey hour how ice if in inland into iron island it ivy just keep kind lake lamp land lantern lark late leaf leave
left light like lily linen little long look low make many maple mark marsh meadow meet mill mist moon morning moss most
mountain move much near nest never new next night north not now oak oar oat ocean of off old olive on once one open or
orchard other our out over owl path peak pear pebble pine place plain plant pond poplar quiet rain reach red reed rest
ridge right ripe rise river road rock rope round row rye safe sail salt sand sea season seed seven shade shallow sheaf
shell shine ship shore silver sing six sky slow small smoke snow so soft soil some song south sow spring stack stalk
star stay still stone storm stream strong summer sun sweet swift tall ten that the their then there they thin this
three through tide tie time to town trail tree true turn twine two under up valley very vine voyage walk wall warm
water wave way we west what wheat where which white wide wild willow wind winter with wood year yellow young
"""
WORDS = tuple(_WORD_LIST.split())


class Tokenizer(Protocol):
    """What the emulator needs of a tokenizer."""

    size: int
    end: int
    special: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a special token or an unknown id."""
        ...

    def token_text(self, token: int) -> str:
        """The token as the vocabulary spells it."""
        ...

    def chat(self, turns: Iterable[tuple[str, str]], opening: str | None) -> list[int]:
        """The ids of a ChatML conversation of (role, content), the next turn opened for the role `opening`."""
        ...

    def words(self) -> Sequence[int]:
        """Tokens that read as words, each on its own."""
        ...


class BuiltinTokenizer:
    """Bytes and common words; ids beyond those, up to `size`, are taken in prompts and stand for nothing."""

    size = 1 << 17
    end = END
    special = frozenset(_SPECIAL)

    def __init__(self) -> None:
        self._bytes = [b""] * _FIRST_BYTE + [bytes([byte]) for byte in range(256)]
        self._bytes += [b" " + word.encode() for word in WORDS]
        self._ids = {" " + word: _FIRST_WORD + index for index, word in enumerate(WORDS)}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; special tokens cannot be written as text."""
        ids: list[int] = []
        for match in _PIECES.finditer(text):
            piece = match.group()
            word = self._ids.get(piece)
            if word is None:
                ids.extend(byte + _FIRST_BYTE for byte in piece.encode("utf-8", "replace"))
            else:
                ids.append(word)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token."""
        return self._bytes[token] if token < len(self._bytes) else b""

    def token_text(self, token: int) -> str:
        """A byte as its character, a word with its space, a special token by its name."""
        return _SPECIAL.get(token) or self.token_bytes(token).decode("utf-8", "backslashreplace")

    def chat(self, turns: Iterable[tuple[str, str]], opening: str | None) -> list[int]:
        """ChatML, with markers that no content can forge."""
        ids: list[int] = []
        for role, content in turns:
            ids += [START, *self.encode(f"{role}\n{content}"), END, *self.encode("\n")]
        return ids if opening is None else [*ids, START, *self.encode(f"{opening}\n")]

    def words(self) -> Sequence[int]:
        """The word tokens."""
        return range(_FIRST_WORD, len(self._bytes))


class FileTokenizer:
    """A model's own byte-level tokenizer, by the `tokenizers` library."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer as Fast  # noqa: PLC0415 - only where a model's tokenizer is asked for

        self._fast: Any = Fast.from_file(str(directory / "tokenizer.json"))
        self.size = int(self._fast.get_vocab_size())
        self.end = self._token(directory, "eos_token")
        added = self._fast.get_added_tokens_decoder()
        self.special = frozenset(token for token, entry in added.items() if entry.special)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, special tokens recognised as vLLM does."""
        whole = text.encode("utf-8", "replace").decode()
        return list(self._fast.encode(whole, add_special_tokens=False).ids)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token."""
        if token in self.special:
            return b""
        spelled = self._fast.id_to_token(token) or ""
        return b"".join(_spelled_byte(character) for character in spelled)

    def token_text(self, token: int) -> str:
        """The vocabulary's spelling."""
        return str(self._fast.id_to_token(token) or "")

    def chat(self, turns: Iterable[tuple[str, str]], opening: str | None) -> list[int]:
        """ChatML text, encoded whole."""
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        return self.encode(text if opening is None else f"{text}<|im_start|>{opening}\n")

    def words(self) -> Sequence[int]:
        """Tokens of a space and small letters; every token that is not special where there are few of those."""
        return self._words

    @cached_property
    def _words(self) -> Sequence[int]:
        plain = [token for token in range(self.size) if token not in self.special]
        found = [token for token in plain if re.fullmatch(rb" [a-z]{2,}", self.token_bytes(token))]
        return found[:512] if len(found) >= 16 else plain

    def _token(self, directory: Path, name: str) -> int:
        config = directory / "tokenizer_config.json"
        entry = json.loads(config.read_bytes()).get(name) if config.is_file() else None
        content = entry.get("content") if isinstance(entry, dict) else entry
        found = self._fast.token_to_id(content) if isinstance(content, str) else None
        return END if found is None else int(found)


def load_tokenizer(directory: Path | None) -> Tokenizer:
    """The tokenizer in `directory`, or the built-in one where there is none.

    Raises:
        ValueError: when the directory's tokenizer cannot be read.
    """
    if directory is None or not (directory / "tokenizer.json").is_file():
        return BuiltinTokenizer()
    try:
        return FileTokenizer(directory)
    except Exception as error:
        raise ValueError(f"cannot read the tokenizer in {directory}: {error}") from error


def decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """The text of `tokens`; incomplete UTF-8 becomes U+FFFD, as in vLLM."""
    return b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", "replace")


def _byte_spelling() -> dict[str, bytes]:
    """GPT-2's printable stand-in for each byte: itself where it is printable Latin-1, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {chr(byte): bytes([byte]) for byte in printable}
    return spelling | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)}


_SPELLING = _byte_spelling()


def _spelled_byte(character: str) -> bytes:
    return _SPELLING.get(character) or character.encode()
