"""The gateway follows an API server whatever it does: pages, bookmarks, 410, cut, silent and refused connections,
objects that make no sense."""

import asyncio
import contextlib
from random import Random

import pytest
from gateway_fixtures import adapter, model, slo
from gateway_kube_server import KubeServer, kubeconfig, pod
from sheaf_gateway.config import ConfigError, KubernetesConfig
from sheaf_gateway.fleet.kubernetes import backoff, client
from sheaf_gateway.fleet.kubernetes.client import KubeApi
from sheaf_gateway.fleet.kubernetes.reflector import Rules
from sheaf_gateway.fleet.kubernetes.source import KubernetesSource
from sheaf_gateway.fleet.store import FleetStore


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.05)


@pytest.fixture
async def server(closing):
    made = KubeServer()
    await made.open()
    closing.push_async_callback(made.close)
    return made


@pytest.fixture
def follow(closing, tmp_path, server):
    """`store, source = await follow(**rules)`: a store that follows the server."""

    async def start(store=None, **rules):
        api = await KubeApi.open(KubernetesConfig(kubeconfig=kubeconfig(tmp_path, server.url)))
        closing.push_async_callback(api.close)
        store = store or FleetStore()
        source = KubernetesSource(api, store, seed=1, rules=Rules(**rules))
        task = asyncio.create_task(source.run())

        async def stop():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        closing.push_async_callback(stop)
        return store, source

    return start


async def until(truth, within=10.0):
    async with asyncio.timeout(within):
        while not truth():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def fill(server):
    server.put("models", model("base", sloRef={"name": "chat"}))
    server.put("adapters", adapter("pirate", "base"))
    server.put("slos", slo("chat", queue={"maxRequests": 3}))
    server.put("pods", pod("base-0", "base"))


async def test_everything_declared_is_served_once_all_of_it_is_known(server, follow):
    fill(server)
    server.refuse = lambda seen: (500, "not now") if "/slos" in seen.path else None
    store, _ = await follow()
    await until(lambda: server.watches("pods") and server.watches("adapters"))
    await asyncio.sleep(0.05)
    assert store.snapshot is None
    assert dict(store.fleet.served) == {}
    server.refuse = lambda _seen: None
    await until(lambda: store.snapshot is not None)
    assert list(store.fleet.served) == ["base", "pirate"]
    assert store.fleet.served["pirate"].promise.max_queue == 3
    assert store.fleet.ready == {"base": 1}
    assert store.fleet.pods_of("base")[0].engine_url == "http://127.0.0.1:8000"


async def test_changes_are_seen_as_they_come(server, follow):
    fill(server)
    store, _ = await follow()
    await until(lambda: store.snapshot is not None)
    server.put("models", model("second", replicas=0))
    server.put("adapters", adapter("sailor", "second"))
    await until(lambda: "sailor" in store.fleet.served)
    server.put("pods", pod("base-0", "base", ready=False))
    await until(lambda: store.fleet.ready == {"base": 0})
    server.drop("pods", "base-0")
    await until(lambda: store.fleet.pods_of("base") == ())
    server.drop("models", "second")
    await until(lambda: list(store.fleet.served) == ["base", "pirate"])
    server.put("slos", slo("chat", queue={"maxRequests": 9}))
    await until(lambda: store.fleet.served["pirate"].promise.max_queue == 9)
    assert all(server.lists(kind) == 1 for kind in ("models", "adapters", "slos", "pods"))


async def test_long_lists_come_in_pages(server, follow):
    for place in range(25):
        server.put("models", model(f"m{place}"))
    store, _ = await follow(page=10)
    await until(lambda: len(store.fleet.served) == 25)
    pages = [query for path, query in server.queries if path.endswith("/models") and "watch" not in query]
    assert [query.get("continue") for query in pages] == [None, "10", "20"]


async def test_a_burst_is_worked_in_at_once(server, follow):
    store, _ = await follow()
    await until(lambda: store.snapshot is not None and server.watches("adapters"))
    changes = []
    store.watch(changes.append)
    server.put("models", model("base"))
    for place in range(200):
        server.put("adapters", adapter(f"a{place}", "base"))
    await until(lambda: len(store.fleet.served) == 201)
    assert len(changes) < 20


async def test_a_cut_watch_goes_on_where_it_stood_and_nobody_is_alarmed(server, follow, logged):
    fill(server)
    store, _ = await follow()
    await until(lambda: server.watches("pods") == 1)
    server.cut()
    server.put("pods", pod("base-1", "base"))
    await until(lambda: len(store.fleet.pods_of("base")) == 2)
    assert server.lists("pods") == 1
    assert not [line for line in logged if line["event"] == "fleet_watch"]


async def test_bookmarks_move_the_place_to_go_on_from(server, follow):
    fill(server)
    store, _ = await follow()
    await until(lambda: server.watches("slos") == 1 and store.snapshot is not None)
    server.put("pods", pod("base-1", "base"))
    server.bookmark("slos")
    await until(lambda: len(store.fleet.pods_of("base")) == 2)
    server.compact()
    server.cut()
    await until(lambda: server.watches("slos") == 2)
    assert server.lists("slos") == 1


