"""One writer at a time: when to take, renew or wait for the Lease. Pure; times are readings of a monotonic clock.

A holder may act until `TRUST` seconds after it *asked* for its last confirmed renewal. Others take over no earlier
than `DURATION` seconds after they *saw* that renewal, which is later. So two never act at once, whatever the clocks of
their machines say: no timestamp that another machine wrote is compared with the own clock (as in client-go's election).
A killed holder is replaced within DURATION + POLL seconds, one that ended cleanly within POLL seconds.
"""

from dataclasses import dataclass, replace
from typing import Literal

DURATION = 10.0
TRUST = 8.0
POLL = 2.0
RETRY = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """The Lease as the API server holds it; `version` is its resourceVersion, `holder` is empty where it is free."""

    holder: str
    renewed: str
    version: str
    duration: float = DURATION
    transitions: int = 0
    acquired: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What one candidate knows: the last record, when it first saw it, and until when it may act itself."""

    me: str
    record: Record | None = None
    seen_at: float = 0.0
    trusted_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a candidate should do now: write the Lease (where it is absent: create it), or look again in so long."""

    do: Literal["create", "take", "renew", "wait"]
    seconds: float = 0.0


def seen(standing: Standing, record: Record | None, now: float) -> Standing:
    """The standing after a look at the Lease; a holder's time runs from when its renewal was first seen here."""
    if record == standing.record:
        return standing
    return replace(standing, record=record, seen_at=now)


def written(standing: Standing, record: Record, asked_at: float) -> Standing:
    """The standing after the API server confirmed a write that was asked for at `asked_at`."""
    return replace(standing, record=record, seen_at=asked_at, trusted_until=asked_at + TRUST)


def released(standing: Standing) -> Standing:
    """The standing of one that acts no more."""
    return replace(standing, trusted_until=0.0)


def holds(standing: Standing, now: float) -> bool:
    """Whether the candidate may act."""
    return now < standing.trusted_until


def wish(standing: Standing, now: float) -> Wish:
    """What to do now."""
    record = standing.record
    if record is None:
        return Wish("create")
    if record.holder == standing.me:
        wait = standing.seen_at + POLL - now
        return Wish("wait", wait) if wait > 0 and holds(standing, now) else Wish("renew")
    expires = standing.seen_at + max(record.duration, RETRY)
    if not record.holder or now >= expires:
        return Wish("take")
    return Wish("wait", min(POLL, expires - now))
