"""Engines' KV events are heard from the first batch on, gaps are filled or forgotten, and nothing of them breaks anything."""

import asyncio
from base64 import b64encode
from contextlib import aclosing

import msgspec
import pytest
import zmq.asyncio
from gateway_fixtures import adapter, ask, chat, make_world, model  # noqa: F401
from gateway_kv_engine import WORDS, Publisher, stored, text
from gateway_raw_servers import DIGEST, TOKEN, Agent, Engine, response
from sheaf_crds import Adapter, Model
from sheaf_crds.agent_api import AgentState, Vocabulary
from sheaf_gateway.fleet import kvevents, vocabularies
from sheaf_gateway.fleet.agents import AGENT_LIMITS, AgentClient, AgentError
from sheaf_gateway.fleet.kvevents import KvEvents
from sheaf_gateway.fleet.kvstream import batches
from sheaf_gateway.fleet.snapshot import PodSnapshot
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.vocabularies import Vocabularies, unpacked
from sheaf_gateway.proxy.upstream import Pool
from sheaf_gateway.routing.form import Form
from sheaf_gateway.routing.index import PrefixIndex
from sheaf_gateway.routing.prefix import chain, seed

PACKED = b64encode(b"".join(len(word).to_bytes(2, "big") + word for word in WORDS)).decode()
RENDERING = {"begins": {"user": ""}, "ends": {"user": ""}, "text": "<s>"}


class TellingAgent(Agent):
    """An agent that has a vocabulary to tell."""

    told = Vocabulary.model_validate({"digest": "v1", "tokens": PACKED, "rendering": RENDERING}).model_dump_json(
        by_alias=True
    )
    asked = 0

    async def answer(self, seen, writer):
        if not seen.path.startswith("/v1/vocabulary"):
            await super().answer(seen, writer)
            return
        self.asked += 1
        writer.write(response(200, self.told.encode()))
        await writer.drain()


