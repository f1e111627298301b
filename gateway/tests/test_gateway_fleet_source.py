"""The gateway follows the fleet file and every agent, and keeps what it knew when either tells nonsense."""

import asyncio
import json

import pytest
from gateway_fixtures import adapter, ask, chat, make_world, model, pod_of, replace, slo  # noqa: F401
from gateway_raw_servers import DIGEST
from sheaf_crds.agent_api import AgentState
from sheaf_gateway.fleet.assemble import pod_view
from sheaf_gateway.fleet.snapshot import FleetSnapshot, PodSnapshot, read_snapshot
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.watch import contents

POD = {"name": "p", "model": "base", "engineUrl": "http://127.0.0.1:1", "agentUrl": "http://127.0.0.1:2", "ready": True}


def snapshot(**parts) -> FleetSnapshot:
    read, problems = read_snapshot({"version": 1, **parts})
    assert problems == ()
    return read


def store(**parts) -> FleetStore:
    made = FleetStore()
    made.apply_snapshot(snapshot(models=[model("base")], pods=[POD], **parts))
    return made


def served_names(declared: FleetSnapshot):
    made = FleetStore()
    made.apply_snapshot(declared)
    return made.fleet.served


def state(**parts) -> AgentState:
    return AgentState.model_validate({"engine": "Ready", **parts})


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'"x"', b'{"version": "two"}', b'{"models": {}}', b"\xff"])
async def test_garbage_keeps_the_last_good_fleet_serving(make_world, ask, garbage):  # noqa: F811
    world = await make_world(pods={"base": 1})
    replace(world.folder / "fleet.json", garbage)
    await asyncio.sleep(0.3)
    assert world.gateway.store.snapshot.version == 1
    assert (await ask(world, "POST", "/v1/chat/completions", chat()))[0] == 200
    world.snapshot["models"].append(model("second"))
    world.write()
    await world.until(lambda: "second" in world.gateway.store.fleet.served)


