"""What the tokens of a model stand for, in bytes, read from its tokenizer.json; nothing of the model is run.

Only byte-level vocabularies (GPT-2's and those after it: Llama 3, Qwen, SmolLM, Mistral's newer ones) are told: there
the bytes of a text's tokens, joined, are the text. Others normalise: what is stored could not be compared with what is
asked. A tokenizer that brings text into NFC is taken, because nearly all text is in it already.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sheaf_crds.agent_api import Vocabulary

from sheaf_engine.agent.template import learn

LARGEST_TOKENIZER = 64 * 2**20
LARGEST_CONFIG = 4 * 2**20
MOST_TOKENS = 2**20
LONGEST_TOKEN = 2**16 - 1


class UnknownVocabularyError(Exception):
    """The bytes of the tokens are not known; the message says why."""


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of the model in that folder, with how it renders.

    Raises:
        UnknownVocabularyError: There is none that can be told.
    """
    try:
        tokenizer = _read(folder / "tokenizer.json", LARGEST_TOKENIZER)
        tokens = packed(token_bytes(tokenizer))
        config = _read(folder / "tokenizer_config.json", LARGEST_CONFIG)
        rendering = learn(_template(folder, config), _special(config))
        rendering = rendering.model_copy(update={"text": _opening(tokenizer)})
    except UnknownVocabularyError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnknownVocabularyError(f"tokenizer.json is not sound: {error!r}"[:300]) from error
    digest = hashlib.sha256(tokens + rendering.model_dump_json().encode()).hexdigest()
    return Vocabulary(digest=digest, tokens=b64encode(tokens).decode("ascii"), rendering=rendering)


def token_bytes(tokenizer: Mapping[str, Any]) -> list[bytes]:
    """The bytes of every token by its id; empty where it has none.

    Raises:
        UnknownVocabularyError: The tokenizer does not work on bytes.
    """
    _check_bytes(tokenizer)
    vocabulary = tokenizer["model"]["vocab"]
    added = {entry["id"]: entry["content"].encode() for entry in tokenizer.get("added_tokens") or ()}
    count = 1 + max((*vocabulary.values(), *added), default=-1)
    if count > MOST_TOKENS or min((*vocabulary.values(), *added), default=0) < 0:
        raise UnknownVocabularyError("it has token ids beyond every bound")
    found = [b""] * count
    for text, token in vocabulary.items():
        found[token] = _spelt(text)
    for token, content in added.items():
        found[token] = content
    return [data if len(data) <= LONGEST_TOKEN else b"" for data in found]


def packed(tokens: Iterable[bytes]) -> bytes:
    """Each token as the count of its bytes (16 bits, big endian) and they."""
    return b"".join(len(data).to_bytes(2, "big") + data for data in tokens)


def _read(path: Path, limit: int) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UnknownVocabularyError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise UnknownVocabularyError(f"{path.name} is larger than {limit} bytes")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnknownVocabularyError(f"{path.name} is not sound JSON") from error
    if not isinstance(found, dict):
        raise UnknownVocabularyError(f"{path.name} is not a JSON object")
    return found


def _check_bytes(tokenizer: Mapping[str, Any]) -> None:
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if not any(step["type"] == "ByteLevel" for step in steps) or tokenizer["model"]["type"] != "BPE":
        raise UnknownVocabularyError("its tokenizer does not work on bytes")
    if any(step.get("add_prefix_space") for step in steps):
        raise UnknownVocabularyError("its tokenizer puts a space before texts")
    if any(step["type"] != "NFC" for step in _steps(tokenizer.get("normalizer"), "normalizers")):
        raise UnknownVocabularyError("its tokenizer changes texts")


def _steps(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]


def _spelt(text: str) -> bytes:
    """The bytes that a byte-level vocabulary writes as these characters; none if it is no such spelling."""
    try:
        return bytes([_BYTES[character] for character in text])
    except KeyError:
        return b""


def _alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself where it is printable, else the next one from U+0100."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _alphabet()


def _opening(tokenizer: Mapping[str, Any]) -> str:
    """The special tokens that the tokenizer puts before a text."""
    opening = ""
    for step in _steps(tokenizer.get("post_processor"), "processors"):
        for part in step["single"] if step["type"] == "TemplateProcessing" else ():
            if "Sequence" in part:
                break
            opening += str(part["SpecialToken"]["id"])
    return opening


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that a template may name."""
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        entry = config.get(name)
        content = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str):
            found[name] = content
    return found


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template: of a file of its own, or of the configuration, where a list names its default."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_bytes()[:LARGEST_CONFIG].decode()
    found = config.get("chat_template") or ""
    if isinstance(found, list):
        return next((str(entry["template"]) for entry in found if entry["name"] == "default"), "")
    return str(found)
