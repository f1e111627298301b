"""What a service account asked the API server for, from the audit log, beside what its roles grant."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, order=True)
class Use:
    """One verb on one resource."""

    group: str
    resource: str
    verb: str


def requests(log: Path, account: str, offset: int = 0) -> Iterator[Object]:
    """The audit events of `system:serviceaccount:NAMESPACE:NAME` after a place in the log."""
    with log.open("rb") as file:
        file.seek(offset)
        for line in file:
            if account.encode() in line and line.endswith(b"\n"):
                event = json.loads(line)
                if event["user"]["username"] == f"system:serviceaccount:{account}":
                    yield event


def used(events: Sequence[Object]) -> set[Use]:
    """Each verb on each resource that was asked for."""
    references = [(event["objectRef"], event["verb"]) for event in events if "objectRef" in event]
    return {Use(ref.get("apiGroup", ""), _resource(ref), verb) for ref, verb in references if "resource" in ref}


def refused(events: Sequence[Object]) -> list[str]:
    """What was answered 401 or 403."""
    return sorted(
        {
            f"{event['verb']} {event['requestURI'].partition('?')[0]}"
            for event in events
            if event.get("responseStatus", {}).get("code") in {401, 403}
        }
    )


def granted(roles: Sequence[Object]) -> set[Use]:
    """Each verb on each resource that the roles grant."""
    return {
        Use(group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _resource(reference: Object) -> str:
    part = reference.get("subresource")
    return str(reference["resource"]) + (f"/{part}" if part else "")