async def test_a_removed_file_keeps_the_last_good_fleet_too(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    (world.folder / "fleet.json").unlink()
    await asyncio.sleep(0.3)
    assert (await ask(world, "POST", "/v1/chat/completions", chat()))[0] == 200
    world.snapshot["version"] = 7
    world.write()
    await world.settled()


def test_a_broken_part_is_left_out_and_named():
    read, problems = read_snapshot(
        {
            "models": [model("base"), {"kind": "Model"}],
            "pods": [POD, {**POD, "name": "q", "engineUrl": "ftp://x"}, {**POD, "name": "a\r\nb"}, 7],
        }
    )
    assert [found.name for found in read.models] == ["base"]
    assert [found.name for found in read.pods] == ["p"]
    assert [problem.split(":")[0] for problem in problems] == ["models[1]", "pods[1]", "pods[2]", "pods[3]"]


def test_every_declared_name_is_served_once():
    names = served_names(
        snapshot(
            models=[
                model("base", sloRef={"name": "chat"}),
                model("clash"),
                model("zero", replicas=0, sloRef={"name": "no"}),
            ],
            adapters=[
                adapter("pirate", "base", digest=f"sha256:{DIGEST}"),
                adapter("clash", "base"),
                adapter("lost", "nowhere"),
            ],
            slos=[slo("chat", **{"class": "Batch"}, queue={"maxRequests": 3, "maxWait": "2s"})],
        )
    )
    assert list(names) == ["base", "clash", "pirate", "zero"]
    assert names["clash"].adapter is None
    assert (names["pirate"].model, names["pirate"].digest) == ("base", DIGEST)
    assert (names["pirate"].promise.max_queue, names["pirate"].promise.max_wait) == (3, 2.0)
    assert not names["base"].promise.interactive
    assert names["zero"].promise.name == ""


def test_availability_tells_waking_from_sleeping():
    sleeping = FleetStore()
    sleeping.apply_snapshot(snapshot(models=[model("base", replicas=0), model("soon")]))
    fleet = sleeping.fleet
    assert fleet.availability(fleet.served["base"]) == "Zero"
    assert fleet.availability(fleet.served["soon"]) == "Starting"
    awake = store()
    assert awake.fleet.availability(awake.fleet.served["base"]) == "Ready"


@pytest.mark.parametrize("phase", ["Starting", "Unhealthy", "Stopped"])
def test_the_agent_knows_sooner_that_an_engine_is_not_ready(phase):
    made = store()
    made.apply_state("p", state(engine=phase))
    assert not made.fleet.pods_of("base")[0].ready


def test_draining_is_what_either_side_says():
    made = store()
    made.apply_state("p", state(draining=True))
    assert made.fleet.pods_of("base")[0].draining


@pytest.mark.parametrize(
    ("declared", "reported", "draining", "deadline"),
    [
        (0.0, 0.0, True, 0.0),
        (50.0, 0.0, True, 50.0),
        (50.0, 40.0, True, 40.0),
        (0.0, 40.0, True, 40.0),
        (0.0, 40.0, False, 0.0),
    ],
)
def test_a_pod_goes_at_the_earliest_deadline_that_is_known(declared, reported, draining, deadline):
    found = PodSnapshot.model_validate({**POD, "deadline": declared})
    said = state(draining=draining, drainDeadline=reported, continues=True)
    assert pod_view(found, said, 0).deadline == deadline
    assert pod_view(found, said, 0).continues
    assert pod_view(found, None, 0).deadline == declared


@pytest.mark.parametrize(
    ("told", "drain", "draining", "deadline"),
    [
        ({"deadline": 40.0}, 0.0, True, 40.0),
        ({"deadline": 40.0}, 30.0, True, 30.0),
        ({"deadline": 40.0}, 50.0, True, 40.0),
        ({}, 0.0, False, 0.0),
        ({"deadline": 40.0, "advisory": True}, 0.0, False, 0.0),
    ],
)
def test_a_pod_drains_from_the_moment_its_clouds_metadata_says_when_it_goes(told, drain, draining, deadline):
    notice = {"source": "aws", "reason": "SpotInterruption", **told}
    said = state(draining=drain > 0, drainDeadline=drain, notice=notice)
    made = store()
    made.apply_state("p", said)
    (found,) = made.fleet.pods_of("base")
    assert (found.draining, found.deadline, found.ready) == (draining, deadline, True)
    made.apply_state("p", state())
    assert not made.fleet.pods_of("base")[0].draining


def test_only_requests_of_others_count_as_foreign_load():
    declared = PodSnapshot.model_validate(POD)
    busy = state(load={"running": 5, "waiting": 3, "kvUsage": 0.5})
    assert (pod_view(declared, busy, 0).foreign_running, pod_view(declared, busy, 0).foreign_waiting) == (5, 3)
    assert (pod_view(declared, busy, 5).foreign_running, pod_view(declared, busy, 5).foreign_waiting) == (0, 3)
    assert (pod_view(declared, busy, 7).foreign_running, pod_view(declared, busy, 7).foreign_waiting) == (0, 1)
    assert (pod_view(declared, busy, 99).foreign_running, pod_view(declared, busy, 99).foreign_waiting) == (0, 0)


def test_reports_outlive_a_new_snapshot_but_not_a_new_pod_of_the_same_name():
    made = store()
    made.apply_state("p", state(engineEpoch=4, adapters=[{"name": "a", "state": "Resident", "digest": "sha256:ab"}]))
    made.apply_snapshot(snapshot(models=[model("base")], pods=[POD]))
    assert made.fleet.pods_of("base")[0].resident == {"a": "ab"}
    made.apply_snapshot(snapshot(models=[model("base")], pods=[{**POD, "uid": "new"}]))
    assert made.fleet.pods_of("base")[0].resident == {}
    made.apply_snapshot(snapshot(models=[model("base")], pods=[]))
    made.apply_state("p", state())
    assert made.fleet.pods_of("base") == ()


def test_what_requests_learn_of_residency_holds_until_the_agent_reports():
    made = store(adapters=[adapter("a", "base")])
    served = made.fleet.served["a"]
    assert made.fleet.digest_of(served) == ""
    made.note_resident("p", "a", "sha256:ab")
    assert made.fleet.pods_of("base")[0].holds("a", "ab")
    assert not made.fleet.pods_of("base")[0].holds("a", "cd")
    assert made.fleet.digest_of(served) == "ab"
    made.note_absent("p", "a")
    assert not made.fleet.pods_of("base")[0].holds("a", "")
    made.note_absent("p", "a")
    made.note_absent("gone", "a")
    made.note_resident("gone", "a", "x")


def test_a_pod_without_an_agent_is_taken_at_its_engines_word():
    made = FleetStore()
    made.apply_snapshot(snapshot(models=[model("base")], pods=[{**POD, "agentUrl": ""}]))
    assert made.fleet.pods_of("base")[0].holds("a", "digest")


async def test_changes_of_an_agent_are_seen_at_once(make_world):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.agents[0].epoch = 9
    world.agents[0].load = {"running": 3, "waiting": 1, "kvUsage": 0.25}
    world.agents[0].changed()
    await world.until(lambda: world.pod("base-0").epoch == 9)
    assert (world.pod("base-0").foreign_running, world.pod("base-0").kv_usage) == (3, 0.25)


async def test_an_agent_that_was_away_is_found_again_and_its_last_word_holds(make_world):  # noqa: F811
    world = await make_world(pods={"base": 1})
    agent = world.agents[0]
    await agent.close()
    await asyncio.sleep(0.1)
    assert world.pod("base-0").ready
    agent.version, agent.epoch = 0, 2
    await agent.open()
    await world.until(lambda: world.pod("base-0").epoch == 2)


async def test_a_pod_that_comes_and_goes_is_followed(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 2})
    gone = world.snapshot["pods"].pop()
    world.write()
    await world.until(lambda: len(world.gateway.store.fleet.pods_of("base")) == 1)
    async with asyncio.timeout(1):
        await world.agents[1].gone.wait()
    world.snapshot["pods"].append(gone)
    world.write()
    await world.until(lambda: len(world.gateway.store.states) == 2)


