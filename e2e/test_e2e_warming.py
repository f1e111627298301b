"""The pod that takes another's place knows what was hot there before its first request: engines with caches, emulated."""

import time
from pathlib import Path

import httpx
import pytest
from emulator_fleet import EmulatorFleet, emulator_fleet
from streams_said import CHAT

pytestmark = pytest.mark.timeout(240)

FLAGS = ("--profile", "h100-8b", "--speed", "4", "--enable-prompt-tokens-details", "--max-model-len", "8192")
SYSTEMS = [f"Answer as clerk number {number} would. " * 60 for number in range(6)]


def ask(fleet: EmulatorFleet, system: str, text: str) -> tuple[str, int, int]:
    """The pod, and the prompt's tokens: all of them, and those that its cache had."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    body = {"model": "base", "messages": messages, "max_tokens": 2}
    answer = httpx.post(f"{fleet.url}{CHAT}", json=body, timeout=30).raise_for_status()
    usage = answer.json()["usage"]
    return answer.headers["x-sheaf-pod"], usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def until(fleet: EmulatorFleet, name: str, value: float) -> None:
    deadline = time.monotonic() + 30
    while fleet.metric(name) != value:
        assert time.monotonic() < deadline, name
        time.sleep(0.1)


def first_requests(fleet: EmulatorFleet) -> tuple[list[int], list[float]]:
    """Lose the hotter of two pods after a notice, then leave its replacement alone: how long the prompts that were the
    lost one's are, and which share of them the first request to the new pod met in its cache."""
    for turn in range(6):
        heard = [ask(fleet, system, f"question {turn}")[0] for system in SYSTEMS]
    old, stays = sorted(fleet.pods, key=lambda pod: -heard.count(pod.name))
    fleet.notice(old, 5.0)
    fleet.lose(old)
    fleet.welcome(old)
    until(fleet, "sheaf_gateway_ready_pods", 2.0)
    stays.draining = True
    fleet.write()
    until(fleet, "sheaf_gateway_ready_pods", 1.0)
    theirs = [system for pod, system in zip(heard, SYSTEMS, strict=True) if pod == old.name]
    met = [ask(fleet, system, "the first question to the new pod") for system in theirs]
    assert {pod for pod, _, _ in met} == {old.name}
    return [prompt for _, prompt, _ in met], [cached / prompt for _, prompt, cached in met]


def test_first_requests_on_the_replacement_hit(tmp_path: Path) -> None:
    with emulator_fleet(tmp_path, 2, *FLAGS) as fleet:
        prompts, shares = first_requests(fleet)
        warmed = fleet.metric("sheaf_gateway_warmed_prefixes_total")
        print(
            f"\n  {len(prompts)} prompts of {min(prompts)} tokens and more, {warmed:.0f} warmed, cached {min(shares):.0%}"
        )
        assert len(prompts) >= 3
        assert warmed == len(prompts)
        assert min(shares) > 0.9
        log = (tmp_path / "gateway.log").read_text()
        assert "warming_chosen" in log
        assert "pod_warmed" in log


def test_without_warming_they_miss(tmp_path: Path) -> None:
    with emulator_fleet(tmp_path, 2, *FLAGS, limits={"maxWarmed": 0}) as fleet:
        _, shares = first_requests(fleet)
        assert max(shares) < 0.1
