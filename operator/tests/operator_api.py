"""A small API server on loopback: enough of lists, watches, writes and refusals for the operator to run against it."""

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration
from sheaf_operator.cluster.kubernetes.resources import DECLARED, EVENTS, LEASES, NODES, PODS, Resource

NAMESPACE = "test"
RESOURCES = {resource.plural: resource for resource in (*DECLARED.values(), PODS, NODES, EVENTS, LEASES)}
READS = ("get", "list", "watch")

Raw = dict[str, Any]


@dataclass
class FakeApi:
    """Objects, their history, and every call; `refuse` maps (verb, plural) to the status of a refusal."""

    objects: dict[tuple[str, str], Raw] = field(default_factory=dict)
    history: list[tuple[str, str, Raw]] = field(default_factory=list)
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    refuse: dict[tuple[str, str], tuple[int, Raw, dict[str, str]]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    first_version: int = 0
    version: int = 100
    port: int = 0

    def __post_init__(self) -> None:
        self._news = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._uids = 0

    @property
    def writes(self) -> list[tuple[str, str, str]]:
        """Calls that change something, the Lease's aside."""
        return [call for call in self.calls if call[0] not in READS and call[1] != LEASES.plural]

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """End all connections; what is declared stays."""
        runner, self._runner = self._runner, None
        self._news.set()
        if runner:
            await runner.cleanup()

    def configuration(self) -> Configuration:
        made = Configuration()
        made.host = f"http://127.0.0.1:{self.port}"
        return made

    def put(self, kind: str, name: str, **fields: Any) -> Raw:
        """Write an object as a user or a controller would; a new one gets a UID."""
        resource = next(found for found in RESOURCES.values() if found.kind == kind)
        old = self.objects.get((resource.plural, name))
        raw = copy.deepcopy(old) if old else self._made(resource, name)
        for key, value in fields.items():
            if key == "metadata":
                raw["metadata"].update(value)
            else:
                raw[key] = value
        if old and old.get("spec") != raw.get("spec"):
            raw["metadata"]["generation"] += 1
        self._store(resource, raw, "MODIFIED" if old else "ADDED")
        return raw

    def remove(self, kind: str, name: str, *, unseen: bool = False) -> None:
        """Delete an object; `unseen`: no watch hears of it, as when the history is compacted meanwhile."""
        resource = next(found for found in RESOURCES.values() if found.kind == kind)
        raw = self.objects.pop((resource.plural, name))
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        if unseen:
            self.history.clear()
            self.first_version = self.version
        else:
            self.history.append((resource.plural, "DELETED", copy.deepcopy(raw)))
        self._news.set()

    def get(self, kind: str, name: str) -> Raw:
        return next(raw for (plural, key), raw in self.objects.items() if raw["kind"] == kind and key == name)

    def names(self, kind: str) -> list[str]:
        return sorted(name for (_, name), raw in self.objects.items() if raw["kind"] == kind)

    def _made(self, resource: Resource, name: str) -> Raw:
        self._uids += 1
        meta = {"name": name, "uid": f"uid-{self._uids}", "generation": 1}
        meta["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta}

    def _store(self, resource: Resource, raw: Raw, event: str) -> Raw:
        key = (resource.plural, raw["metadata"]["name"])
        old = self.objects.get(key)
        if old is not None and _content(old) == _content(raw):
            return old
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = raw
        self.history.append((resource.plural, event, copy.deepcopy(raw)))
        self._news.set()
        return raw

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        if len(parts) == 1 or len(parts) == {"api": 2, "apis": 3}[parts[0]]:
            return self._discovery(parts)
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if rest[0] == "namespaces":
            assert rest[1] == NAMESPACE
            rest = rest[2:]
        resource = RESOURCES[rest[0]]
        name, part = (rest[1] if len(rest) > 1 else ""), (rest[2] if len(rest) > 2 else "")
        verb = _verb(request, name)
        self.calls.append((verb, resource.plural, name))
        if (verb, resource.plural) in self.refuse:
            status, body, headers = self.refuse[verb, resource.plural]
            return web.json_response(body, status=status, headers=headers)
        if verb == "watch":
            return await self._watch(request, resource)
        body = json.loads(await request.text() or "{}")
        status, answer = getattr(self, f"_{verb}")(resource, name, part, body)
        return web.json_response(answer, status=status)

    def _discovery(self, parts: list[str]) -> web.Response:
        if parts == ["api"]:
            return web.json_response({"versions": ["v1"]})
        if parts == ["apis"]:
            groups = {resource.group: resource.version for resource in RESOURCES.values() if resource.group}
            groups["apiextensions.k8s.io"] = "v1"
            return web.json_response(
                {
                    "groups": [
                        {"name": group, "versions": [{"version": version}], "preferredVersion": {"version": version}}
                        for group, version in groups.items()
                    ]
                }
            )
        group = parts[1] if parts[0] == "apis" else ""
        found = [_listing(one) for one in RESOURCES.values() if one.group == group and one.plural not in self.missing]
        if group == "apiextensions.k8s.io":
            found = [_listing(Resource(group, "v1", "customresourcedefinitions", "CustomResourceDefinition", False))]
        if group == "":
            found.append(_listing(Resource("", "v1", "namespaces", "Namespace", False)))
        if not found:
            return web.json_response({"message": "no such group", "reason": "NotFound"}, status=404)
        return web.json_response({"resources": found})

    async def _watch(self, request: web.Request, resource: Resource) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        answer = web.StreamResponse()
        await answer.prepare(request)
        if since < self.first_version:
            await _line(answer, {"type": "ERROR", "object": {"code": 410, "reason": "Expired"}})
            return answer
        while self._runner is not None:
            self._news.clear()
            for plural, event, raw in list(self.history):
                if plural == resource.plural and int(raw["metadata"]["resourceVersion"]) > since:
                    since = int(raw["metadata"]["resourceVersion"])
                    await _line(answer, {"type": event, "object": raw})
            if since < self.first_version:
                break
            await _news(self._news)
        return answer

    def _list(self, resource: Resource, *_: Any) -> tuple[int, Raw]:
        items = [raw for (plural, _), raw in sorted(self.objects.items()) if plural == resource.plural]
        listed = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "items": items}
        return 200, {**listed, "metadata": {"resourceVersion": str(self.version)}}

    def _get(self, resource: Resource, name: str, *_: Any) -> tuple[int, Raw]:
        found = self.objects.get((resource.plural, name))
        return (200, found) if found else (404, {"reason": "NotFound", "message": f"{name} not found"})

    def _create(self, resource: Resource, _: str, __: str, body: Raw) -> tuple[int, Raw]:
        name = body["metadata"]["name"]
        if (resource.plural, name) in self.objects:
            return 409, {"reason": "AlreadyExists", "message": f"{name} already exists"}
        raw = self._made(resource, name)
        raw["metadata"] = body["metadata"] | raw["metadata"]
        return 201, self._store(resource, body | {"metadata": raw["metadata"]}, "ADDED")

    def _update(self, resource: Resource, name: str, _: str, body: Raw) -> tuple[int, Raw]:
        old = self.objects.get((resource.plural, name))
        if old is None:
            return 404, {"reason": "NotFound", "message": "gone"}
        if body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
            return 409, {"reason": "Conflict", "message": "the object has been modified"}
        return 200, self._store(resource, body | {"metadata": dict(old["metadata"])}, "MODIFIED")

    def _patch(self, resource: Resource, name: str, part: str, body: Raw) -> tuple[int, Raw]:
        old = self.objects.get((resource.plural, name))
        if old is None:
            return 404, {"reason": "NotFound", "message": "gone"}
        if body.get("metadata", {}).get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            return 409, {"reason": "Conflict", "message": "Precondition failed: UID"}
        raw = copy.deepcopy(old)
        raw.update({"status": body["status"]} if part == "status" else body)
        return 200, self._store(resource, raw, "MODIFIED")

    def _delete(self, resource: Resource, name: str, _: str, body: Raw) -> tuple[int, Raw]:
        old = self.objects.get((resource.plural, name))
        if old is None:
            return 404, {"reason": "NotFound", "message": "gone"}
        if body.get("preconditions", {}).get("uid") != old["metadata"]["uid"]:
            return 409, {"reason": "Conflict", "message": "Precondition failed: UID"}
        self.remove(resource.kind, name)
        return 200, old


def _content(raw: Raw) -> Raw:
    meta = {key: value for key, value in raw["metadata"].items() if key != "resourceVersion"}
    return raw | {"metadata": meta}


def _verb(request: web.Request, name: str) -> str:
    if request.method == "GET":
        return "get" if name else "watch" if request.query.get("watch") else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]


def _listing(resource: Resource) -> Raw:
    return {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "kind": resource.kind,
        "namespaced": resource.namespaced,
        "verbs": ["get", "list", "watch", "patch"],
    }


async def _line(answer: web.StreamResponse, event: Raw) -> None:
    await answer.write(json.dumps(event).encode() + b"\n")


async def _news(event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(0.05):
            await event.wait()
    except TimeoutError:
        return


@asynccontextmanager
async def fake_api() -> AsyncIterator[FakeApi]:
    api = FakeApi()
    await api.start()
    try:
        yield api
    finally:
        await api.stop()