async def test_the_agents_token_is_read_again(make_world):  # noqa: F811
    world = await make_world(pods={"base": 1})
    polls = len(world.agents[0].seen)
    replace(world.folder / "token", b"wrong\n")
    world.agents[0].changed()
    await world.until(lambda: len(world.agents[0].seen) > polls + 1)
    world.agents[0].epoch = 5
    world.agents[0].changed()
    replace(world.folder / "token", b"agent-token\n")
    await world.until(lambda: world.pod("base-0").epoch == 5)


async def test_a_file_in_a_folder_that_comes_later_is_found(tmp_path):
    path = tmp_path / "later" / "fleet.json"
    found = contents(path, 1000)
    assert isinstance(await anext(found), OSError)
    path.parent.mkdir()
    path.write_bytes(b"{}")
    async with asyncio.timeout(1.7):
        assert await anext(found) == b"{}"
    await found.aclose()


async def test_a_file_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "fleet.json"
    path.write_bytes(b"x" * 11)
    found = contents(path, 10)
    assert "larger than 10 bytes" in str(await anext(found))
    await found.aclose()


def test_pods_are_written_as_the_contract_says():
    wire = {**POD, "uid": "u", "kvEvents": "tcp://127.0.0.1:5", "spot": True, "zone": "z", "phase": "Ready", "new": 1}
    read = PodSnapshot.model_validate(wire)
    assert (read.kv_events, read.spot, read.zone) == ("tcp://127.0.0.1:5", True, "z")
    assert json.loads(read.model_dump_json(by_alias=True))["engineUrl"] == POD["engineUrl"]
