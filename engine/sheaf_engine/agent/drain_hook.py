"""The engine's preStop hook: tell the agent to drain, and wait until the engine has nothing left to do.

    python3 -I drain.py SECONDS

The agent puts a copy of this file into the folder that it shares with the engine, so that it runs in any engine's
image: the standard library is all that it needs. Where to call, and a key that is good for draining this pod alone,
lie beside it (`drain.json`). Whether anything runs is read from the engine itself, so an agent that is gone makes the
hook no worse. It always ends: after SECONDS, or when the engine has been silent for a while.
"""

import json
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

LINGER = 3.0
PERIOD = 0.5
QUIET_LOOKS = 2
SILENCE = 10.0
CALL_TIMEOUT = 5.0
_COUNTS = ("vllm:num_requests_running", "vllm:num_requests_waiting")


def ask(agent_url: str, key: str, seconds: float, reason: str = "by hand", *, until_restart: bool = False) -> str:
    """Ask the agent to drain within so many seconds; empty, or why it cannot be asked."""
    body = json.dumps({"deadline": seconds, "reason": reason, "untilRestart": until_restart})
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        status, _ = _call(agent_url, "POST", "/v1/drain", body, headers)
    except (OSError, HTTPException, ValueError) as error:
        return f"the agent on {agent_url} cannot be asked to drain: {error}"
    return "" if status == 200 else f"the agent on {agent_url} refused to drain: status {status}"


def busy(engine_url: str) -> int | None:
    """Requests that run or wait in the engine; None where it does not say."""
    try:
        status, text = _call(engine_url, "GET", "/metrics")
        return _count(text) if status == 200 else None
    except (OSError, HTTPException, ValueError):
        return None


def wait(
    engine_url: str,
    seconds: float,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Return when the engine has nothing left to do; empty, or why that was not awaited.

    The first moments always pass: requests are on their way that were sent before anyone heard of the drain.
    """
    began = clock()
    seen, quiet = began, 0
    while True:
        left = busy(engine_url)
        now = clock()
        seen, quiet = (seen if left is None else now), (quiet + 1 if left == 0 else 0)
        if quiet >= QUIET_LOOKS and now >= began + min(LINGER, seconds):
            return ""
        if now >= seen + SILENCE:
            return "the engine does not say what it runs"
        if now >= began + seconds:
            return _left_over(left)
        pause(min(PERIOD, began + seconds - now))


def _left_over(requests: int | None) -> str:
    if requests == 0:
        return ""
    return f"the deadline passed with {'an unknown number of' if requests is None else requests} requests"


def main(arguments: list[str]) -> int:
    """Drain the pod that this file lies in; always 0, because the engine ends in any case.

    A pod that stays, because only its engine failed a probe, takes requests again once the engine has started anew.
    """
    facts = json.loads(Path(__file__).with_suffix(".json").read_text())
    seconds = float(arguments[0])
    asked = ask(facts["agentUrl"], facts["key"], seconds, "preStop", until_restart=True)
    for why in (asked, wait(facts["engineUrl"], seconds)):
        if why:
            sys.stderr.write(f"drain: {why}\n")
    return 0


def _call(
    url: str, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=CALL_TIMEOUT)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def _count(text: str) -> int:
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(_COUNTS))
    return sum(round(float(value)) for name, _, value in lines if name.partition("{")[0] in _COUNTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
