"""The market policy over a Model's pods as they are observed: what is asked, and what is remembered in its status."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from sheaf_crds import Model
from sheaf_crds.model import SpotZone

from sheaf_operator.planning.market.memory import Fate, Sighting, ZoneRecord, remember
from sheaf_operator.planning.market.policy import decide
from sheaf_operator.planning.market.values import HOUR, Ask, Decision, Held, Stage, Terms
from sheaf_operator.planning.snapshot import PodFacts

AGAIN = 300.0
DIGITS = 4
# Words of notices and of ended pods that say that the capacity was taken, not that somebody let it go.
LOSSES = frozenset({
    "SpotInterruption", "SpotPreemption", "NodeOutOfService", "NodeShutdown", "NodeUnreachable", "NodeNotReady",
    "NodeTermination", "NodeGone", "DeletionByTaintManager", "DeletionByPodGC",
})  # fmt: skip


def capacity(
    model: Model,
    terms: Terms,
    replicas: int,
    pods: Sequence[PodFacts],
    hashes: tuple[str, str],
    now: float,
    loads: tuple[float, ...] | None = None,
    least: int = 0,
) -> Decision:
    """How many pods of each sort the Model should have, and where.

    Args:
        model: the Model; its status holds what is remembered.
        terms: the market.
        replicas: how many should serve.
        pods: every pod of the Model.
        hashes: template hashes of on-demand and of spot pods that are wanted now.
        now: Unix seconds.
        loads: replicas' worth of requests in each of the last minutes, as far as they are known; None: nobody will.
        least: how many should serve whatever the load.
    """
    spec = model.spec.spot
    held = tuple(_held(pod, hashes[1]) for pod in pods if pod.live and pod.template_hash in hashes)
    records = records_of(remembered(model, pods, (), now))
    floor, spares = spec.on_demand_floor, spec.over_provision
    return decide(Ask(spec.policy, replicas, floor, spares, held, records, terms, now, loads, least))


def again_times(pods: Iterable[PodFacts], spot_hash: str, terms: Terms, now: float) -> list[float]:
    """When pods that wait for spot are looked at again: after their patience, then every five minutes."""
    waits = [pod.created_at for pod in pods if pod.live and pod.template_hash == spot_hash and _stage(pod) == "Waiting"]
    return [max(since + terms.patience, since + AGAIN * ((now - since) // AGAIN + 1)) for since in waits] + [
        since + terms.patience for since in waits
    ]


def remembered(model: Model, pods: Sequence[PodFacts], refused: Iterable[str], now: float) -> tuple[SpotZone, ...]:
    """The Model's memory of zones with what its pods show now; the same where that is nothing new.

    Args:
        model: the Model.
        pods: every pod of it.
        refused: names of pods that find no capacity where they are.
        now: Unix seconds.
    """
    vain = frozenset(refused)
    sightings = [
        Sighting(pod.uid, pod.zone, fate, _hours(pod, now), now)
        for pod in pods
        if pod.spot and pod.zone and (fate := _fate(pod, vain)) is not None
    ]
    before = records_of(model.status.spot_zones)
    after = remember(before, sightings, frozenset(pod.uid for pod in pods))
    return model.status.spot_zones if after == before else tuple(_stored(record) for record in after.values())


def records_of(zones: Iterable[SpotZone]) -> Mapping[str, ZoneRecord]:
    """The memory as it is stored."""
    return {zone.zone: _record(zone) for zone in zones}


def _fate(pod: PodFacts, vain: frozenset[str]) -> Fate | None:
    if pod.name in vain:
        return "Refused"
    if (pod.notice is not None and pod.notice.reason in LOSSES) or (pod.ended and pod.reason in LOSSES):
        return "Lost"
    return "Retired" if (pod.draining or pod.ended) and pod.node else None


def _held(pod: PodFacts, spot_hash: str) -> Held:
    return Held(pod.name, pod.template_hash == spot_hash, pod.zone, _stage(pod), _since(pod))


def _stage(pod: PodFacts) -> Stage:
    if pod.ready:
        return "Ready"
    return "Waiting" if pod.reason == "Unschedulable" else "Starting"


def _hours(pod: PodFacts, now: float) -> float:
    return max(0.0, now - _since(pod)) / HOUR


def _since(pod: PodFacts) -> float:
    """When it found its node: hours without one say nothing of how safe it is there."""
    return max(pod.created_at, pod.scheduled_at) if pod.node else pod.created_at


def _record(zone: SpotZone) -> ZoneRecord:
    return ZoneRecord(
        zone.zone,
        zone.losses,
        zone.hours,
        zone.placed,
        zone.refused,
        _seconds(zone.updated_at),
        _seconds(zone.empty_at),
        zone.counted,
    )


def _stored(record: ZoneRecord) -> SpotZone:
    return SpotZone(
        zone=record.zone,
        losses=round(record.losses, DIGITS),
        hours=round(record.hours, DIGITS),
        placed=round(record.placed, DIGITS),
        refused=round(record.refused, DIGITS),
        updated_at=_time(record.updated),
        empty_at=_time(record.empty_at),
        counted=record.counted,
    )


def _seconds(time: datetime | None) -> float:
    return 0.0 if time is None else time.timestamp()


def _time(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(int(seconds), UTC) if seconds else None
