"""What `sheaf profile` asks, what it reads off the answers, and how it says that an engine cannot be measured."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from sheaf.cli.main import run
from sheaf.profiling.engine import Engine, ProfilingError
from sheaf.profiling.measure import Bounds, measure, profile
from sheaf.profiling.plan import LONGEST, NotStreamedError, Stream, decoding, first_token, lengths, probes
from sheaf_engine.timing import PRESETS
from sheaf_engine.timing.fitting import UnfitError

BOUNDS = Bounds(requests=400, seconds=5.0, concurrency=4, longest=256)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def stream(begin: float, step: float, count: int, *, prompt: int = 100, each: int = 1) -> Stream:
    return Stream(begin - 0.05, [begin + step * each * index for index in range(count)], prompt, 0, count * each)


def test_every_length_is_asked_alone_and_batches_short_and_long_in_every_round():
    asked = list(probes("base", [], LONGEST, 8))
    alone = [one.tokens for one in asked if len(one.models) == 1]
    assert alone == lengths(LONGEST) * 5
    assert {(one.tokens, len(one.models)) for one in asked if len(one.models) > 1} == {
        (tokens, size) for tokens in (64, 1024) for size in (2, 4, 8)
    }


def test_adapters_are_asked_twice_before_anything_else_and_later_in_batches():
    asked = list(probes("base", ["ada", "bob"], 256, 4))
    assert [one.models for one in asked[:4]] == [("ada",), ("ada",), ("bob",), ("bob",)]
    assert {one.models for one in asked[4:] if "base" not in one.models} == {
        ("ada", "ada"),
        ("ada", "ada", "ada", "ada"),
        ("ada", "bob", "ada", "bob"),
    }


@given(st.integers(256, 100_000), st.integers(2, 64))
def test_no_probe_is_longer_or_wider_than_allowed(longest, concurrency):
    for probe in probes("base", ["ada"], longest, concurrency):
        assert probe.tokens <= longest
        assert len(probe.models) <= concurrency


@given(st.floats(1e-3, 0.1), st.integers(1, 3), st.integers(1, 8), st.floats(0.0, 0.5))
def test_a_step_is_read_off_the_time_in_which_all_decode(step, each, sequences, lag):
    streams = [stream(10.0 + lag * step * place, step, 60, each=each) for place in range(sequences)]
    found = decoding(streams, ["base"] * sequences, "base", 0)
    assert found is not None
    assert found.sequences == sequences
    assert found.seconds == pytest.approx(step, rel=1e-6)
    assert found.context == pytest.approx(sequences * (100 + 30 * each), rel=0.1)


def test_adapters_and_ranks_are_counted():
    found = decoding([stream(0.0, 0.1, 20)] * 3, ["ada", "bob", "base"], "base", 16)
    assert found is not None
    assert (found.adapters, found.ranks) == (2, 32)


def test_answers_that_hardly_overlap_say_nothing_of_decoding():
    assert decoding([stream(0.0, 0.1, 20), stream(1.8, 0.1, 20)], ["base"] * 2, "base", 0) is None
    assert decoding([stream(0.0, 0.1, 20), stream(9.0, 0.1, 20)], ["base"] * 2, "base", 0) is None


def test_what_was_cached_is_not_computed():
    found = first_token(Stream(1.0, [1.5, 1.6, 1.7, 1.8], 100, 32, 4))
    assert (found.tokens, found.cached, found.seconds) == (68, 32, 0.5)


@pytest.mark.parametrize("chunks", [[1.5], [1.5, 1.5001, 1.5002, 1.5003, 1.5004]])
def test_a_burst_is_no_stream(chunks):
    with pytest.raises(NotStreamedError, match="within 0"):
        first_token(Stream(1.0, chunks, 100, 0, 32))


# Endpoints that cannot be measured.

MODELS = {"data": [{"id": "ada", "parent": "base"}, {"id": "base", "parent": None, "max_model_len": 2048}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 200, "completion_tokens": 32}}
TOKEN = {"choices": [{"text": "x"}]}


def events(*found: Any, step: float = 0.0, held: float = 0.0) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(held)
        reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await reply.prepare(request)
        for event in found:
            await reply.write(b"data: %s\n\n" % (event if isinstance(event, bytes) else json.dumps(event).encode()))
            await asyncio.sleep(step)
        return reply

    return answer


def replies(status: int, value: Any) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(value, status=status)

    return answer


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    runners: list[web.AppRunner] = []

    async def start(completions: Answer, models: Answer | None = None) -> str:
        app = web.Application()
        app.router.add_get("/v1/models", models or replies(200, MODELS))
        app.router.add_post("/v1/completions", completions)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("completions", "said"),
    [
        (replies(200, {"choices": []}), "answers whole"),
        (replies(404, {"error": {"message": "no such model"}}), "answered 404: no such model"),
        (replies(500, "oh"), 'answered 500: "oh"'),
        (replies(401, {}), "SHEAF_API_KEY"),
        (events(TOKEN, {"error": {"message": "engine died"}}), "ended in an error: engine died"),
        (events(b"{nonsense"), "no JSON"),
        (events(TOKEN, TOKEN), "without usage"),
        (events(USAGE), "without tokens"),
        (events(*[TOKEN] * 32, USAGE, held=0.4), "chunks within"),
    ],
)
async def test_an_endpoint_that_does_not_stream_answers_is_refused_with_the_reason(serve, completions, said):
    url = await serve(completions)
    with pytest.raises((ProfilingError, NotStreamedError), match=said):
        await measure(url, None, None, [], 0, BOUNDS)


@pytest.mark.parametrize(
    ("models", "model", "said"),
    [
        (replies(404, {}), None, "answered 404; give the URL"),
        (replies(403, {}), None, "SHEAF_API_KEY"),
        (replies(200, {"data": 7}), None, "does not answer as an OpenAI API"),
        (replies(200, {"data": []}), None, "serves nothing"),
        (None, "ghost", "does not serve ghost; it serves ada, base"),
    ],
)
async def test_an_endpoint_that_is_no_such_api_is_refused_with_the_reason(serve, models, model, said):
    url = await serve(events(TOKEN, USAGE), models)
    with pytest.raises(ProfilingError, match=said):
        await measure(url, None, model, [], 0, BOUNDS)


async def test_an_endpoint_that_stays_silent_ends_with_the_time(serve):
    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5.0)
        raise AssertionError

    url = await serve(silent, silent)
    with pytest.raises(ProfilingError, match=r"did not answer within 0\.2 s"):
        await measure(url, None, None, [], 0, Bounds(requests=9, seconds=0.2, concurrency=2, longest=256))


async def test_a_load_keeps_its_bounds_and_says_that_they_were_too_tight(serve):
    url = await serve(events(*[TOKEN] * 32, USAGE, step=0.001))
    found = await measure(url, None, None, [], 0, Bounds(requests=3, seconds=5.0, concurrency=2, longest=256))
    assert found.requests == 3
    assert found.card.name == "base"
    with pytest.raises(UnfitError, match="too few"):
        profile(found, PRESETS["custom"])


async def test_an_engine_that_breaks_off_is_said(serve):
    async def broken(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    engine = Engine(await serve(broken), None)
    with pytest.raises(ProfilingError, match="broke off"):
        await engine.ask("base", 100)
    await engine.client.aclose()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ftp://x"], 2, "is no URL of an engine"),
        (["http://127.0.0.1:99999"], 2, "is no URL of an engine"),
        (["http://127.0.0.1:1"], 1, "nothing answers at http://127.0.0.1:1"),
        (["127.0.0.1:1", "--base", "abacus"], 2, "no such timing preset"),
    ],
)
def test_mistakes_are_one_line(arguments, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["profile", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_profile_is_not_overwritten_and_a_folder_must_be_there(tmp_path, capsys):
    out = tmp_path / "notes.json"
    out.write_text("mine")
    assert run(["profile", "127.0.0.1:1", "--out", str(out)]) == 2
    assert "is no timing profile" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run(["profile", "127.0.0.1:1", "--out", str(tmp_path / "no" / "x.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    out.write_text(PRESETS["custom"].to_json())
    assert run(["profile", "127.0.0.1:1", "--out", str(out)]) == 1
    assert "nothing answers" in capsys.readouterr().err
