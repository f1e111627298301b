"""What a named session tells the gateway about engines' caches, against what emulated engines report."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from emulator_fleet import EmulatorFleet, emulator_fleet

pytestmark = pytest.mark.timeout(180)

TURNS, ANSWER = 6, 256
PROFILE = ("--profile", "h100-8b", "--speed", "50", "--max-model-len", "8192", "--enable-prompt-tokens-details")


def test_where_a_session_is_named_the_answers_are_expected_that_engines_hold(tmp_path: Path) -> None:
    with emulator_fleet(tmp_path, 3, *PROFILE) as fleet, httpx.Client(base_url=fleet.url, timeout=60) as client:
        named = [turn for number in range(4) for turn in conversation(client, f"trip {number}")]
        plain = [turn for number in range(4) for turn in conversation(client, None, f"other {number}")]
        print(f"expected of what was cached: {share(named):.2f} with sessions, {share(plain):.2f} without")
        assert share(named) > share(plain) + 0.1
        assert 0.9 < share(named) < 1.1
        assert {turn["session"] for turn in plain} == {0}
        assert "trip" not in logged(fleet)


def conversation(client: httpx.Client, session: str | None, about: str = "") -> list[dict[str, Any]]:
    """The turns of a conversation after the first: prompt tokens that were expected to be cached, and that were."""
    said: list[dict[str, str]] = []
    turns, headers = [], {"x-session-id": session} if session else {}
    for place in range(TURNS):
        said.append(
            {"role": "user", "content": f"{session or about}: turn {place}. " + "Tell me more of the sea. " * 8}
        )
        body = {"model": "base", "messages": said, "max_tokens": ANSWER, "ignore_eos": True}
        answer = client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        said.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
        time.sleep(0.02)
        record = client.get(f"/sheaf/v1/decisions/{answer.headers['x-request-id']}").json()
        turns.append(told(record))
    return turns[1:]


def told(record: dict[str, Any]) -> dict[str, Any]:
    attempt = record["attempts"][-1]
    chosen = next(one for one in attempt["decision"]["candidates"] if one["pod"] == attempt["decision"]["pod"])
    expected, cached = attempt["expected_cached"], record["cached_tokens"] or 0
    return {"expected": expected, "cached": cached, "prompt": record["prompt_tokens"], "bytes": record["prompt_bytes"],
            "session": chosen["session_bytes"]}  # fmt: skip


def share(turns: list[dict[str, Any]]) -> float:
    """Of the bytes that engines found in their caches, how much was expected; 1 is exactly as much."""
    found = sum(turn["cached"] / turn["prompt"] * turn["bytes"] for turn in turns)
    return sum(turn["expected"] * 4 for turn in turns) / found


def logged(fleet: EmulatorFleet) -> str:
    return (fleet.folder / "gateway.log").read_text()
