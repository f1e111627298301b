"""What the contract tests share: paths, prompts and the checks that several of them make."""

import time
from itertools import count
from random import Random
from typing import Any

import httpx

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
FRESH = count(100)


def fresh_prompt(length: int) -> list[int]:
    """Token ids that no other test has sent."""
    draw = Random(next(FRESH))
    return [draw.randrange(10, 410) for _ in range(length)]


def token_ids(body: dict[str, Any]) -> list[int]:
    return body["choices"][0]["token_ids"]


def wait_for(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_refused(response: httpx.Response, status: int, kind: str, param: str | None) -> None:
    error = response.json()["error"]
    assert error.pop("message")
    assert (response.status_code, error) == (status, {"type": kind, "param": param, "code": status})
