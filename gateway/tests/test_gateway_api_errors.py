"""Bad requests get the documented answer, in the caller's shape, and never reach an engine."""

import json

import pytest
from gateway_fixtures import adapter, ask, chat, make_world, model  # noqa: F401

CHAT = "/v1/chat/completions"


@pytest.fixture
async def world(make_world):  # noqa: F811
    return await make_world(
        pods={"base": 1}, models=[model("base")], adapters=[adapter("pirate", "base")], limits={"maxBody": "64Ki"}
    )


DEEP = b"[" * 100 + b"]" * 100
BODIES = {
    "empty": (b"", 400, "empty_body"),
    "not json": (b"model=base", 400, "invalid_json"),
    "truncated": (b'{"model": "base", "messages": [', 400, "invalid_json"),
    "trailing": (b'{"model": "base"} {}', 400, "invalid_json"),
    "array": (b'["base"]', 400, "invalid_type"),
    "string": (b'"base"', 400, "invalid_type"),
    "null": (b"null", 400, "invalid_type"),
    "no model": (b'{"messages": []}', 400, "missing_required_parameter"),
    "model null": (b'{"model": null}', 400, "invalid_type"),
    "model number": (b'{"model": 7}', 400, "invalid_type"),
    "messages object": (b'{"model": "base", "messages": {}}', 400, "invalid_type"),
    "message string": (b'{"model": "base", "messages": ["hi"]}', 400, "invalid_type"),
    "role missing": (b'{"model": "base", "messages": [{"content": "x"}]}', 400, "missing_required_parameter"),
    "stream text": (b'{"model": "base", "stream": "true"}', 400, "invalid_type"),
    "max_tokens text": (b'{"model": "base", "max_tokens": "5"}', 400, "invalid_type"),
    "max_tokens negative": (b'{"model": "base", "max_tokens": -1}', 400, "invalid_type"),
    "max_tokens huge": (b'{"model": "base", "max_tokens": 1' + b"0" * 30 + b"}", 400, "invalid_type"),
    "n zero": (b'{"model": "base", "n": 0}', 400, "invalid_type"),
    "nan": (b'{"model": "base", "temperature": NaN}', 400, "invalid_json"),
    "infinity": (b'{"model": "base", "temperature": -Infinity}', 400, "invalid_json"),
    "comment": (b'{"model": "base" /* hi */}', 400, "invalid_json"),
    "single quotes": (b"{'model': 'base'}", 400, "invalid_json"),
    "control byte": (b'{"model": "base", "user": "a\nb"}', 400, "invalid_json"),
    "bom": (b'\xef\xbb\xbf{"model": "base"}', 400, "invalid_json"),
    "utf-16": ('{"model": "base"}'.encode("utf-16"), 400, "invalid_utf8"),
    "bad utf-8 in a read field": (b'{"model": "\xff"}', 400, "invalid_utf8"),
    "bad utf-8 in another field": (b'{"model": "base", "user": "\xc3("}', 400, "invalid_utf8"),
    "overlong utf-8": (b'{"model": "base", "user": "\xc0\xaf"}', 400, "invalid_utf8"),
    "utf-8 surrogate": (b'{"model": "base", "user": "\xed\xa0\x80"}', 400, "invalid_utf8"),
    "lone surrogate": (b'{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "invalid_json"),
    "deep in a read field": (b'{"model": "base", "tools": ' + DEEP + b"}", 400, "body_too_deep"),
    "deep in another field": (b'{"model": "base", "metadata": ' + DEEP + b"}", 400, "body_too_deep"),
    "deeper than the stack": (b'{"model": "base", "x": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400, "body_too_deep"),
    "unknown model": (b'{"model": "nobody"}', 404, "model_not_found"),
    "model of another type of name": (b'{"model": "../../etc/passwd\\u0000"}', 404, "model_not_found"),
    "long model": (b'{"model": "' + b"a" * 9000 + b'"}', 404, "model_not_found"),
    "too large": (b'{"model": "base", "user": "' + b"a" * 70_000 + b'"}', 413, None),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_bad_body_is_answered_and_goes_no_further(world, ask, name):  # noqa: F811
    body, status, code = BODIES[name]
    got, headers, answer = await ask(world, "POST", CHAT, body)
    error = json.loads(answer)["error"]
    assert (got, headers["content-type"]) == (status, "application/json")
    assert code is None or error["code"] == code
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert world.engines[0].seen == []


async def test_where_a_body_is_wrong_is_named(world, ask):  # noqa: F811
    body = b'{"model": "base", "messages": [{"role": "user"}, {"role": 5}]}'
    _, _, answer = await ask(world, "POST", CHAT, body)
    error = json.loads(answer)["error"]
    assert error["param"] == "messages[1].role"
    assert "Expected `str`, got `int`" in error["message"]


async def test_many_brackets_in_text_are_not_depth(world, ask):  # noqa: F811
    status, _, _ = await ask(world, "POST", CHAT, chat(text='[{"' * 500 + "\\"))
    assert status == 200


async def test_of_a_repeated_key_the_last_counts_as_in_the_engines(world, ask):  # noqa: F811
    body = b'{"model": "nobody", "mod\\u0065l": "base", "messages": []}'
    status, _, _ = await ask(world, "POST", CHAT, body)
    assert status == 200
    assert world.engines[0].seen[0].json["model"] == "base"


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/v1/chat/completions", "GET", 405, "method_not_allowed"),
        ("/v1/messages", "DELETE", 405, "method_not_allowed"),
        ("/v1/models", "POST", 405, "method_not_allowed"),
        ("/v1/load_lora_adapter", "POST", 404, "not_found"),
        ("/v1/unload_lora_adapter", "POST", 404, "not_found"),
        ("/reset_prefix_cache", "POST", 404, "not_found"),
        ("/v1/chat/completions/render", "POST", 404, "not_found"),
        ("/v1/chat/../load_lora_adapter", "POST", 404, "not_found"),
        ("/v1/chat/completions/", "POST", 404, "not_found"),
        ("//v1/chat/completions", "POST", 404, "not_found"),
        ("/V1/CHAT/COMPLETIONS", "POST", 404, "not_found"),
        ("/v1/chat%2fcompletions", "POST", 404, "not_found"),
        ("/", "GET", 404, "not_found"),
    ],
)
async def test_only_the_listed_endpoints_reach_an_engine(world, ask, path, method, status, code):  # noqa: F811
    got, headers, answer = await ask(world, method, path, chat() if method == "POST" else b"")
    document = json.loads(answer)
    assert got == status
    assert path == "/v1/messages" or document["error"]["code"] == code
    assert status != 405 or headers["allow"]
    assert world.engines[0].seen == []


@pytest.mark.parametrize(
    ("header", "value"),
    [("content-type", "text/plain"), ("content-type", "multipart/form-data; boundary=x"), ("content-encoding", "gzip")],
)
async def test_other_media_are_415(world, ask, header, value):  # noqa: F811
    status, _, answer = await ask(world, "POST", CHAT, chat(), {header: value})
    assert status == 415
    assert "error" in json.loads(answer)
    assert world.engines[0].seen == []


async def test_an_engines_own_4xx_passes_unchanged(world, ask):  # noqa: F811
    told = b'{"error":{"message":"max_tokens is too large","type":"BadRequestError","param":null,"code":400}}'

    async def refuse(_seen, writer):
        writer.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(told)
            + told
        )

    world.engines[0].script = refuse
    status, headers, answer = await ask(world, "POST", CHAT, chat())
    assert (status, answer) == (400, told)
    assert headers["x-sheaf-pod"] == "base-0"
    assert len(world.engines[0].seen) == 1


