"""What is remembered of zones: losses, hours held, capacity found and not found. Bounded, and it fades.

SkyServe keeps two sets, zones that are active and zones that were preempted (Mao et al., SkyServe, EuroSys 2025). Here
a zone has counts instead, each halved every HALF_LIFE, so that a zone that was bad last week gets its chance again and
one that is bad today is left alone for longer. Counts change when something happens to a pod, never by time alone, so
what is stored of them is not written again and again. A pod counts once: its UID is kept as long as it can be seen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sheaf_operator.planning.market.ages import exposure

HALF_LIFE = 48 * 3600.0
MOST_ZONES = 64
MOST_COUNTED = 64

Fate = Literal["Lost", "Retired", "Refused"]


@dataclass(frozen=True, slots=True)
class ZoneRecord:
    """One zone.

    Attributes:
        losses: pods taken there, fading.
        hours: exposure of pods on spot there that are over (hours by the danger of their age), fading.
        placed: pods that found capacity there and are gone, fading.
        refused: pods that found none, fading.
        updated: when the counts were right (Unix seconds).
        empty_at: when capacity was missed there last (Unix seconds; 0: never).
        counted: UIDs of pods that are counted and may still be seen.
    """

    zone: str
    losses: float = 0.0
    hours: float = 0.0
    placed: float = 0.0
    refused: float = 0.0
    updated: float = 0.0
    empty_at: float = 0.0
    counted: tuple[str, ...] = ()

    def faded(self, now: float) -> "ZoneRecord":
        """The record with its counts as they weigh now."""
        left = 0.5 ** (max(0.0, now - self.updated) / HALF_LIFE)
        values = (self.losses * left, self.hours * left, self.placed * left, self.refused * left)
        return ZoneRecord(self.zone, *values, max(now, self.updated), self.empty_at, self.counted)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A spot pod that is over, or soon is, as it is seen now.

    `fate`: Lost (taken by the cloud), Retired (we let it go), Refused (it found no capacity); `hours` on its node.
    """

    uid: str
    zone: str
    fate: Fate
    hours: float
    at: float


def remember(
    records: Mapping[str, ZoneRecord], sightings: Iterable[Sighting], seen: frozenset[str]
) -> dict[str, ZoneRecord]:
    """The records with what is new in these sightings; equal to what it was where nothing is.

    Args:
        records: by zone.
        sightings: pods that are over; those counted before change nothing.
        seen: UIDs of all pods that can be seen; UIDs of others are forgotten when a zone changes.
    """
    found = dict(records)
    for sighting in sightings:
        record = found.get(sighting.zone, ZoneRecord(sighting.zone))
        if sighting.zone and sighting.uid not in record.counted:
            found[sighting.zone] = _with(record, sighting, seen)
    return _bounded(found)


def _with(record: ZoneRecord, sighting: Sighting, seen: frozenset[str]) -> ZoneRecord:
    now = record.faded(sighting.at)
    counted = tuple(uid for uid in (*record.counted, sighting.uid) if uid in seen)[-MOST_COUNTED:]
    refused = sighting.fate == "Refused"
    missed = sighting.fate != "Retired"
    return replace(
        now,
        losses=now.losses + (sighting.fate == "Lost"),
        hours=now.hours + (0.0 if refused else exposure(sighting.hours)),
        placed=now.placed + (not refused),
        refused=now.refused + refused,
        empty_at=max(now.empty_at, sighting.at) if missed else now.empty_at,
        counted=counted,
    )


def _bounded(records: dict[str, ZoneRecord]) -> dict[str, ZoneRecord]:
    """The zones heard of last, where there are too many."""
    kept = sorted(records.values(), key=lambda one: (-one.updated, one.zone))[:MOST_ZONES]
    return {one.zone: one for one in sorted(kept, key=lambda one: one.zone)}
