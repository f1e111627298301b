"""Answers of metadata services, and what they mean.

Times that a cloud tells are compared with the clock of the cloud where its answer has one (the header Date), so that a
machine whose clock is wrong still knows how long it has; and what is left is never more than what the kind of notice
can give, nor less than nothing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from pydantic import BaseModel, ValidationError

LONGEST_KEY = 128
OK, NOT_FOUND = 200, 404

M = TypeVar("M", bound=BaseModel)


class UnreadableError(Exception):
    """An answer that says nothing that could be understood; one line for people."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a metadata service answered. `now` is when it came (Unix seconds, the machine's clock), `date` its header
    of that name."""

    status: int
    body: bytes
    now: float
    date: str = ""

    @property
    def skew(self) -> float:
        """Seconds by which the cloud's clock is ahead of the machine's; 0 where it is not told."""
        told = http_time(self.date)
        return 0.0 if told is None else told - self.now


@dataclass(frozen=True, slots=True)
class Notice:
    """A machine will go.

    Attributes:
        reason: a CamelCase word.
        message: for people.
        key: stands for the event: the same event has the same key in each answer.
        deadline: when the machine goes (Unix seconds, the machine's clock); None: nobody says.
        lasting: clouds do not take it back.
        advisory: it may go soon, but nobody says that it will.
    """

    reason: str
    message: str
    key: str = ""
    deadline: float | None = None
    lasting: bool = False
    advisory: bool = False


def due(answer: Answer, at: float | None, longest: float) -> float:
    """When the machine goes if the cloud says `at` (Unix seconds, its clock; None: nothing), by the machine's clock."""
    left = longest if at is None else at - answer.skew - answer.now
    return answer.now + min(max(left, 0.0), longest)


def expect_ok(answer: Answer) -> None:
    """Nothing where the status is 200; UnreadableError otherwise."""
    if answer.status != OK:
        raise UnreadableError(f"it answered {answer.status}: {excerpt(answer.body)}")


def parsed(kind: type[M], answer: Answer) -> M:
    """The JSON object of an answer with status 200; UnreadableError for any other."""
    expect_ok(answer)
    try:
        return kind.model_validate_json(answer.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:64] or "body"
        raise UnreadableError(f"{field}: {first['msg'][:120]}: {excerpt(answer.body)}") from None


def excerpt(body: bytes) -> str:
    """The beginning of an answer, in one line that can be printed."""
    text = "".join(letter if letter.isprintable() else " " for letter in body[:120].decode("utf-8", "replace"))
    return " ".join(text.split()) or "nothing"


def key_of(*parts: str) -> str:
    """What stands for an event."""
    return " ".join(part[:LONGEST_KEY] for part in parts)


def http_time(text: str) -> float | None:
    """Unix seconds of a date as in `Mon, 19 Sep 2016 18:29:47 GMT`; None for anything else."""
    if not text.isascii() or len(text) > LONGEST_KEY:
        return None
    try:
        return _seconds(parsedate_to_datetime(text))
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def iso_time(text: str) -> float | None:
    """Unix seconds of a date as in `2017-09-18T08:22:00Z`; None for anything else."""
    if not text.isascii() or len(text) > LONGEST_KEY:
        return None
    try:
        return _seconds(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _seconds(found: datetime) -> float:
    """A time without a zone is UTC, as clouds write it."""
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
