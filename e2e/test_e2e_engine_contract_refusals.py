"""The emulator and real vLLM answer alike: what is refused, with which status, type and parameter."""

import pytest
from contract_checks import CHAT, HELLO, TEXT, assert_refused
from contract_engines import MAX_LEN

pytestmark = pytest.mark.timeout(600)


REFUSED = [
    (CHAT, {"model": "nope"}, 404, "NotFoundError", "model"),
    (TEXT, {"model": "nope"}, 404, "NotFoundError", "model"),
    ("/tokenize", {"model": "nope"}, 404, "NotFoundError", "model"),
    (CHAT, {"max_tokens": 5000}, 400, "BadRequestError", "max_tokens"),
    (CHAT, {"max_tokens": 0}, 400, "BadRequestError", "max_tokens"),
    (CHAT, {"max_tokens": -1}, 400, "BadRequestError", "max_tokens"),
    (CHAT, {"n": 0}, 400, "BadRequestError", None),
    (CHAT, {"n": 2, "temperature": 0}, 400, "BadRequestError", None),
    (CHAT, {"temperature": -1}, 400, "BadRequestError", "temperature"),
    (CHAT, {"top_p": 2}, 400, "BadRequestError", "top_p"),
    (CHAT, {"messages": []}, 400, "BadRequestError", None),
    (CHAT, {"messages": "x"}, 400, "Bad Request", "body.messages"),
    (CHAT, {"cache_salt": ""}, 400, "BadRequestError", "cache_salt"),
    (CHAT, {"stream_options": {"include_usage": True}}, 400, "BadRequestError", "stream_options"),
    (CHAT, {"min_tokens": 9, "max_tokens": 4}, 400, "BadRequestError", None),
    (CHAT, {"top_logprobs": 3}, 400, "BadRequestError", "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 50}, 400, "BadRequestError", "logprobs"),
    (CHAT, {"stop": [""]}, 400, "BadRequestError", None),
    (CHAT, {"stop": ["a"] * 9}, 400, "Bad Request", "body.stop"),
    (CHAT, {"seed": 2**70}, 400, "Bad Request", "body.seed"),
    (CHAT, {"continue_final_message": True}, 400, "BadRequestError", None),
    (TEXT, {"prompt": None}, 400, "BadRequestError", "prompt"),
    (TEXT, {"prompt": ""}, 400, "BadRequestError", "prompt"),
    (TEXT, {"prompt": []}, 400, "BadRequestError", None),
    (TEXT, {"prompt": [10**6]}, 400, "BadRequestError", None),
    (TEXT, {"prompt": [-1]}, 400, "Bad Request", "body.prompt.0"),
    (TEXT, {"prompt": [7] * 1100}, 400, "BadRequestError", "input_tokens"),
    (TEXT, {"prompt": [7] * MAX_LEN}, 400, "BadRequestError", "max_tokens"),
    (TEXT, {"logprobs": 50}, 400, "BadRequestError", "logprobs"),
    (TEXT, {"suffix": "x"}, 400, "BadRequestError", "suffix"),
    ("/detokenize", {"tokens": ["a"]}, 400, "Bad Request", "body.tokens.0"),
    ("/detokenize", {"tokens": [-1]}, 400, "Bad Request", "body.tokens.0"),
]


@pytest.mark.parametrize(("path", "fields", "status", "kind", "param"), REFUSED)
def test_a_bad_request_is_refused_with_its_parameter(engine, path, fields, status, kind, param):
    body = {"model": "tiny", "messages": HELLO} if path == CHAT else {"model": "tiny", "prompt": "Hello"}
    assert_refused(engine.post(path, {**body, **fields}), status, kind, param)


def test_a_text_beyond_the_context_length_is_refused(engine):
    response = engine.post(CHAT, {"model": "tiny", "messages": [{"role": "user", "content": "zq " * 5000}]})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (400, "BadRequestError", 400)
    assert error["param"] in ("input_text", "input_tokens")
    assert f"maximum context length is {MAX_LEN} tokens" in error["message"]


@pytest.mark.parametrize(
    ("content", "media_type", "param"),
    [
        (b"{", "application/json", "body.1"),
        (b"", "application/json", "body"),
        (b"[]", "application/json", "body"),
        (b"{}", "text/plain", None),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(engine, content, media_type, param):
    response = engine.client.post(TEXT, content=content, headers={"content-type": media_type})
    assert_refused(response, 400, "Bad Request", param)


def test_a_body_that_is_not_utf8_is_refused(engine):
    content = b'{"model": "tiny", "prompt": "\xff"}'
    response = engine.client.post(TEXT, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()) == (400, {"detail": "There was an error parsing the body"})
