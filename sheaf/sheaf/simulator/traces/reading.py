"""Reading a trace, whichever of the formats it has; all of it is checked before anything runs.

Mooncake (JSON lines): `timestamp` in milliseconds, `input_length`, `output_length`, `hash_ids` of 512-token prompt
blocks, each id naming the whole prefix up to its block's end. Azure (CSV): TIMESTAMP, ContextTokens, GeneratedTokens.
Sheaf's own (JSON lines): `arrival` in seconds, `input_tokens`, `output_tokens`, and if wanted `model` (a served name:
Model or Adapter), `tenant`, `session` and `prompt`, a list of [id, tokens] segments (see :mod:`sheaf.simulator.calls`).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from sheaf.simulator.calls import LONGEST, Call, Segment
from sheaf.simulator.traces.errors import TraceError
from sheaf.simulator.traces.sessions import Sessions

MOONCAKE_BLOCK = 512
MOST_TOKENS = LONGEST
MOST_CALLS = 20_000_000
_UNIQUE = 1 << 48
_FORMATS = "known are Mooncake's and Sheaf's JSON lines and Azure's CSV (docs/simulator.md)"


def read_trace(path: Path) -> list[Call]:
    """The calls of a trace, in order of arrival, the first at 0.

    Raises:
        TraceError: naming file, line and remedy.
    """
    try:
        with path.open("rb") as file:
            calls = list(_calls(path, file))
    except OSError as error:
        raise TraceError(path, 0, f"cannot be read: {error.strerror}", "name a readable file") from error
    if not calls:
        raise TraceError(path, 1, "holds no request", "a trace needs one at least")
    calls.sort(key=lambda call: call.arrival)
    start = calls[0].arrival
    return [call.at(call.arrival - start) for call in calls] if start else calls


def _calls(path: Path, file: Iterator[bytes]) -> Iterator[Call]:
    parse: Callable[[int, bytes], Call] | None = None
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        if number > MOST_CALLS:
            raise TraceError(path, number, f"more than {MOST_CALLS} lines", "cut the trace")
        if parse is None:
            found = _format(path, number, line)
            if isinstance(found, Azure):
                parse = found.call
                continue
            parse = found.call
        try:
            yield parse(number, line)
        except _BadLineError as error:
            raise TraceError(path, number, error.what, error.remedy) from None


class _BadLineError(Exception):
    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def _format(path: Path, number: int, line: bytes) -> Mooncake | Azure | Own:
    text = line.strip()
    if text.startswith(b"{"):
        try:
            fields = _fields(text)
        except _BadLineError as error:
            raise TraceError(path, number, error.what, error.remedy) from None
        if "hash_ids" in fields:
            return Mooncake()
        if "arrival" in fields:
            return Own()
    elif b"," in text:
        header = next(csv.reader([text.decode("utf-8-sig", "replace")]))
        if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(header):
            return Azure(header)
    raise TraceError(path, number, "is in no known format", _FORMATS)


def _fields(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _BadLineError(f"is no JSON: {error.msg}", "write one object a line") from None
    if not isinstance(value, dict):
        raise _BadLineError("is no JSON object", "write one object a line")
    return value


def _number(fields: dict[str, Any], name: str, least: float = 0.0) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise _BadLineError(f"{name} is {value!r}", f"give a number of at least {least:g}")
    return float(value)


def _tokens(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_TOKENS:
        raise _BadLineError(f"{name} is {value!r}", f"give a whole number from 0 to {MOST_TOKENS - 1}")
    return max(value, 1)


def _name(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str) or len(value) > 253:
        raise _BadLineError(f"{name} is {str(value)[:40]!r}", "give a text of at most 253 characters")
    return value


class Mooncake:
    """The Mooncake project's format."""

    def __init__(self) -> None:
        self._sessions = Sessions()

    def call(self, _: int, line: bytes) -> Call:
        """One line."""
        fields = _fields(line)
        tokens = _tokens(fields, "input_length")
        ids = fields.get("hash_ids")
        if not isinstance(ids, list) or not all(type(item) is int and 0 <= item < _UNIQUE for item in ids):
            raise _BadLineError("hash_ids is no list of numbers", "give the ids of the prompt's blocks")
        if len(ids) != -(-tokens // MOONCAKE_BLOCK):
            raise _BadLineError(
                f"{len(ids)} hash_ids for {tokens} tokens", f"give one for every {MOONCAKE_BLOCK} tokens"
            )
        last = tokens - MOONCAKE_BLOCK * (len(ids) - 1)
        segments = (*((item, MOONCAKE_BLOCK) for item in ids[:-1]), (ids[-1], last))
        output = _tokens(fields, "output_length")
        return Call(
            _number(fields, "timestamp") / 1000.0, "", segments, tokens, output, session=self._sessions.of(segments)
        )


class Azure:
    """The Azure public dataset's format: no prefixes, every prompt is new."""

    def __init__(self, header: list[str]) -> None:
        self._header = header

    def call(self, number: int, line: bytes) -> Call:
        """One line."""
        cells = next(csv.reader([line.decode("utf-8", "replace").strip()]))
        fields = dict(zip(self._header, cells, strict=False))
        tokens, output = (_tokens(_counts(fields), name) for name in ("ContextTokens", "GeneratedTokens"))
        return Call(_moment(fields["TIMESTAMP"]), "", ((_UNIQUE + number, tokens),), tokens, output, session=number)


def _counts(fields: dict[str, str]) -> dict[str, Any]:
    return {name: int(text) if text.isdecimal() else text for name, text in fields.items()}


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise _BadLineError(f"TIMESTAMP is {text[:40]!r}", "write it as 2023-11-16 18:15:46.6805900") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


class Own:
    """Sheaf's own format."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._sessions = Sessions()

    def call(self, number: int, line: bytes) -> Call:
        """One line."""
        fields = _fields(line)
        tokens = _tokens(fields, "input_tokens")
        segments = self._segments(fields, number, tokens)
        session = self._id(_name(fields, "session")) if "session" in fields else self._sessions.of(segments)
        return Call(
            _number(fields, "arrival"),
            _name(fields, "model"),
            segments,
            tokens,
            _tokens(fields, "output_tokens"),
            tenant=_name(fields, "tenant"),
            session=session,
            named="session" in fields,
        )

    def _segments(self, fields: dict[str, Any], number: int, tokens: int) -> tuple[Segment, ...]:
        given = fields.get("prompt", [])
        if not isinstance(given, list) or not all(map(_is_segment, given)):
            raise _BadLineError("prompt is no list of [id, tokens]", "give ids as text and tokens above 0")
        segments = [(self._id(name), length) for name, length in given]
        rest = tokens - sum(length for _, length in segments)
        if rest < 0:
            raise _BadLineError(
                f"prompt has {tokens - rest} tokens, input_tokens {tokens}", "let input_tokens cover it"
            )
        return (*segments, (_UNIQUE + number, rest)) if rest else tuple(segments)

    def _id(self, name: str) -> int:
        return self._ids.setdefault(name, len(self._ids))


def _is_segment(item: object) -> bool:
    return (
        isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and type(item[1]) is int and item[1] > 0
    )