class Heard:
    """A store with pods, an engine's publisher, and what is known of it."""

    def __init__(self, publisher: Publisher, agent: TellingAgent, client: AgentClient) -> None:
        self.publisher, self.agent = publisher, agent
        self.store, self.index = FleetStore(), PrefixIndex()
        self.events = KvEvents(self.store, self.index, Vocabularies(client))
        declared = [
            Model.model_validate(model("base")),
            Adapter.model_validate(adapter("pirate", "base", digest=f"sha256:{DIGEST}")),
        ]
        self.store.apply({("models", "base"): declared[0], ("adapters", "pirate"): declared[1]})

    def declare(self, name: str = "p", **changes) -> None:
        urls = {"engineUrl": "http://127.0.0.1:1", "agentUrl": self.agent.url}
        urls |= {"kvEvents": self.publisher.events, "kvReplay": self.publisher.replay}
        pod = {"name": name, "uid": "u", "model": "base", "ready": True, **urls, **changes}
        self.store.apply({("pods", name): PodSnapshot.model_validate(pod)})

    def report(self, name: str = "p", epoch: int = 1, vocabulary: str = "v1") -> None:
        self.store.apply_state(name, AgentState(engine="Ready", engine_epoch=epoch, vocabulary=vocabulary))

    def held(self, *tokens: int, pod: str = "p", epoch: int = 1, served: str | None = None, salt: str = "") -> int:
        found = chain(seed("base", served, DIGEST if served else "", salt), text(*tokens).encode())
        return self.index.match(found, [(pod, epoch)]).get((pod, epoch), 0)

    async def until(self, truth) -> None:
        async with asyncio.timeout(10):
            while not truth():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def until_heard(self, pod: str = "p", epoch: int = 1) -> None:
        await self.until(lambda: (pod, epoch) in self.index.announced)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(kvevents, "_FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(kvevents, "_PATIENCE_S", 0.01)


@pytest.fixture
async def heard(closing, tmp_path):
    publisher = Publisher(tmp_path)
    closing.push_async_callback(publisher.close)
    agent = TellingAgent(Engine("p", "base"))
    await agent.open()
    closing.push_async_callback(agent.close)
    (tmp_path / "token").write_text(TOKEN)
    pool = Pool(AGENT_LIMITS)
    closing.push_async_callback(pool.close)
    found = Heard(publisher, agent, AgentClient(pool, tmp_path / "token"))
    closing.push_async_callback(found.events.stop)
    return found


async def test_what_was_stored_before_the_gateway_came_is_known_too(heard):
    await heard.publisher.publish(stored(1, 0))
    heard.declare()
    heard.report()
    await heard.until(lambda: heard.held(0) == 1)
    await heard.publisher.publish(stored(2, 1, parent=1))
    await heard.until(lambda: heard.held(0, 1) == 2)
    await heard.publisher.publish({"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"})
    await heard.until(lambda: heard.held(0, 1) == 0)


async def test_adapters_and_salts_are_other_prompts(heard):
    heard.declare()
    heard.report()
    await heard.publisher.publish(stored(1, 0, adapter="pirate", salt="pepper"), stored(2, 1, adapter="unknown"))
    await heard.until(lambda: heard.held(0, served="pirate", salt="pepper") == 1)
    assert [heard.held(0), heard.held(0, served="pirate"), heard.held(0, salt="pepper")] == [0, 0, 0]


async def test_missed_batches_are_replayed(heard):
    heard.declare()
    heard.report()
    await heard.publisher.publish(stored(1, 0))
    await heard.until(lambda: heard.held(0) == 1)
    heard.publisher.lose = True
    await heard.publisher.publish(stored(2, 1, parent=1))
    heard.publisher.lose = False
    await heard.publisher.publish(stored(3, 2, parent=2))
    await heard.until(lambda: heard.held(0, 1, 2) == 3)


async def test_who_stops_in_the_middle_of_a_replay_leaves_no_socket(heard):
    for number in (1, 2):
        await heard.publisher.publish(stored(number, number))
    context = zmq.asyncio.Context()
    async with aclosing(batches(context, heard.publisher.events, heard.publisher.replay)) as payloads:
        assert await anext(payloads)
    assert all(socket.closed for socket in context._sockets), "the context would wait for it for ever"
    context.term()


async def test_a_gap_that_cannot_be_filled_begins_anew(heard):
    heard.declare(kvReplay=None)
    heard.report()
    await heard.until_heard()
    await _steadily(heard, lambda: heard.held(0) == 1)
    heard.publisher.lose = True
    await heard.publisher.publish(stored(1, 1))
    heard.publisher.lose = False
    await heard.publisher.publish(stored(2, 2))
    await heard.until(lambda: heard.held(2) == 1)
    assert heard.held(0) == 0


async def _steadily(heard: Heard, truth) -> None:
    """Publish until a subscription without replay hears it."""
    async with asyncio.timeout(10):
        while not truth():
            await heard.publisher.publish(stored(9, 0))
            await asyncio.sleep(0.01)


async def test_an_engine_that_starts_again_begins_with_nothing(heard):
    heard.declare()
    heard.report()
    await heard.publisher.publish(stored(1, 0))
    await heard.until(lambda: heard.held(0) == 1)
    await heard.publisher.publish({"type": "AllBlocksCleared"})
    heard.report(epoch=2)
    await heard.until_heard(epoch=2)
    assert list(heard.index.announced) == [("p", 2)]
    assert heard.held(0, epoch=2) == 0


async def test_a_pod_that_goes_takes_everything_along(heard):
    heard.declare()
    heard.report()
    await heard.publisher.publish(stored(1, 0))
    await heard.until(lambda: heard.held(0) == 1)
    assert heard.events.forms == {"base": Form(text="<s>", begins={"user": ""}, ends={"user": ""})}
    heard.store.apply({("pods", "p"): None})
    await heard.until(lambda: not heard.index.announced)
    assert heard.events.forms == {}


def deep() -> bytes:
    """A batch with a value that nests deeper than can be read."""
    return msgspec.msgpack.encode([0.0, [{**stored(1, 1), "extra_keys": [["mark"]]}], 0]).replace(
        msgspec.msgpack.encode("mark"), b"\x91" * 100_000 + b"\xc0"
    )


@pytest.mark.parametrize("garbage", [b"\xc1 not msgpack", b"", b"\x91" * 100_000, deep()])
async def test_garbage_breaks_nothing_and_the_subscription_comes_back(heard, garbage):
    heard.declare()
    heard.report()
    await heard.until_heard()
    await heard.publisher.send(garbage)
    await heard.publisher.publish({"type": "SomethingNew"})
    heard.publisher._kept.clear()
    await _steadily(heard, lambda: heard.held(0) == 1)


async def test_engines_whose_cache_is_no_chain_are_left_to_prediction(heard):
    heard.declare()
    heard.report()
    await heard.until_heard()
    await heard.publisher.publish(stored(1, 0) | {"kv_cache_spec_kind": "mamba"})
    await heard.until(lambda: not heard.index.announced)


@pytest.mark.parametrize("changes", [{"kvEvents": None}, {"kvEvents": "http://x"}, {"agentUrl": ""}])
async def test_pods_that_publish_nothing_are_left_to_prediction(heard, changes):
    heard.declare(**changes)
    heard.report()
    await asyncio.sleep(0.05)
    assert heard.index.announced == {}


async def test_nothing_is_heard_until_the_agent_has_a_vocabulary_and_one_serves_all_pods(heard):
    for name in ("p", "q"):
        heard.declare(name)
        heard.report(name, vocabulary="")
    await asyncio.sleep(0.05)
    assert heard.index.announced == {}
    for name in ("p", "q"):
        heard.report(name)
    await heard.until(lambda: len(heard.index.announced) == 2)
    assert heard.agent.asked == 1


async def test_subscriptions_and_blocks_are_bounded(heard, monkeypatch):
    monkeypatch.setattr(kvevents, "MAX_SUBSCRIPTIONS", 1)
    monkeypatch.setattr(kvevents, "MAX_BLOCKS_OF_A_POD", 1)
    for name in ("p", "q"):
        heard.declare(name)
        heard.report(name)
    await heard.until(lambda: len(heard.index.announced) == 1)
    await heard.publisher.publish(stored(1, 0), stored(2, 1))
    await heard.until(lambda: not heard.index.announced)


async def test_another_vocabulary_than_the_state_names_is_refused(heard):
    heard.declare()
    heard.report(vocabulary="v2")
    await heard.until(lambda: heard.agent.asked > 1)
    assert heard.index.announced == {}


@pytest.mark.parametrize("tokens", ["!", "AAE", b64encode(b"\0\5abc").decode(), b64encode(b"\0").decode()])
def test_vocabularies_that_are_cut_off_are_refused(tokens):
    with pytest.raises(AgentError, match="vocabulary"):
        unpacked(tokens)


async def test_vocabularies_are_bounded(heard, monkeypatch):
    monkeypatch.setattr(vocabularies, "MOST", 0)
    known = heard.events._vocabularies
    await known.get(heard.agent.url, "v1")
    await known.get(heard.agent.url, "v1")
    assert heard.agent.asked == 2


async def test_a_request_meets_what_the_engine_announced(make_world, ask):  # noqa: F811
    world = await make_world(pods={"base": 1})
    world.gateway.inference.forms["base"] = Form(begins={"user": ""}, ends={"user": ""})
    pod = world.gateway.store.fleet.pods_of("base")[0]
    blocks = world.gateway.router.index.announce((pod.name, pod.epoch))
    blocks.stored([1, 2], None, [WORDS[1] * 4, WORDS[2] * 4], 4, seed("base", None, "", ""))
    status, headers, _ = await ask(world, "POST", "/v1/chat/completions", chat("base", text(1, 2, 3)))
    assert status == 200
    record = world.gateway.inference.records.get(headers["x-request-id"])
    assert record.attempts[-1].expected_cached == 8
