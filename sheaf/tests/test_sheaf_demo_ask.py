"""The demo's questions over real HTTP: what the server says is what is judged, and a failure is one line."""

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest
from demo_endpoint import STYLED, Endpoint
from sheaf.demo.ask import LIKE, Asker, handbook
from sheaf.demo.judge import STYLES, Answer, Vectors, judge
from sheaf.demo.recipe import DemoError


@pytest.fixture
def url() -> Iterator[str]:
    Endpoint.asked, Endpoint.breaks = [], ""
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def asker(url: str) -> Iterator[Asker]:
    asker = Asker(url, lambda _: None)
    with asker.client:
        yield asker


def test_everything_is_asked_heard_and_judged(url: str) -> None:
    heard: list[Answer | Vectors] = []
    answers = Asker(url, heard.append).ask()
    assert [verdict for verdict in judge(answers) if not verdict.holds] == []
    assert heard == [
        *answers.base,
        *(a for two in answers.adapters.values() for a in two),
        *answers.prefix,
        answers.vectors,
    ]
    assert set(answers.adapters) == set(STYLES)


def test_a_streamed_answer_has_all_that_the_table_shows(asker: Asker) -> None:
    answer = asker.stream("pirate", "Who are you?")
    assert (answer.text, answer.pod, answer.why) == (STYLED["pirate"], "pod-1", "cheapest")
    assert (answer.request_id, answer.prompt_tokens, answer.cached_tokens) == ("request-7", 440, 416)
    assert answer.ttft_ms is not None
    assert answer.ttft_ms > 0


def test_a_plain_answer_has_no_time_to_first_token(asker: Asker) -> None:
    answer = asker.plain("smollm2", "Where?")
    assert (answer.text, answer.ttft_ms, answer.cached_tokens) == (STYLED["smollm2"], None, None)


def test_the_shared_prefix_is_long_and_the_questions_differ(asker: Asker) -> None:
    asker.prefix()
    first, second = ([message["content"] for message in body["messages"]] for body in Endpoint.asked)
    assert first[0] == second[0] == handbook()
    assert len(handbook().split()) > 200
    assert first[1] != second[1]


def test_answers_are_greedy(asker: Asker) -> None:
    asker.plain("smollm2", "Where?")
    assert Endpoint.asked[0]["temperature"] == 0


def test_a_refusal_is_one_line(asker: Asker) -> None:
    Endpoint.breaks = "refuse"
    with pytest.raises(DemoError, match=r"^smollm2 was answered 503: .*no pod is ready"):
        asker.ask()


def test_a_broken_stream_is_one_line(asker: Asker) -> None:
    Endpoint.breaks = "stream"
    with pytest.raises(DemoError, match=r"^a stream broke after 'Arr! Paris, matey!': the engine is gone$"):
        asker.stream("pirate", "Who are you?")


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(DemoError, match=r"^smollm2 got no answer: Connection error"):
        Asker("http://127.0.0.1:9", lambda _: None).ask()


def test_words_alone_do_not_tell_which_texts_mean_the_same() -> None:
    one, like_one, unlike = (set(text.lower().strip(".").split()) for text in LIKE)
    assert not one & like_one
    assert len(one & unlike) >= 3
