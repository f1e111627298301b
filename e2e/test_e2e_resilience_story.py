"""A Model that does not settle leaves enough words behind to tell a back-off of the kubelet from an engine that is slow."""

from typing import Any

import pytest
from resilience.fleet import engine_story

ENDED = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-01-01T00:00:09Z"}}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"waiting": {"reason": "CrashLoopBackOff"}}, "state={'waiting': {'reason': 'CrashLoopBackOff'}}"),
        (
            {"running": {"startedAt": "2026-01-01T00:00:20Z"}},
            "state={'running': {'startedAt': '2026-01-01T00:00:20Z'}}",
        ),
    ],
)
def test_the_story_of_an_engine_tells_back_off_from_a_slow_start(state: dict[str, Any], told: str) -> None:
    engine = {"name": "engine", "restartCount": 3, "state": state, "lastState": ENDED}
    conditions = [{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}]
    pod = {"metadata": {"name": "m-0"}, "status": {"containerStatuses": [engine], "conditions": conditions}}
    story = engine_story(pod)
    assert story.startswith("pod m-0: engine restartCount=3 ")
    assert told in story
    assert "lastState.reason=OOMKilled lastState.finishedAt=2026-01-01T00:00:09Z" in story
    assert "{'Ready': 'False', 'PodScheduled': 'True'}" in story


def test_a_pod_of_which_nothing_is_told_yet_has_a_story_too() -> None:
    assert "restartCount=None state={}" in engine_story({"metadata": {"name": "m-0"}})