@pytest.mark.parametrize("how", ["answer", "event"])
async def test_a_watch_that_expired_is_listed_anew_and_nothing_is_missed(server, follow, how):
    fill(server)
    server.put("pods", pod("base-1", "base"))
    store, _ = await follow()
    await until(lambda: server.watches("pods") == 1 and store.snapshot is not None)
    if how == "event":
        server.say("pods", "ERROR", {"kind": "Status", "code": 410, "message": "too old"})
    else:
        server.objects["pods"].pop("base-1")
        server.version += 10
        server.compact()
        server.cut()
    await until(lambda: server.lists("pods") == 2)
    await until(lambda: len(store.fleet.pods_of("base")) == (2 if how == "event" else 1))


async def test_an_event_may_come_in_pieces(server, follow, logged):
    fill(server)
    store, source = await follow()
    await until(lambda: server.watches("pods") == 1 and store.snapshot is not None)
    server.piece = 40
    server.put("pods", pod("base-1", "base"))
    await until(lambda: len(store.fleet.pods_of("base")) == 2)
    assert (server.watches("pods"), source.board.away) == (1, frozenset())
    assert not [line for line in logged if line["event"] == "reflector_failed"]


async def test_a_silent_watch_is_taken_up_again_where_it_stood(server, follow):
    fill(server)
    await follow(idle_s=0.1)
    await until(lambda: server.watches("pods") >= 3)
    assert server.lists("pods") == 1


async def test_watches_end_and_begin_again_in_peace(server, follow, logged):
    fill(server)
    store, source = await follow(watch_s=1.0)
    await until(lambda: server.watches("pods") >= 2, within=1.9)
    assert server.lists("pods") == 1
    assert source.board.away == frozenset()
    assert store.snapshot is not None
    assert not [line for line in logged if line.get("state") == "away"]


async def test_everything_stays_while_the_server_is_away_and_one_line_says_since_when(server, follow, logged):
    fill(server)
    store, source = await follow()
    await until(lambda: store.snapshot is not None and server.watches("pods"))
    before = store.fleet
    await server.close()
    await until(lambda: source.board.away)
    await asyncio.sleep(0.2)
    assert store.fleet is before
    said = [line for line in logged if line["event"] == "fleet_watch" and line["state"] == "away"]
    assert len(said) == 1
    assert said[0]["since"] > 0
    server.put("adapters", adapter("sailor", "base"))
    await server.open()
    await until(lambda: "sailor" in store.fleet.served)
    await until(lambda: not source.board.away)
    assert [line["state"] for line in logged if line["event"] == "fleet_watch"] == ["away", "watching"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "credentials"),
        (403, "Role in namespace team must allow list and watch of adapters.sheaf.dev"),
        (404, "install Sheaf's CRDs"),
        (500, "answered 500"),
    ],
)
async def test_a_refusal_says_how_to_mend_it(server, follow, logged, code, words):
    server.refuse = lambda seen: (code, "no") if "/adapters" in seen.path else None
    store, _ = await follow()
    await until(lambda: any(words in str(line.get("reason")) for line in logged))
    assert store.snapshot is None


async def test_a_busy_server_is_left_alone_as_long_as_it_asks(server, follow):
    server.refuse, server.retry_after = lambda seen: (429, "slow down") if "/slos" in seen.path else None, "1"
    await follow()
    await until(lambda: server.lists("slos") == 1)
    await asyncio.sleep(0.5)
    assert server.lists("slos") == 1


@pytest.mark.parametrize("nonsense", [[], "x", {"type": "ADDED"}, {"type": "ADDED", "object": 7}])
async def test_nonsense_in_a_watch_is_survived(server, follow, nonsense):
    fill(server)
    store, _ = await follow()
    await until(lambda: server.watches("pods") == 1)
    server.history.append((server.version, "pods", nonsense))
    server.put("pods", pod("base-1", "base"))
    await until(lambda: server.watches("pods") > 1)
    server.put("pods", pod("base-2", "base"))
    await until(lambda: len(store.fleet.pods_of("base")) == 3)


async def test_a_broken_object_is_left_out_and_named_once_and_its_last_good_version_holds(server, follow, logged):
    fill(server)
    store, _ = await follow()
    await until(lambda: store.snapshot is not None and server.watches("models"))
    server.put("models", model("base", replicas="many"))
    server.put("models", model("base", replicas="more"))
    server.put("models", {**model("odd"), "spec": {"source": 7}})
    server.put("models", model("fine"))
    await until(lambda: "fine" in store.fleet.served)
    assert list(store.fleet.served) == ["base", "fine", "pirate"]
    said = [(line["name"], line["reason"]) for line in logged if line["event"] == "fleet_part_left_out"]
    assert [name for name, _ in said] == ["base", "odd"]
    assert "spec.replicas" in said[0][1]
    server.put("models", model("base", replicas=5))
    await until(lambda: store.fleet.served["base"].replicas == 5)


