"""Which kinds are being watched and which are not: gauges, and one log line where the whole changes."""

import time
from collections.abc import Mapping

import structlog

from sheaf_gateway.fleet import metrics
from sheaf_gateway.fleet.kubernetes.client import ApiError, NonsenseError
from sheaf_gateway.fleet.snapshot import KINDS, Kind

log = structlog.get_logger(__name__)

_RESOURCES: Mapping[Kind, str] = {kind: "pods" if kind == "pods" else f"{kind.lower()}.sheaf.dev" for kind in KINDS}


class WatchBoard:
    """The state of all watches. Every kind begins away."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._since: dict[Kind, float] = {}
        self._reasons: dict[Kind, str] = {}
        self._watched: set[Kind] = set()

    @property
    def away(self) -> frozenset[Kind]:
        """Kinds that cannot be kept up to date now, though it was tried."""
        return frozenset(self._since)

    def watching(self, kind: Kind) -> None:
        """A kind is being watched."""
        since = self._since.pop(kind, None)
        self._reasons.pop(kind, None)
        self._watched.add(kind)
        metrics.WATCH_CONNECTED.labels(kind).set(1)
        metrics.WATCH_AWAY_SINCE.labels(kind).set(0)
        if since is not None and not self._since:
            log.info("fleet_watch", state="watching", namespace=self._namespace, away_s=round(time.time() - since, 1))

    def failed(self, kind: Kind, error: ApiError) -> None:
        """A kind cannot be watched. Said once for all kinds, and again where a kind's reason is another one."""
        first, now = not self._since, time.time()
        since = self._since.setdefault(kind, now)
        metrics.WATCH_CONNECTED.labels(kind).set(0)
        metrics.WATCH_AWAY_SINCE.labels(kind).set(since)
        reason = explained(kind, error, self._namespace)
        told, self._reasons[kind] = self._reasons.get(kind), reason
        if first or (reason != told and (error.status or isinstance(error, NonsenseError))):
            log.warning(
                "fleet_watch",
                state="away",
                kind=kind,
                namespace=self._namespace,
                since=round(since, 3),
                reason=reason,
                kept="what was known before",
            )


def explained(kind: Kind, error: ApiError, namespace: str) -> str:
    """What is wrong and how to mend it."""
    resource = _RESOURCES[kind]
    if error.status == 401:
        return f"the API server does not accept the gateway's credentials: {error}"
    if error.status == 403:
        return f"the gateway's Role in namespace {namespace} must allow list and watch of {resource}: {error}"
    if error.status == 404:
        return f"the API server does not know {resource}; install Sheaf's CRDs"
    return str(error) if not error.status else f"the API server answered {error.status}: {error}"
