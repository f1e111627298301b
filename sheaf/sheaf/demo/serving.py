"""A `sheaf up` of the demo's own: started, awaited, and ended, with what it said in a log file."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from sheaf.demo.recipe import DemoError

READY_TIMEOUT = 900.0
SETTLE_TIMEOUT = 300.0
STOP_TIMEOUT = 60.0
POLL = 0.2
SHEAF_UP = (sys.executable, "-m", "sheaf.cli", "up")

Waiting = Callable[[str], None]


@dataclass(frozen=True)
class Serving:
    """A running `sheaf up`."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def said(self) -> list[str]:
        """Its lines so far, empty ones left out."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def fail(self, what: str) -> DemoError:
        """An error that says what it said last, and where the rest is."""
        errors = [line for line in self.said() if line.startswith("error:")]
        last = (errors or self.said() or ["nothing"])[-1].removeprefix("error: ")
        return DemoError(f"{what}: {last[:300]} (log: {self.log})")

    def check_alive(self) -> None:
        """Raise DemoError if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise self.fail(f"sheaf up ended with status {code}")

    def await_ready(self, waiting: Waiting, timeout: float = READY_TIMEOUT) -> None:
        """Wait for its `ready` line; `waiting` hears what it says meanwhile."""
        self._await(lambda: f"ready {self.url}" in self.said(), waiting, timeout, "it was not ready in time")

    def await_settled(self, waiting: Waiting, timeout: float = SETTLE_TIMEOUT) -> None:
        """Wait until every declared replica serves and every adapter is loaded on as many as it asks for."""
        self._await(self.settled, waiting, timeout, "not every replica and adapter came up in time")

    def settled(self) -> bool:
        """Whether models and adapters have what they ask for."""
        models = [(item["status"], item["spec"].get("replicas", 1)) for item in self.objects("models")]
        adapters = [(item["status"], item["spec"].get("replicas", 1)) for item in self.objects("adapters")]
        return all(status.get("readyReplicas", 0) >= wanted for status, wanted in (*models, *adapters))

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """Objects of a kind as `sheaf get` shows them."""
        answer = httpx.get(f"{self.url}/sheaf/v1/objects/{kind}", timeout=10, trust_env=False)
        return list(answer.raise_for_status().json()["items"])

    def _await(self, holds: Callable[[], bool], waiting: Waiting, timeout: float, failure: str) -> None:
        deadline = time.monotonic() + timeout
        while not quietly(holds):
            self.check_alive()
            if time.monotonic() > deadline:
                raise self.fail(f"{failure} ({timeout:.0f} s)")
            waiting((self.said() or ["starting"])[-1])
            time.sleep(POLL)

    def stop(self) -> None:
        """End it in good order; by force where that, or the patience of whoever waits, does not last."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.kill()
            self.process.wait()


def quietly(holds: Callable[[], bool]) -> bool:
    """Whether it holds; a server that does not answer yet means no."""
    try:
        return holds()
    except (httpx.HTTPError, KeyError, ValueError):
        return False


@contextmanager
def serve(manifests: Path, listen: str, log: Path) -> Iterator[Serving]:
    """`sheaf up` over these manifests until the block ends, in a session of its own so that Ctrl-C reaches us alone."""
    command = [*SHEAF_UP, str(manifests), "--listen", listen, "--no-view"]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    serving = Serving(f"http://{listen}", log, process)
    try:
        yield serving
    finally:
        serving.stop()
