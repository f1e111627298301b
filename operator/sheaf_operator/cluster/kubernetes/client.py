"""Calls to the API server: raw JSON in and out, every failure a ClusterError, every call counted."""

from collections.abc import AsyncIterator, Mapping

import aiohttp
import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram

from sheaf_operator.cluster.kubernetes.access import Configuration, authorization, rest_client
from sheaf_operator.cluster.kubernetes.errors import UnreachableError, refusal
from sheaf_operator.cluster.kubernetes.resources import MANAGER, Raw, Resource

TIMEOUT = 10.0
CONNECT_TIMEOUT = 5.0
PAGE = 500
CONNECTIONS = 64

_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_METHODS = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


class ApiServer:
    """The API server, as one namespace of it is used. To be closed."""

    def __init__(self, configuration: Configuration, namespace: str, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.namespace = namespace
        self._configuration = configuration
        self._rest = rest_client(configuration, CONNECTIONS)
        self._calls = Counter(
            "sheaf_operator_api_calls", "Calls to the API server.", ["verb", "resource", "code"], registry=registry
        )
        self._seconds = Histogram(
            "sheaf_operator_api_call_seconds", "Duration of a call.", ["verb", "resource"], registry=registry
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._rest.close()

    async def get(self, resource: Resource, name: str) -> Raw:
        """One object as it is now."""
        return await self._call("get", resource, name)

    async def pages(self, resource: Resource) -> AsyncIterator[tuple[list[Raw], int]]:
        """All objects, page by page, each with the list's resourceVersion; all pages show the same moment."""
        query: dict[str, str] = {"limit": str(PAGE)}
        if resource.selector:
            query["labelSelector"] = resource.selector
        while True:
            answer = await self._call("list", resource, query=query)
            meta = answer.get("metadata") or {}
            version = str(meta.get("resourceVersion") or "0")
            yield answer.get("items") or [], int(version) if version.isdecimal() else 0
            if not meta.get("continue"):
                return
            query["continue"] = str(meta["continue"])

    async def create(self, resource: Resource, body: Raw) -> Raw:
        """A new object; 409 where one of that name is there."""
        return await self._call("create", resource, query={"fieldManager": MANAGER}, body=body)

    async def replace(self, resource: Resource, name: str, body: Raw) -> Raw:
        """The object with this content, where its resourceVersion is still the one in the body; else 409."""
        return await self._call("update", resource, name, query={"fieldManager": MANAGER}, body=body)

    async def apply_status(self, resource: Resource, name: str, body: Raw) -> Raw:
        """Server-side apply of a status; 409 where metadata.uid is another one by now."""
        query = {"fieldManager": MANAGER, "force": "true"}
        return await self._call("patch", resource, name, "status", query=query, body=body, content=_APPLY)

    async def merge(self, resource: Resource, name: str, body: Raw) -> Raw:
        """A merge patch; an empty one changes nothing and returns the object."""
        return await self._call("patch", resource, name, query={"fieldManager": MANAGER}, body=body, content=_MERGE)

    async def delete(self, resource: Resource, name: str, uid: str) -> Raw:
        """End the object with that UID; 409 where it is another one."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        return await self._call("delete", resource, name, body=body)

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server knows the resource (needs no permission)."""
        answer = await self._request("get", f"{resource.api}", Resource("", "", "apis", ""), "", {}, None, _JSON)
        return any(entry.get("name") == resource.plural for entry in answer.get("resources") or [])

    async def _call(
        self,
        verb: str,
        resource: Resource,
        name: str = "",
        part: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Raw | None = None,
        content: str = _JSON,
    ) -> Raw:
        path = resource.path(self.namespace, name, part)
        return await self._request(verb, path, resource, name, query or {}, body, content)

    async def _request(
        self,
        verb: str,
        path: str,
        resource: Resource,
        name: str,
        query: Mapping[str, str],
        body: Raw | None,
        content: str,
    ) -> Raw:
        code = "none"
        try:
            with self._seconds.labels(verb, resource.plural).time():
                status, headers, text = await self._send(_METHODS[verb], path, query, body, content)
            code = str(status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise UnreachableError(f"the API server does not answer: {why}", passing=True) from error
        finally:
            self._calls.labels(verb, resource.plural, code).inc()
        answer = _parsed(text)
        if not 200 <= status <= 299:
            raise refusal(status, answer, headers, verb, resource, name)
        return answer

    async def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Raw | None, content: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"Accept": _JSON, "Content-Type": content, "User-Agent": MANAGER}
        if header := await authorization(self._configuration):
            headers["Authorization"] = header
        timeout = aiohttp.ClientTimeout(total=TIMEOUT, sock_connect=CONNECT_TIMEOUT)
        url = f"{self._configuration.host}{path}"
        answer = await self._rest.request(
            method, url, query, headers, body, _preload_content=False, _request_timeout=timeout
        )
        async with answer:
            return answer.status, answer.headers, await answer.read()


def _parsed(text: bytes) -> Raw:
    try:
        answer = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError:
        return {"message": text[:200].decode(errors="replace")}
    return answer if isinstance(answer, dict) else {}