async def test_another_object_of_the_same_name_does_not_inherit_the_old_one(server, follow):
    fill(server)
    store, _ = await follow()
    await until(lambda: store.snapshot is not None and server.watches("adapters"))
    server.put("adapters", {**adapter("pirate", "base"), "spec": {}}, uid="another")
    await until(lambda: "pirate" not in store.fleet.served)


async def test_fields_of_a_newer_schema_are_ignored(server, follow):
    fill(server)
    server.put("models", model("newer", lora={"slots": 4, "sparkle": True}, sparkles=[{"a": 1}]))
    store, _ = await follow()
    await until(lambda: "newer" in store.fleet.served)
    assert store.declared.models["newer"].spec.lora.slots == 4


async def test_more_objects_than_are_allowed_are_left_out(server, follow, logged):
    for place in range(6):
        server.put("models", model(f"m{place}"))
    store, _ = await follow(max_objects=4)
    await until(lambda: store.snapshot is not None)
    assert len(store.fleet.served) == 4
    assert any("more than 4" in line.get("reason", "") for line in logged)


async def test_what_users_leave_in_annotations_is_not_held(server, follow):
    raw = model("base")
    raw["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 100_000, "mine": "y"}
    raw["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    server.put("models", raw)
    store, _ = await follow()
    await until(lambda: store.snapshot is not None)
    assert store.declared.models["base"].metadata.annotations == {"mine": "y"}


async def test_only_engine_pods_are_asked_for_with_the_gateways_token(server, follow):
    await follow()
    await until(lambda: server.watches("pods") == 1)
    assert all(
        q.get("labelSelector") == "app.kubernetes.io/name=sheaf-engine" for p, q in server.queries if "/pods" in p
    )
    assert {seen.headers["authorization"] for seen in server.seen} == {"Bearer secret"}
    assert {seen.method for seen in server.seen} == {"GET"}


async def test_a_list_is_refreshed_now_and_then_and_what_was_missed_is_mended(server, follow):
    fill(server)
    store, _ = await follow(watch_s=0.2, refresh_s=0.0)
    await until(lambda: store.snapshot is not None)
    server.objects["adapters"].pop("pirate")
    await until(lambda: "pirate" not in store.fleet.served, within=1.9)


async def test_a_cluster_that_cannot_be_used_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="no-such-file"):
        await KubeApi.open(KubernetesConfig(kubeconfig=tmp_path / "no-such-file"))
    (tmp_path / "broken").write_text("}{")
    with pytest.raises(ConfigError, match="broken"):
        await KubeApi.open(KubernetesConfig(kubeconfig=tmp_path / "broken"))
    with pytest.raises(ConfigError, match="not a pod with a service account"):
        await KubeApi.open(KubernetesConfig())


def test_waits_grow_up_to_a_bound_and_are_never_the_same():
    random = Random(7)
    first = [backoff.delay(1, random) for _ in range(100)]
    assert len(set(first)) == 100
    assert all(0.005 <= wait <= 0.01 for wait in first)
    assert max(backoff.delay(99, random) for _ in range(100)) <= 0.05
    assert backoff.delay(1, random, 3.0) >= 3.0
    assert backoff.delay(1, random, 1e9) <= 72.0


async def test_an_event_or_an_answer_of_any_size_is_not_held(server, follow, logged, monkeypatch):
    fill(server)
    store, source = await follow()
    await until(lambda: store.snapshot is not None and server.watches("slos"))
    monkeypatch.setattr(client, "MAX_LINE", 10_000)
    server.put("slos", {**slo("huge"), "junk": "x" * 50_000})
    await until(lambda: any("more than 10000 bytes" in line.get("reason", "") for line in logged))
    await until(lambda: server.lists("slos") == 2 and not source.board.away)
    monkeypatch.setattr(client, "MAX_PAGE", 20_000)
    server.version += 1
    server.compact()
    server.cut()
    await until(lambda: any("more than 20000 bytes" in line.get("reason", "") for line in logged))
    server.drop("slos", "huge")
    await until(lambda: not source.board.away)
    assert "base" in store.fleet.served


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"", b'{"items": 7}', b'{"items": [7, {}], "metadata": 3}'])
async def test_an_answer_that_is_no_list_is_survived(start_engine, server, follow, answer):
    async def nonsense(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()

    good = server.port
    server.port = (await start_engine(nonsense)).port
    store, source = await follow()
    await until(lambda: source.board.away)
    assert store.snapshot is None
    server.port = good


async def test_a_server_that_accepts_and_says_nothing_is_away(start_engine, server, follow, monkeypatch):
    async def silent(reader, writer):
        await reader.read()

    monkeypatch.setattr(client, "READ_S", 0.1)
    good, server.port = server.port, (await start_engine(silent)).port
    _, source = await follow()
    await until(lambda: len(source.board.away) == 5)
    server.port = good
