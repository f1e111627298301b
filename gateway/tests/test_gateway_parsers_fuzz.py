"""Every parser against another one, or against any bytes: what both take they read alike, and nothing raises what is not
said to be raised."""

import asyncio
import itertools
import json
from contextlib import suppress

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sheaf_gateway.api.body import CHAT, COMPLETION, MESSAGES, PLAIN, RESPONSES, parse
from sheaf_gateway.api.errors import ApiError
from sheaf_gateway.fleet.agents import AgentError
from sheaf_gateway.fleet.kubernetes.client import ApiError as KubeError
from sheaf_gateway.fleet.kubernetes.client import _lines, said
from sheaf_gateway.fleet.kubernetes.reflector import Reflector, Resource, Rules, _object
from sheaf_gateway.fleet.kubernetes.source import KubernetesSource
from sheaf_gateway.fleet.kvstream import _numbered
from sheaf_gateway.fleet.snapshot import KINDS, read_snapshot
from sheaf_gateway.fleet.store import FleetStore
from sheaf_gateway.fleet.vocabularies import unpacked
from sheaf_gateway.proxy import Pool, ServerLimits, UpstreamError
from sheaf_gateway.proxy.body import ChunkedBody
from sheaf_gateway.proxy.errors import Refusal
from sheaf_gateway.proxy.exchange import Endpoint, Exchange, Timeouts
from sheaf_gateway.proxy.framing import parse_head
from sheaf_gateway.proxy.upstream_connection import UpstreamConnection

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LIMITS = ServerLimits(max_body=4096)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
cuts = st.lists(st.integers(0, 300), max_size=6)


def split(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(min(place, len(data)) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# What clients send: framing.

names = st.sampled_from(
    [b"X-A", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Upgrade", b"content-length"]
)
said_there = st.sampled_from(
    [b"a", b"5", b"05", b"+5", b"5, 5", b"chunked", b"Chunked", b"close", b"100-continue", b"h2c", b"\xe9", b""]
)
framings = st.sampled_from(
    [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"content-length:\t3 \r\n"]
)
more_heads = st.lists(st.tuples(names, st.sampled_from([b": ", b":", b":\t"]), said_there), max_size=2)
heads = st.builds(
    lambda framing, more: (
        b"POST /x HTTP/1.1\r\nHost: a\r\n" + framing + b"".join(b"".join(line) + b"\r\n" for line in more) + b"\r\n"
    ),
    framings,
    st.just([]) | more_heads,
)
bodies = st.binary(max_size=8) | st.sampled_from(
    [b"5\r\nabcde\r\n0\r\n\r\n", b"5;x=y\r\nabcde\r\n0\r\n\r\n", b"0\r\n\r\n", b"abcde"]
)
mutations = st.just([]) | st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=2)), max_size=2)


def mutated(data: bytes, found: list[tuple[int, bytes]]) -> bytes:
    for drawn, more in found:
        place = drawn % (len(data) + 1)
        data = data[:place] + more + data[place + len(more) :]
    return data


def ours(raw: bytes) -> tuple[list[tuple[bytes, bytes]], bytes | None] | None:
    """Headers and body (None: not whole yet) of the first request; None where it is refused."""
    end = raw.find(b"\r\n\r\n") + 4
    try:
        head = parse_head(raw[:end], LIMITS)
        if not head.chunked:
            whole = len(raw) - end >= head.content_length
            return list(head.headers), raw[end : end + head.content_length] if whole else None
        body = ChunkedBody(LIMITS)
        return list(head.headers), body.take() if body.feed(raw[end:]) is not None else None
    except Refusal:
        return None


