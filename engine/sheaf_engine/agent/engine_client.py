"""The engine's HTTP API as the agent uses it (vLLM 0.32 and the emulator, which speaks the same).

`GET /v1/models` is the truth about residency: an adapter's `root` is the path it was loaded from, whose last part is
its digest. A changed version is unloaded and loaded anew rather than loaded in place: in place vLLM keeps the
adapter's number, so running streams would change their weights in the middle, and it reads the files again in every
step.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from sheaf_engine.agent.engine_figures import Figures, parse_figures
from sheaf_engine.agent.errors import AdapterError, Reason

LOOK_TIMEOUT = 5.0
MOST_TEXT = 300


class EngineDown(Exception):  # noqa: N818 - a state, not a fault of the caller
    """The engine is not there. `gone`: nothing listens on its port; `slow`: it listens but did not answer in time."""

    def __init__(self, message: str, *, gone: bool = False, slow: bool = False) -> None:
        super().__init__(message)
        self.gone = gone
        self.slow = slow


@dataclass(frozen=True, slots=True)
class Listing:
    """What the engine serves: the path of each adapter by name, and its context length in tokens (0: not said)."""

    adapters: Mapping[str, str]
    max_model_len: int


class EngineClient:
    """Calls to one engine."""

    def __init__(self, url: str, load_timeout: float) -> None:
        self._load_timeout = load_timeout
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._http = httpx.AsyncClient(base_url=url, timeout=LOOK_TIMEOUT, trust_env=False, verify=no_tls)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def check_health(self) -> None:
        """Return if the engine is healthy; EngineDown otherwise."""
        await self._get("/health")

    async def version(self) -> str:
        """The engine's version; empty where it does not say."""
        try:
            found = (await self._get("/version")).json()
        except (EngineDown, ValueError):
            return ""
        return str(found.get("version", ""))[:64] if isinstance(found, dict) else ""

    async def figures(self) -> Figures:
        """The engine's metrics, all zero where it has none; EngineDown where it does not answer."""
        answer = await self._send("GET", "/metrics", None, LOOK_TIMEOUT)
        return parse_figures(answer.text if answer.status_code == 200 else "")

    async def listing(self) -> Listing:
        """What is resident; EngineDown where the engine does not answer or its answer makes no sense."""
        answer = await self._get("/v1/models")
        try:
            cards = [card for card in answer.json()["data"] if isinstance(card, dict)]
        except (ValueError, KeyError, TypeError) as error:
            raise EngineDown("the engine's list of models makes no sense") from error
        adapters = {str(card["id"]): str(card.get("root", "")) for card in cards if card.get("parent")}
        lengths = [card.get("max_model_len") for card in cards if not card.get("parent")]
        return Listing(adapters, next((n for n in lengths if isinstance(n, int)), 0))

    async def load(self, name: str, path: str) -> None:
        """Load an adapter; AdapterError(EngineRefused) with the engine's words, EngineDown where it does not answer."""
        await self._change("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, frozenset({200}))

    async def unload(self, name: str) -> None:
        """Unload an adapter; that it is gone already is no error."""
        await self._change("/v1/unload_lora_adapter", {"lora_name": name}, frozenset({200, 404}))

    async def _get(self, path: str) -> httpx.Response:
        answer = await self._send("GET", path, None, LOOK_TIMEOUT)
        if answer.status_code != 200:
            raise EngineDown(f"the engine answers {path} with status {answer.status_code}")
        return answer

    async def _change(self, path: str, body: dict[str, str], good: frozenset[int]) -> None:
        answer = await self._send("POST", path, body, self._load_timeout)
        if answer.status_code not in good:
            raise AdapterError(Reason.ENGINE_REFUSED, f"the engine refused: {_words(answer)}")

    async def _send(self, method: str, path: str, body: dict[str, str] | None, seconds: float) -> httpx.Response:
        try:
            return await self._http.request(method, path, json=body, timeout=seconds)
        except httpx.ConnectError as error:
            raise EngineDown(f"the engine cannot be reached: {error}", gone=True) from error
        except httpx.HTTPError as error:
            text = str(error) or type(error).__name__
            slow = isinstance(error, httpx.TimeoutException)
            raise EngineDown(f"the engine does not answer {path}: {text}", slow=slow) from error


def _words(answer: httpx.Response) -> str:
    """The message of an error answer, in vLLM's shape or as it is."""
    try:
        body: Any = answer.json()
        message = str(body["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.text
    if answer.status_code == 404 and "Not Found" in message:
        message += " (is VLLM_ALLOW_RUNTIME_LORA_UPDATING=True set and --enable-lora given?)"
    return f"{' '.join(message.split())[:MOST_TEXT]} (status {answer.status_code})"
