"""The pod's preStop hook: tell the agent to drain and wait until the engine has nothing left to do, or the deadline
passes.
"""

import ssl
import time
from collections.abc import Callable

import httpx
from pydantic import ValidationError
from sheaf_crds.agent_api import AgentState, Drain

from sheaf_engine.agent.config import AgentConfig, read_token

QUIET_LOOKS = 2


def drained(state: AgentState) -> bool:
    """Whether a draining pod has nothing running or waiting."""
    return state.draining and (state.engine == "Stopped" or state.load.running + state.load.waiting == 0)


def drain(config: AgentConfig, deadline: float, pause: Callable[[float], None] = time.sleep) -> str:
    """Drain the agent of that configuration; empty once it is drained, otherwise why it is not."""
    host, port = config.address
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    headers = {"authorization": f"Bearer {read_token(config.token_file).decode()}"}
    try:
        with httpx.Client(base_url=base, headers=headers, timeout=10.0, trust_env=False, verify=no_tls) as client:
            answer = client.post("/v1/drain", content=Drain(deadline=deadline, reason="preStop").model_dump_json())
            answer.raise_for_status()
            return _wait(client, time.monotonic() + deadline, config.poll_interval, pause)
    except (httpx.HTTPError, ValidationError) as error:
        return f"the agent on {config.listen} cannot be asked to drain: {error}"


def _wait(client: httpx.Client, end: float, interval: float, pause: Callable[[float], None]) -> str:
    quiet = 0
    while True:
        pause(min(interval, max(0.0, end - time.monotonic())))
        state = AgentState.model_validate_json(client.get("/v1/state").raise_for_status().content)
        quiet = quiet + 1 if drained(state) else 0
        if quiet >= QUIET_LOOKS:
            return ""
        if time.monotonic() >= end:
            return f"the deadline passed with {state.load.running} running and {state.load.waiting} waiting requests"