def by_h11(raw: bytes) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """The same, as h11 reads it; raises where it refuses."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(raw)
    head, body = server.next_event(), b""
    assert isinstance(head, h11.Request), head
    while not isinstance(event := server.next_event(), h11.EndOfMessage):
        if not isinstance(event, h11.Data):
            return list(head.headers), None
        body += bytes(event.data)
    return list(head.headers), body


@FUZZ
@given(heads, bodies, mutations)
def test_a_request_that_is_taken_is_read_as_h11_reads_it(head, body, changes):
    raw = mutated(head + body, changes)
    if b"\r\n\r\n" not in raw or not raw.startswith(b"POST /x HTTP/1.1\r\n"):
        return
    found = ours(raw)
    if found is None:
        return
    try:
        headers, theirs = by_h11(raw)
    except h11.RemoteProtocolError:
        return
    assert [value for name, value in found[0] if name == b"x-a"] == [value for name, value in headers if name == b"x-a"]
    assert {name for name, _ in found[0]} == {name for name, _ in headers}
    assert theirs is None or found[1] == theirs


# What engines answer: framing.


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data):
        pass

    writelines = pause_reading = resume_reading = write

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    abort = close


class Heard:
    """A sink."""

    def __init__(self) -> None:
        self.status, self.body, self.end = 0, b"", ""

    def on_head(self, status, headers):
        assert not self.status
        assert not self.end
        self.status = status

    def on_body(self, data):
        assert data
        assert not self.end
        self.body += data

    def on_end(self):
        assert not self.end
        self.end = "end"

    def on_error(self, error: UpstreamError):
        assert not self.end
        self.end = "error"


statuses = st.sampled_from([b"200 OK", b"204 No", b"304 Not", b"100 Go", b"404 X", b"101 Up", b"200"])
fields = st.sampled_from(
    [b"content-length: 5", b"content-length: 0", b"content-length: 7", b"transfer-encoding: chunked", b"connection: close", b"x: y",
     b"transfer-encoding: gzip", b"content-length: 5, 5", b"keep-alive: 5"])  # fmt: skip
answers = st.tuples(statuses, st.lists(fields, max_size=3), bodies).map(
    lambda found: b"HTTP/1.1 " + found[0] + b"\r\n" + b"".join(line + b"\r\n" for line in found[1]) + b"\r\n" + found[2]
)


async def received(raw: bytes, places: list[int], *, closes: bool) -> tuple[Heard, bool]:
    """What a sink hears of these bytes, and whether the connection is kept."""
    pool, sink, wire = Pool(), Heard(), Wire()
    connection = UpstreamConnection(pool, Endpoint("e", 1))
    connection.connection_made(wire)
    exchange = Exchange(connection.endpoint, b"", b"", sink, Timeouts(), bodiless=False)
    connection.begin(exchange)
    for piece in split(raw, places):
        if not wire.closed:
            connection.data_received(piece)
    kept = not wire.closed
    if closes:
        connection.connection_lost(None)
    await pool.close()
    return sink, kept and sink.end == "end"


def answered_by_h11(raw: bytes) -> tuple[int, bytes]:
    """Status and body of a whole response, as h11 reads it; raises where it refuses or waits for more."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="POST", target="/", headers=[("host", "a"), ("content-length", "0")]))
    client.send(h11.EndOfMessage())
    client.receive_data(raw)
    status, body = 0, b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            client.receive_data(b"")
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
    return status, body


@FUZZ
@given(st.lists(answers, min_size=1, max_size=2).map(b"".join), mutations, cuts)
@example(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", [], [])
async def test_an_answer_that_ends_well_is_read_as_h11_reads_it(raw, changes, places):
    raw = mutated(raw, changes)
    sink, _ = await received(raw, places, closes=True)
    assert sink.end
    with suppress(h11.RemoteProtocolError):
        status, body = answered_by_h11(raw)
        assert sink.end == "error" or (sink.status, sink.body) == (status, body)


@FUZZ
@given(answers, mutations, cuts)
async def test_an_answer_is_the_same_however_its_bytes_are_split(raw, changes, places):
    raw = mutated(raw, changes)
    (whole, kept), (cut, _) = await received(raw, [], closes=True), await received(raw, places, closes=True)
    assert cut.end == whole.end or not kept
    if whole.end == cut.end == "end":
        assert (whole.status, whole.body) == (cut.status, cut.body)


# Bodies of requests.

requests = st.fixed_dictionaries(
    {},
    optional={
        "model": st.text(max_size=3) | JSON,
        "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": JSON}), max_size=2) | JSON,
        "prompt": JSON,
        "input": JSON,
        "stream": st.booleans() | JSON,
        "n": st.integers(-1, 3) | JSON,
        "max_tokens": st.integers(-1, 2**40) | JSON,
        "tools": JSON,
        "x": JSON,
    },
)
raws = requests.map(lambda found: json.dumps(found).encode()) | requests.map(
    lambda found: json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogatepass")
)


def depth(found) -> int:
    if isinstance(found, dict):
        return 1 + max(map(depth, found.values()), default=0)
    return 1 + max(map(depth, found), default=0) if isinstance(found, list) else 0


