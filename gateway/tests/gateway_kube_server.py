"""A small real API server on loopback: lists in pages, watches with bookmarks, and misbehaves when told to."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from gateway_raw_servers import RawServer, Seen, chunk, response

GROUP = "/apis/sheaf.dev/v1alpha1/namespaces/team"
PATHS = {
    "models": f"{GROUP}/models",
    "adapters": f"{GROUP}/adapters",
    "slos": f"{GROUP}/slos",
    "autoscalingPolicies": f"{GROUP}/autoscalingpolicies",
    "pods": "/api/v1/namespaces/team/pods",
}
KINDS = {path: kind for kind, path in PATHS.items()}
WATCH_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
CUT = "cut"


def status(code: int, message: str) -> dict:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


class KubeServer(RawServer):
    """What one namespace holds, with the history that watches read."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 100
        self.objects: dict[str, dict[str, dict]] = {kind: {} for kind in PATHS}
        self.history: list[tuple[int, str, dict]] = []
        self.compacted = 0
        self.refuse: Callable[[Seen], tuple[int, str] | None] = lambda _seen: None
        self.retry_after = ""
        self.piece = 2**20
        self.queries: list[tuple[str, dict[str, str]]] = []
        self._news = asyncio.Event()
        self._cuts = 0

    def put(self, kind: str, raw: dict, uid: str = "") -> None:
        """Create or replace an object."""
        name = raw["metadata"]["name"]
        before = self.objects[kind].get(name)
        self.version += 1
        kept = before["metadata"]["uid"] if before and not uid else uid or f"uid-{self.version}"
        metadata = {**raw["metadata"], "namespace": "team", "uid": kept, "resourceVersion": str(self.version)}
        self.objects[kind][name] = stored = {**raw, "metadata": metadata}
        self._tell("MODIFIED" if before else "ADDED", kind, stored)

    def drop(self, kind: str, name: str) -> None:
        """Delete an object."""
        self.version += 1
        raw = self.objects[kind].pop(name)
        self._tell("DELETED", kind, {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(self.version)}})

    def bookmark(self, kind: str) -> None:
        self._tell("BOOKMARK", kind, {"kind": "X", "metadata": {"resourceVersion": str(self.version)}})

    def say(self, kind: str, word: str, raw: object) -> None:
        """Put any event into the watches of a kind."""
        self._tell(word, kind, raw)

    def compact(self) -> None:
        """Forget all history: whoever watches from before gets 410."""
        self.compacted = self.version

    def cut(self) -> None:
        """Break every watch off in the middle."""
        self._cuts += 1
        self._wake()

    def watches(self, kind: str) -> int:
        return sum(at == PATHS[kind] and "watch" in query for at, query in self.queries)

    def lists(self, kind: str) -> int:
        return sum(at == PATHS[kind] and "watch" not in query and "continue" not in query for at, query in self.queries)

    async def answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        url = urlsplit(seen.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.queries.append((url.path, query))
        refused = self.refuse(seen)
        if refused is not None or url.path not in KINDS:
            code, text = refused or (404, "the server could not find the requested resource")
            extra = f"retry-after: {self.retry_after}\r\n" if self.retry_after else ""
            writer.write(response(code, json.dumps(status(code, text)).encode(), extra=extra))
        elif query.get("watch"):
            await self._stream(KINDS[url.path], query, writer)
        else:
            writer.write(self._page(KINDS[url.path], query))
        await writer.drain()

    def _page(self, kind: str, query: dict[str, str]) -> bytes:
        at, limit = int(query.get("continue", 0)), int(query.get("limit", 500))
        items = list(self.objects[kind].values())
        metadata = {"resourceVersion": str(self.version)}
        if at + limit < len(items):
            metadata["continue"] = str(at + limit)
        return response(200, json.dumps({"metadata": metadata, "items": items[at : at + limit]}).encode())

    async def _stream(self, kind: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        at, cuts = int(query["resourceVersion"]), self._cuts
        loop = asyncio.get_running_loop()
        ends = loop.time() + float(query["timeoutSeconds"])
        if at < self.compacted:
            writer.write(response(410, json.dumps(status(410, "too old resource version")).encode()))
            return
        writer.write(WATCH_HEAD)
        sent = next((i for i, (version, _, _) in enumerate(self.history) if version > at), len(self.history))
        while loop.time() < ends:
            for _, of, event in self.history[sent:]:
                if of == kind:
                    await self._send(json.dumps(event).encode() + b"\n", writer)
            sent = len(self.history)
            if self._cuts > cuts:
                writer.transport.abort()
                return
            await writer.drain()
            try:
                async with asyncio.timeout(ends - loop.time()):
                    await self._news.wait()
            except TimeoutError:
                break
        writer.write(b"0\r\n\r\n")

    async def _send(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        """One event, in pieces of `piece` bytes that arrive one by one."""
        for begin in range(0, len(line), self.piece):
            writer.write(chunk(line[begin : begin + self.piece]))
            await writer.drain()
            await asyncio.sleep(0.002 if len(line) > self.piece else 0)

    def _tell(self, word: str, kind: str, raw: object) -> None:
        self.history.append((self.version, kind, {"type": word, "object": raw}))
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}],
    }
    path.write_text(json.dumps(document))
    return path


def pod(
    name: str, model: str, *, ip: str = "127.0.0.1", ready: bool = True, ports: dict[str, int] | None = None
) -> dict:
    """An engine pod as the API server shows it."""
    named = [{"name": word, "containerPort": port} for word, port in (ports or {}).items()]
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "sheaf-engine", "sheaf.dev/model": model}},
        "spec": {"containers": [{"name": "engine", "ports": named}]},
        "status": {"phase": "Running", "podIP": ip, "startTime": "2026-01-01T00:00:00Z", "conditions": conditions,
                   "containerStatuses": [{"name": "engine", "restartCount": 0, "state": {"running": {}}}]},
    }  # fmt: skip
