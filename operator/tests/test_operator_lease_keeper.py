"""The Lease on an API server: taken, kept, handed over; nobody acts on a Lease that was lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from operator_api import NAMESPACE, FakeApi, fake_api
from prometheus_client import CollectorRegistry
from sheaf_operator.cluster.kubernetes import lease_keeper
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.lease_keeper import LeaseKeeper
from sheaf_operator.handlers import lease
from sheaf_operator.handlers.surface import application, serving
from structlog.testing import capture_logs


@pytest.fixture(autouse=True)
def _ten_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TRUST": 0.8, "POLL": 0.1}.items():
        monkeypatch.setattr(lease, name, value)
    monkeypatch.setattr(lease_keeper, "RETRY", 0.05)
    monkeypatch.setattr(lease_keeper, "CALL_TIMEOUT", 0.5)
    monkeypatch.setattr(lease_keeper, "DURATION", 1.0)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with fake_api() as found:
        yield found


@asynccontextmanager
async def candidate(api: FakeApi, name: str) -> AsyncIterator[LeaseKeeper]:
    loop = asyncio.get_running_loop()
    server = ApiServer(api.configuration(), NAMESPACE)
    keeper = LeaseKeeper(server, "sheaf-operator", name, loop.time, loop.time, lambda: None)
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        task.cancel()
        await asyncio.wait({task})
        await keeper.release()
        await server.close()


async def until(holds, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - polled, as time itself decides
            await asyncio.sleep(0.01)


async def test_it_is_made_taken_and_kept(api: FakeApi) -> None:
    async with candidate(api, "one") as one:
        await until(one.holds)
        for _ in range(15):
            await asyncio.sleep(0.1)
            assert one.holds()
        assert api.get("Lease", "sheaf-operator")["spec"]["holderIdentity"] == "one"


async def test_the_second_waits_and_follows_at_once_after_a_clean_end(api: FakeApi) -> None:
    async with AsyncExitStack() as first_life:
        first = await first_life.enter_async_context(candidate(api, "one"))
        await until(first.holds)
        async with candidate(api, "two") as second:
            await asyncio.sleep(0.3)
            assert first.holds()
            assert not second.holds()
            await first_life.aclose()
            assert not first.holds()
            await until(second.holds, seconds=0.5)


async def test_one_that_is_cut_off_acts_no_more_and_comes_back(api: FakeApi) -> None:
    async with candidate(api, "one") as one:
        await until(one.holds)
        await api.stop()
        await until(lambda: not one.holds())
        await api.start()
        await until(one.holds)


async def test_a_lease_that_somebody_else_took_is_respected(api: FakeApi) -> None:
    async with candidate(api, "one") as one:
        await until(one.holds)
        spec = api.get("Lease", "sheaf-operator")["spec"]
        api.put("Lease", "sheaf-operator", spec=spec | {"holderIdentity": "thief", "leaseDurationSeconds": 60})
        await until(lambda: not one.holds())
        await asyncio.sleep(0.3)
        assert not one.holds()
        api.remove("Lease", "sheaf-operator")
        await until(one.holds)


async def test_without_the_permission_nobody_acts(api: FakeApi) -> None:
    api.refuse["create", "leases"] = (403, {"message": 'cannot create resource "leases"'}, {})
    async with candidate(api, "one") as one:
        await asyncio.sleep(0.3)
        assert not one.holds()
        assert one.forbidden.startswith("this operator may not use the Lease sheaf-operator, so it does not act")
        api.refuse.clear()
        await until(one.holds)
        assert one.forbidden == ""


async def test_a_candidate_that_may_not_use_the_lease_says_so_again_and_again(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_keeper, "REPEAT", 0.1)
    api.refuse["get", "leases"] = (403, {"message": "forbidden"}, {})
    with capture_logs() as said:
        async with candidate(api, "two") as two:
            await until(lambda: len(said) >= 3)
            assert {line["error"] for line in said} == {two.forbidden}
    assert "let its Role get and update the lease sheaf-operator" in said[0]["error"]


async def test_one_that_stands_by_is_not_forbidden_any_more(api: FakeApi) -> None:
    api.refuse["get", "leases"] = (403, {"message": "forbidden"}, {})
    async with candidate(api, "two") as two:
        await until(lambda: two.forbidden)
        spec = {"holderIdentity": "one", "leaseDurationSeconds": 60}
        api.put("Lease", "sheaf-operator", spec=spec)
        api.refuse.clear()
        await until(lambda: not two.forbidden)
        assert not two.holds()


async def test_readiness_says_why_a_process_is_of_no_use() -> None:
    why = ["it may not"]
    shown = application(CollectorRegistry(), lambda: why[0])
    async with serving(shown, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert (answer.status, await answer.text()) == (503, "it may not\n")
        why[0] = ""
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 200


@pytest.mark.parametrize(("status", "level"), [(403, "debug"), (404, "debug"), (500, "warning")])
async def test_only_what_an_uninstallation_took_away_is_no_cause_for_alarm(
    api: FakeApi, status: int, level: str
) -> None:
    async with candidate(api, "one") as one:
        await until(one.holds)
        api.refuse["update", "leases"] = (status, {"message": "no"}, {})
        with capture_logs() as said:
            await one.release()
    assert [line["log_level"] for line in said if "is not released" in line["event"]] == [level]
