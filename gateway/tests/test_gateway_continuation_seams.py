"""Cut anywhere, as often as you like: what the client reads is what an undisturbed stream would have said, or it is
told that it is not whole."""

import json
from random import Random

import pytest
from gateway_token_engine import TokenEngine, read
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sheaf_gateway.continuation.chunks import asking_for_ids, masked
from sheaf_gateway.continuation.joiner import Joiner, SeamError
from sheaf_gateway.continuation.journal import Journal, Purse
from sheaf_gateway.continuation.plan import Ending, Facts, Refusal, decide
from sheaf_gateway.continuation.wish import CHAT, TEXT, read_wish

PLAIN = Facts(max_model_len=10_000)
PLUGIN = Facts(max_model_len=10_000, plugin=True)


class Client:
    """What has reached the client, through the journal as in the gateway."""

    def __init__(self) -> None:
        self.purse = Purse(2**30)
        self.journal = Journal(self.purse, 2**30)
        self.got = b""

    def take(self, data: bytes, *, masks: bool) -> None:
        if data:
            self.journal.add(data)
            self.got += masked(data) if masks else data


def undisturbed(path, body, created=1, most=1):
    asked = {**body, "return_token_ids": body.get("return_token_ids")}
    return b"".join(TokenEngine(created=created, most=most).events(path, asked))


def serve(path, body, cuts, facts, most=1, entropy=False):
    """A stream whose engines die at the cuts (bytes of their own streams); what the client got, and why it ended."""
    masks = "return_token_ids" not in body
    raw = json.dumps(body).encode()
    client, where, asked, joiner = Client(), path, json.loads(asking_for_ids(raw)) if masks else body, None
    for life, cut in enumerate([*cuts, None]):
        asked = {**asked, "entropy": 1 + life} if entropy else asked
        engine = TokenEngine(created=1 + life, most=most, merge=Random(life))
        stream = b"".join(engine.events(where, asked))
        part = stream if cut is None else stream[: cut % (len(stream) + 1)]
        try:
            if joiner is None:
                client.take(part[: part.rfind(b"\n\n") + 2] if b"\n\n" in part else b"", masks=masks)
            else:
                for start in range(0, len(part), 97):
                    client.take(joiner.feed(part[start : start + 97]), masks=masks)
        except SeamError as error:
            return client.got, str(error)
        if client.journal.sent().done:
            return client.got, "whole"
        wish = read_wish(raw, path)
        decision = decide(client.journal.sent(), wish, facts, raw, path)
        if isinstance(decision, Refusal):
            return client.got, decision.reason
        if isinstance(decision, Ending):
            client.take(decision.events, masks=masks)
            return client.got, "whole"
        client.journal.sent().cut(decision.keep + len(decision.replay))
        joiner = Joiner(client.journal.sent(), wish, decision)
        where, asked = decision.path, json.loads(decision.body)
    raise AssertionError("the last engine does not die")


stops = st.sampled_from([None, "stop", ["stop", "cat"], "t a", ["ééé", "x yx y"], "a"])
bodies = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 60), "temperature": st.just(0)},
    optional={
        "stop": stops,
        "include_stop_str_in_output": st.booleans(),
        "min_tokens": st.integers(0, 8),
        "stream_options": st.sampled_from(
            [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
        ),
        "return_token_ids": st.just(True),
        "seed": st.integers(0, 3),
    },
)


def request_of(chat, body, text):
    body = {"model": "base", "stream": True, **body, "min_tokens": min(body.get("min_tokens", 0), body["max_tokens"])}
    return {**body, "messages": [{"role": "user", "content": text}]} if chat else {**body, "prompt": text}


