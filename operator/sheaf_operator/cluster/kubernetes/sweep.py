"""Full lists of everything that is watched: the first complete view, and what a watch missed later.

The view takes from a list only what is newer than what it knows, and drops what a list taken later than its last word
of an object no longer has.
"""

from collections.abc import Iterable

import structlog

from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.resources import WATCHED, Resource
from sheaf_operator.cluster.kubernetes.view import View

_log = structlog.get_logger("sheaf.operator.sweep")


async def sweep(api: ApiServer, view: View, resources: Iterable[Resource] = WATCHED) -> None:
    """List every resource once; raises ClusterError where one cannot be listed, and keeps what is known of it."""
    for resource in resources:
        await _sweep(api, view, resource)


async def _sweep(api: ApiServer, view: View, resource: Resource) -> None:
    seen: set[str] = set()
    version = 0
    async for page, version in api.pages(resource):  # noqa: B007 - the last page's version is the list's
        for raw in page:
            raw.setdefault("kind", resource.kind)
            raw.setdefault("apiVersion", resource.api_version)
            seen.add(str(raw["metadata"].get("uid", "")))
            view.take(resource, raw)
    view.prune(resource, seen, version)


async def missing(api: ApiServer, resources: Iterable[Resource]) -> list[str]:
    """The resources that the API server does not know (yet)."""
    return [f"{resource.plural}.{resource.group}" for resource in resources if not await api.serves(resource)]
