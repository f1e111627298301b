"""From a cloud's metadata service to the agent's state, over real HTTP: seen at once, believed within bounds, and nothing
that the service does or leaves ends or blocks the agent."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from engine_agent_helpers import FakeEngine, agent_running, engine_running
from engine_metadata_server import Azure, ComputeEngine, Ec2, metadata_running
from sheaf_crds.agent_api import AgentNotice, AgentState
from sheaf_engine.agent import metadata as metadata_module
from sheaf_engine.agent import metadata_calls
from sheaf_engine.agent.config import NoticesConfig
from sheaf_engine.agent.metadata import Metadata
from sheaf_engine.agent.metrics import Metrics
from structlog.testing import capture_logs

PACE = 0.02
Service = Ec2 | ComputeEngine | Azure


@dataclass
class Heard:
    """What is told, as the supervisor hears it."""

    cloud: str
    last: AgentNotice | None = None
    looks: int = 0
    metrics: Metrics = field(default_factory=Metrics)

    def tell(self, found: AgentNotice | None) -> None:
        self.last, self.looks = found, self.looks + 1

    async def until(self, holds: Callable[[], Any], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    @property
    def reachable(self) -> bool:
        return b'_reachable{cloud="%s"} 1.0' % self.cloud.encode() in self.metrics.text(AgentState())

    async def reason(self, word: str) -> AgentNotice:
        await self.until(lambda: self.last is not None and self.last.reason == word)
        assert self.last is not None
        return self.last


def cloud_of(service: Service) -> str:
    return {Ec2: "aws", ComputeEngine: "gcp", Azure: "azure"}[type(service)]


@contextmanager
def logged() -> Iterator[list[Any]]:
    """What is logged, but for the line that reading has begun."""
    told: list[Any] = []
    with capture_logs() as logs:
        yield told
    told += [line for line in logs if line["event"] != "notices are read"]


@asynccontextmanager
async def reading(service: Service, **settings: Any) -> AsyncIterator[Heard]:
    """The service is read, at fifty times the usual pace."""
    config = NoticesConfig(cloud=cloud_of(service), endpoint=service.url, **settings)
    heard = Heard(config.cloud)
    task = asyncio.create_task(Metadata(config, heard.tell, heard.metrics, pace=PACE).run())
    try:
        yield heard
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_ec2_is_asked_with_a_token_and_its_interruption_is_told():
    async with metadata_running(service := Ec2()), reading(service) as heard:
        await heard.until(lambda: service.count("instance-action") > 3 and service.count("rebalance") > 1)
        assert heard.last is None
        assert service.given == 1
        service.interrupt(118)
        found = await heard.reason("SpotInterruption")
        assert found.source == "aws"
        assert 115 < found.deadline - time.time() < 120
        deadline = found.deadline
        service.action = None
        asked = service.count("instance-action")
        await heard.until(lambda: service.count("instance-action") > asked + 3)
        assert heard.last is not None
        assert heard.last.deadline == deadline


async def test_a_token_that_is_refused_is_renewed():
    async with metadata_running(service := Ec2()), reading(service) as heard:
        await heard.until(lambda: service.count("instance-action") > 1)
        service.tokens.clear()
        service.interrupt(100)
        with logged() as logs:
            await heard.reason("SpotInterruption")
        assert service.given == 2
        assert logs == []


async def test_a_recommendation_is_an_advice_unless_it_is_configured_to_count():
    async with metadata_running(service := Ec2(rebalance='{"noticeTime": "2026-11-20T08:22:00Z"}')):
        async with reading(service) as heard:
            assert (await heard.reason("RebalanceRecommendation")).advisory
            service.interrupt(60)
            assert not (await heard.reason("SpotInterruption")).advisory
        service.action = None
        async with reading(service, rebalance="Replace") as heard:
            found = await heard.reason("RebalanceRecommendation")
            assert (found.advisory, found.deadline) == (False, 0.0)


async def test_compute_engine_is_heard_at_the_moment_of_the_change():
    async with metadata_running(service := ComputeEngine()), reading(service) as heard:
        await heard.until(lambda: service.count("preempted") == 2 and service.count("maintenance") == 2)
        began = time.monotonic()
        service.set("preempted", "TRUE")
        found = await heard.reason("SpotPreemption")
        assert time.monotonic() - began < 0.5
        assert 20 < found.deadline - time.time() <= 25
        assert service.count("preempted") <= 4


async def test_a_maintenance_of_compute_engine_can_be_over():
    async with metadata_running(service := ComputeEngine()), reading(service) as heard:
        service.set("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        assert (await heard.reason("NodeMaintenance")).deadline == 0.0
        service.set("maintenance-event", "NONE")
        await heard.until(lambda: heard.last is None)


async def test_azures_events_count_where_they_name_this_machine():
    async with metadata_running(service := Azure()), reading(service) as heard:
        service.schedule("Preempt", 30, "aks-spot-1_5")
        service.schedule("Freeze", 900)
        await heard.until(lambda: service.count("scheduledevents") > 5)
        assert heard.last is None
        service.schedule("Preempt", 30)
        found = await heard.reason("SpotPreemption")
        assert 27 < found.deadline - time.time() < 31
        assert service.count("compute/name") == 1
        service.events.clear()
        await heard.until(lambda: heard.last is None)


async def test_azures_first_answer_may_take_its_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata_calls, "PATIENCE", 0.1)
    service = Azure(slow=0.4)
    service.schedule("Preempt", 30)
    async with metadata_running(service), reading(service) as heard:
        with logged() as logs:
            await heard.reason("SpotPreemption")
        assert (service.count("scheduledevents"), logs) == (1, [])


async def test_an_event_that_is_far_away_has_a_deadline_when_it_is_near():
    async with metadata_running(service := Azure()), reading(service) as heard:
        service.schedule("Redeploy", 600)
        assert (await heard.reason("NodeRedeployment")).deadline == 0.0
        service.ahead = 500
        service.events.clear()
        service.schedule("Redeploy", 600)
        await heard.until(lambda: heard.last is not None and heard.last.deadline > 0)


async def test_a_machine_whose_clock_is_an_hour_behind_knows_how_long_it_has():
    async with metadata_running(service := Ec2(ahead=3600.0)), reading(service) as heard:
        service.interrupt(90)
        found = await heard.reason("SpotInterruption")
        assert 86 < found.deadline - time.time() < 92


@pytest.mark.parametrize("kind", [Ec2, ComputeEngine, Azure])
@pytest.mark.parametrize("trouble", [{"status": 429}, {"status": 503}, {"status": 302}, {"endless": True}])
async def test_a_service_in_trouble_is_asked_again_and_said_once(kind: type[Service], trouble: dict[str, Any]):
    service = kind()
    for name, value in trouble.items():
        setattr(service, name, value)
    async with metadata_running(service), reading(service) as heard:
        with logged() as logs:
            await heard.until(lambda: heard.looks > 8)
            assert heard.last is None
            for name in trouble:
                setattr(service, name, 0)
            await heard.until(lambda: heard.reachable)
    said = [(line["log_level"], line["event"]) for line in logs]
    assert said == [
        ("warning", "the metadata service cannot be read"),
        ("info", "the metadata service can be read again"),
    ]
    assert logs[0]["mend"]


async def test_a_service_that_stalls_is_given_up_and_asked_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata_calls, "PATIENCE", 0.05)
    async with metadata_running(service := Ec2(stalls=True)), reading(service) as heard:
        with logged() as logs:
            await heard.until(lambda: heard.looks > 5)
        assert [line["error"] for line in logs] == ["no answer within 0.05 s"]
        service.stalls = False
        service.interrupt(60)
        await heard.reason("SpotInterruption")


async def test_a_service_that_is_not_there_is_found_when_it_comes(unused_tcp_port_factory: Callable[[], int]):
    port = unused_tcp_port_factory()
    service = Ec2(url=f"http://127.0.0.1:{port}")
    service.interrupt(60)
    async with reading(service) as heard:
        await heard.until(lambda: heard.looks > 5)
        assert not heard.reachable
        async with metadata_running(service, port):
            await heard.reason("SpotInterruption")
            await heard.until(lambda: heard.reachable)


@pytest.mark.parametrize("content", ['{"action": "none", "time": ""}', "<html>", "[" * 9999, '{"action": 7}', ""])
async def test_nonsense_is_no_notice(content: str):
    async with metadata_running(service := Ec2(action=content)), reading(service) as heard:
        with logged() as logs:
            await heard.until(lambda: service.count("instance-action") > 4)
        assert heard.last is None
        assert [line["log_level"] for line in logs] == ["warning"]
        service.interrupt(100)
        await heard.reason("SpotInterruption")


async def test_an_unexpected_error_is_logged_and_survived(monkeypatch: pytest.MonkeyPatch):
    errors = iter([ZeroDivisionError("odd"), RecursionError()])

    def broken(*arguments: Any) -> Any:
        for error in errors:
            raise error
        return real(*arguments)

    real = metadata_module.heard
    monkeypatch.setattr(metadata_module, "heard", broken)
    async with metadata_running(service := ComputeEngine()), reading(service) as heard:
        service.set("preempted", "TRUE")
        with logged() as logs:
            await heard.reason("SpotPreemption")
    assert "reading notices failed unexpectedly" in [line["event"] for line in logs]


async def test_the_agents_state_says_it_and_whoever_waits_hears_it_at_once(tmp_path: Path):
    async with (
        metadata_running(service := ComputeEngine()),
        engine_running(FakeEngine()) as engine,
        agent_running(tmp_path, engine, notices={"cloud": "gcp", "endpoint": service.url}) as agent,
    ):
        await agent.put()
        before = await agent.until(lambda state: state["engine"] == "Ready")
        assert before["notice"] is None
        async with asyncio.timeout(10):
            while service.count("preempted") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        began = time.monotonic()
        service.set("preempted", "TRUE")
        state = await agent.until(lambda state: state["notice"] is not None, 10)
        assert time.monotonic() - began < 1.0
        found = AgentNotice.model_validate(state["notice"])
        assert (found.source, found.reason, state["draining"]) == ("gcp", "SpotPreemption", False)
        assert 0 < found.deadline - time.time() <= 25
        assert (await agent.http.get("/readyz")).status_code == 200
        assert "sheaf_agent_notice 1.0" in (await agent.http.get("/metrics")).text


async def test_an_agent_without_notices_asks_nobody(tmp_path: Path):
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        state = await agent.until(lambda state: state["engine"] == "Ready")
        assert state["notice"] is None
        assert "sheaf_agent_metadata_reachable{" not in (await agent.http.get("/metrics")).text


@pytest.mark.parametrize(
    "wrong",
    [{"cloud": "oracle"}, {"cloud": "none"}, {}, {"cloud": "aws", "endpoint": "http://h/path"},
     {"cloud": "aws", "endpoint": "https://h"}, {"cloud": "aws", "rebalance": "Yes"}, {"cloud": "aws", "more": 1}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="validation error"):
        NoticesConfig.model_validate_json(json.dumps(wrong))