async def test_anthropic_callers_get_anthropic_errors(world, ask):  # noqa: F811
    status, _, answer = await ask(world, "POST", "/v1/messages", b"{")
    document = json.loads(answer)
    assert status == 400
    assert document["type"] == "error"
    assert document["error"]["type"] == "invalid_request_error"


async def test_a_sane_request_id_is_kept_and_another_replaced(world, ask):  # noqa: F811
    _, headers, _ = await ask(world, "POST", CHAT, chat(), {"x-request-id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    assert world.engines[0].seen[0].headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 200, "<script>"):
        _, headers, _ = await ask(world, "POST", CHAT, chat(), {"x-request-id": bad})
        assert headers["x-request-id"].startswith("req-")


async def test_the_engine_sees_the_body_as_sent_and_no_secret_of_the_caller(world, ask):  # noqa: F811
    body = b'{ "messages":[{"role":"user","content":"h\\u00e9"}],\r\n"model":"base","x":1e2 }'
    await ask(world, "POST", CHAT, body, {"authorization": "Bearer s3cret", "cookie": "a=b", "x-api-key": "k"})
    seen = world.engines[0].seen[0]
    assert seen.body == body
    assert not {"authorization", "cookie", "x-api-key"} & set(seen.headers)


async def test_decision_headers_are_short_text(world, ask):  # noqa: F811
    _, headers, _ = await ask(world, "POST", CHAT, chat())
    assert headers["x-sheaf-pod"] == "base-0"
    assert "prefill" in headers["x-sheaf-decision"]
    assert len(headers["x-sheaf-decision"]) < 200
