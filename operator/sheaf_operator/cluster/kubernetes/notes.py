"""Events as people read them with kubectl: one object for each (object, reason, message), counted as a series. Pure."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime

from sheaf_crds import API_VERSION

from sheaf_operator.cluster.kubernetes.resources import EVENTS, MANAGER, Raw
from sheaf_operator.planning import EmitEvent

LONGEST_NOTE = 1024
LONGEST_NAME = 200
BURST = 60.0
REFILL = 1.0 / 60.0
REMEMBERED = 10_000


def event_name(event: EmitEvent) -> str:
    """The name of the Event: the same for the same object, reason and message."""
    digest = hashlib.sha256(f"{event.uid}\0{event.type}\0{event.reason}\0{event.message}".encode()).hexdigest()
    return f"{event.name[:LONGEST_NAME]}.{digest[:16]}"


def event_body(event: EmitEvent, namespace: str, instance: str, now: float) -> Raw:
    """The first of its series (`now`: Unix seconds)."""
    return {
        "apiVersion": EVENTS.api_version,
        "kind": "Event",
        "metadata": {"name": event_name(event), "namespace": namespace},
        "eventTime": stamp(now),
        "reportingController": f"sheaf.dev/{MANAGER}",
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "type": event.type,
        "reason": event.reason[:128],
        "note": note(event.message or event.reason),
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": event.kind,
            "name": event.name,
            "namespace": namespace,
            "uid": event.uid,
        },
    }


def again(found: Raw, now: float) -> Raw:
    """The patch that counts one more of the series."""
    count = int((found.get("series") or {}).get("count") or 1)
    return {"series": {"count": count + 1, "lastObservedTime": stamp(now)}}


def note(message: str) -> str:
    """The message as an Event may hold it."""
    encoded = message.encode()
    return message if len(encoded) <= LONGEST_NOTE else encoded[: LONGEST_NOTE - 3].decode(errors="ignore") + "…"


def stamp(now: float) -> str:
    """Unix seconds as Kubernetes' MicroTime."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Quota:
    """How many Events one object may cause: a burst, then one a minute. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def allows(self, uid: str, now: float) -> bool:
        """Whether the object may cause one more; counts it where it may."""
        bucket = self._buckets.setdefault(uid, _Bucket(BURST, now))
        self._buckets.move_to_end(uid)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        bucket.tokens = min(BURST, bucket.tokens + REFILL * max(0.0, now - bucket.at))
        bucket.at = now
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True