@given(
    st.booleans(),
    bodies,
    st.text("abc é", min_size=1, max_size=4),
    st.lists(st.integers(0, 10**6), max_size=4),
    st.integers(1, 3),
)
@example(chat=True, body={"max_tokens": 40, "temperature": 0}, text="a", cuts=[0], most=1)
@settings(max_examples=80, deadline=None)
def test_a_greedy_stream_cut_anywhere_reads_as_if_it_never_was(chat, body, text, cuts, most):
    path, body = CHAT if chat else TEXT, request_of(chat, body, text)
    got, how = serve(path, body, cuts, PLAIN, most)
    assert how == "whole"
    assert read(got) == {**read(undisturbed(path, body)), "heads": read(got)["heads"]}
    assert len(read(got)["heads"]) == 1


@given(
    st.booleans(),
    bodies,
    st.integers(0, 2),
    st.lists(st.integers(0, 10**6), max_size=3),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_log_probabilities_keep_their_places(chat, body, logprobs, cuts, most, plugin):
    path, body = CHAT if chat else TEXT, request_of(chat, body, "a b")
    body["logprobs"] = True if chat else logprobs
    got, how = serve(path, body, cuts, PLUGIN if plugin else PLAIN, most)
    assert how == "whole" or (how == "seam_within_a_chunk" and most > 1)
    if how == "whole":
        assert read(got) == {**read(undisturbed(path, body)), "heads": read(got)["heads"]}


@given(st.booleans(), bodies, st.lists(st.integers(0, 10**6), min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_sampled_stream_is_exact_with_the_plug_in(chat, body, cuts, most):
    """Every engine draws otherwise; the forced tokens are what was sent, so that the text before each seam stays."""
    path, body = CHAT if chat else TEXT, request_of(chat, {**body, "temperature": 0.7, "seed": None}, "a b")
    got, how = serve(path, body, cuts, PLUGIN, most, entropy=True)
    assert how == "whole"
    check_whole(read(got), body)


@given(st.booleans(), bodies, st.lists(st.integers(0, 10**6), min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_sampled_stream_without_the_plug_in_is_whole_or_refused(chat, body, cuts, most):
    path, body = CHAT if chat else TEXT, request_of(chat, {**body, "temperature": 0.7, "seed": None}, "a b")
    got, how = serve(path, body, cuts, PLAIN, most, entropy=True)
    if how == "whole":
        check_whole(read(got), body)
    else:
        assert how in ("sampled_text_held_back", "not_the_same")
        assert body.get("stop") or body.get("return_token_ids") or most > 1


@given(st.booleans(), bodies, st.lists(st.integers(0, 10**6), min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_seeded_stream_goes_on_with_the_same_draws(chat, body, cuts, most):
    path, body = CHAT if chat else TEXT, request_of(chat, {**body, "temperature": 0.7, "seed": 3}, "a b")
    got, how = serve(path, body, cuts, PLAIN, most)
    assert how == "whole"
    assert read(got) == {**read(undisturbed(path, body)), "heads": read(got)["heads"]}


def check_whole(found, body):
    """One role, one end, no replacement character of a broken one, no stop string in the text, as many tokens as asked."""
    assert len(found["finish"]) == 1
    assert found["order"]
    stop = body.get("stop") or []
    if not body.get("include_stop_str_in_output") and not body.get("min_tokens"):
        assert not any(each in found["text"] for each in ([stop] if isinstance(stop, str) else stop))
    if found["usage"]:
        assert found["usage"][0]["completion_tokens"] <= body["max_tokens"]
        if found["finish"][0][0] == "length":
            assert found["usage"][0]["completion_tokens"] == body["max_tokens"]
    if body.get("return_token_ids") and found["usage"]:
        assert len(found["tokens"]) == found["usage"][0]["completion_tokens"]


@pytest.mark.parametrize("chat", [True, False])
def test_every_byte_of_one_stream_can_be_the_last(chat):
    path, body = CHAT if chat else TEXT, request_of(chat, {"max_tokens": 8, "temperature": 0, "stop": "zz"}, "abc")
    whole = undisturbed(path, body)
    for cut in range(len(whole) + 1):
        got, how = serve(path, body, [cut], PLAIN)
        assert how == "whole"
        assert read(got)["text"] == read(whole)["text"]
