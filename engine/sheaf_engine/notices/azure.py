"""Azure's scheduled events (api-version 2020-07-01), as documented: every machine of a scale set is told the events of
all, so an event counts where its resources name this machine. `NotBefore` is empty once an event has started. A
preemption has at least 30 s; a freeze leaves memory as it is and ends nothing. An event that Azure gives up disappears.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from sheaf_engine.notices.values import Answer, Notice, UnreadableError, due, excerpt, expect_ok, http_time, key_of
from sheaf_engine.notices.values import parsed as parsed_json

HEADERS = {"metadata": "true"}
EVENTS_PATH = "/metadata/scheduledevents"
EVENTS_QUERY = {"api-version": "2020-07-01"}
NAME_PATH = "/metadata/instance/compute/name"
NAME_QUERY = {"api-version": "2021-02-01", "format": "text"}
PREEMPT = "Preempt"
SHORTEST, LONGEST = 30.0, 30 * 86_400.0
LONGEST_NAME = 256

_MEANING: Mapping[str, tuple[str, str]] = {
    PREEMPT: ("SpotPreemption", "Azure takes the spot machine back, as its scheduled events say"),
    "Terminate": ("NodeTermination", "the machine is scheduled to be deleted, as Azure's scheduled events say"),
    "Redeploy": ("NodeRedeployment", "the machine is scheduled to move, as Azure's scheduled events say"),
    "Reboot": ("NodeReboot", "the machine is scheduled to reboot, as Azure's scheduled events say"),
}


class _Document(BaseModel):
    events: list[object] = Field(alias="Events")


class _Event(BaseModel):
    kind: str = Field(alias="EventType")
    resources: list[object] = Field(alias="Resources")
    identity: str = Field(default="", alias="EventId")
    status: str = Field(default="", alias="EventStatus")
    not_before: Annotated[str | None, Field(alias="NotBefore")] = None


def events(answer: Answer, machine: str) -> Notice | None:
    """The event that ends this machine soonest; None where none does. Events that cannot be read are passed over as
    long as one can.

    Raises:
        UnreadableError: nothing in the answer can be read.
    """
    listed = parsed_json(_Document, answer).events
    readable = [event for one in listed if (event := _event(one)) is not None]
    if listed and not readable:
        raise UnreadableError(f"no event that can be read: {excerpt(answer.body)}")
    mine = [event for event in readable if event.kind in _MEANING and _names(event, machine)]
    return min((_notice(event, answer) for event in mine), key=_when, default=None)


def name_of(answer: Answer) -> str:
    """The machine's name.

    Raises:
        UnreadableError: the answer is none.
    """
    expect_ok(answer)
    name = answer.body[: LONGEST_NAME + 1].decode("utf-8", "replace").strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UnreadableError(f"no name of a machine: {excerpt(answer.body)}")
    return name


def _event(found: object) -> _Event | None:
    try:
        return _Event.model_validate(found)
    except ValidationError:
        return None


def _names(event: _Event, machine: str) -> bool:
    """Names of resources are the same in capitals and small letters."""
    return any(isinstance(one, str) and one.casefold() == machine.casefold() for one in event.resources)


def _notice(event: _Event, answer: Answer) -> Notice:
    reason, message = _MEANING[event.kind]
    return Notice(reason, message, key_of(event.kind, event.identity), _deadline(event, answer))


def _deadline(event: _Event, answer: Answer) -> float | None:
    if event.status == "Started":
        return answer.now
    at = http_time(event.not_before or "")
    if at is None:
        return due(answer, None, SHORTEST) if event.kind == PREEMPT else None
    return due(answer, at, LONGEST)


def _when(notice: Notice) -> float:
    return float("inf") if notice.deadline is None else notice.deadline