@FUZZ
@given(raws, mutations, st.sampled_from([CHAT, COMPLETION, RESPONSES, MESSAGES, PLAIN]))
@example(b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', [], CHAT)
@example(b'{"model":"\\ud800"}', [], PLAIN)
@example(b'{"model":"m","messages":[{"role":"\\udc00","content":[{"text":"\\ud800"}]}]}', [], CHAT)
@example(b'{"model":"m","model":"o","messages":[]}', [], CHAT)
@example(b'{"model":"m","prompt":1e999}', [], COMPLETION)
@example(b'{"model":"m","prompt":' + b"9" * 5000 + b"}", [], COMPLETION)
@example(b'{"model":"m","x":"[[[[[[[[[\\"[[[[[[[[[[","messages":[]}', [], CHAT)
def test_a_body_that_is_taken_is_what_another_parser_reads(raw, changes, decode):
    raw = mutated(raw, changes)
    try:
        found = parse(raw, decode, 8)
    except ApiError:
        return
    document = json.loads(raw)
    assert depth(document) <= 8
    assert found.model == document["model"]
    assert found.streams == (bool(document.get("stream")) and document.get("n") in {None, 1})
    found.model.encode()


# Kubernetes.


class Content:
    def __init__(self, pieces):
        self.content = self
        self._pieces = pieces

    async def iter_any(self):
        for piece in self._pieces:
            yield piece


@FUZZ
@given(st.lists(st.binary(max_size=12) | JSON.map(lambda found: json.dumps(found).encode()), max_size=6), cuts)
async def test_lines_of_a_watch_are_the_same_however_they_are_split(lines, places):
    data = b"".join(line + b"\n" for line in lines)
    found = [line async for line in _lines(Content(split(data, places)))]
    assert found == [line for line in data.split(b"\n") if line.strip()]
    for line in found:
        said(line)
        with suppress(KubeError):
            assert isinstance(_object(line), dict)


metadata = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["p", "q"]) | JSON,
        "uid": JSON,
        "resourceVersion": JSON,
        "labels": st.just({"sheaf.dev/model": "m"}) | JSON,
    },
)
objects = (
    st.fixed_dictionaries(
        {}, optional={"metadata": metadata | JSON, "spec": JSON, "status": JSON, "code": JSON, "message": JSON}
    )
    | JSON
)
watched = st.fixed_dictionaries(
    {},
    optional={"type": st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]) | JSON, "object": objects},
)


class NoApi:
    namespace = "team"


@FUZZ
@given(st.sampled_from(sorted(KINDS)), st.lists(watched, max_size=6), st.lists(objects, max_size=4))
async def test_whatever_a_watch_tells_is_worked_in_or_refused_as_nonsense(kind, events, items):
    store = FleetStore()
    source = KubernetesSource(NoApi(), store, seed=1)
    reflector = Reflector(Resource(kind, "/"), NoApi(), source, Rules(), source)
    for event in events:
        with suppress(KubeError):
            reflector._event(json.loads(json.dumps(event)))
    names = await reflector._take({"items": json.loads(json.dumps(items))})
    source.listed(kind, frozenset(names))
    if source._timer is not None:
        source._timer.cancel()
    source._listed.update(KINDS)
    source._flush()
    assert store.known


# What else comes from outside.


@FUZZ
@given(st.dictionaries(st.sampled_from([*KINDS, "version"]), st.lists(objects, max_size=3) | JSON, max_size=4) | JSON)
def test_a_fleet_file_is_taken_in_part_or_refused(document):
    with suppress(TypeError):
        snapshot, problems = read_snapshot(json.loads(json.dumps(document)))
        FleetStore().apply_snapshot(snapshot)
        assert all(problems)


@FUZZ
@given(st.text("ABCab+/=\x00é", max_size=40))
def test_a_vocabulary_is_unpacked_or_refused(told):
    with suppress(AgentError):
        assert all(isinstance(word, bytes) for word in unpacked(told))


@FUZZ
@given(st.lists(st.binary(max_size=9), max_size=5))
def test_a_message_of_kv_events_is_three_frames_with_a_number(frames):
    if len(frames) == 3 and len(frames[1]) == 8:
        assert _numbered(frames) == (int.from_bytes(frames[1], "big"), frames[2])
    else:
        with pytest.raises(ValueError, match="not one of"):
            _numbered(frames)
