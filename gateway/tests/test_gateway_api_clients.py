"""The official clients work against the gateway as against the services they were written for."""

import asyncio

import anthropic
import openai
import pytest
from gateway_fixtures import adapter, chat, make_world, model  # noqa: F401

MESSAGES = chat()["messages"]


@pytest.fixture
async def world(make_world):  # noqa: F811
    made = await make_world(
        pods={"base": 1, "embed": 1},
        models=[model("base"), model("embed", task="Embed"), model("asleep", replicas=0)],
        adapters=[adapter("pirate", "base")],
    )
    made.engines[0].loaded.add("pirate")
    made.agents[0].changed()
    await made.until(lambda: made.pod("base-0").resident)
    return made


@pytest.fixture
async def client(world):
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_chat_completions_answer(client):
    answer = await client.chat.completions.create(model="base", messages=MESSAGES)
    assert answer.choices[0].message.content == "base on base-0"
    assert answer.usage.total_tokens == 10


async def test_an_adapter_is_a_model_of_its_own(client):
    answer = await client.chat.completions.create(model="pirate", messages=MESSAGES)
    assert answer.model == "pirate"
    assert answer.choices[0].message.content == "pirate on base-0"


async def test_chat_streams_in_order_with_usage(client):
    options = {"include_usage": True}
    stream = await client.chat.completions.create(model="base", messages=MESSAGES, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content for c in chunks if c.choices) == "base-0 t0 base-0 t1 base-0 t2 "
    assert chunks[-1].usage.completion_tokens == 3


async def test_completions_answer_and_stream(client):
    answer = await client.completions.create(model="base", prompt="once")
    assert answer.choices[0].text == "base on base-0"
    stream = await client.completions.create(model="base", prompt="once", stream=True)
    assert [chunk.choices[0].text async for chunk in stream] == ["base-0 t0 ", "base-0 t1 ", "base-0 t2 "]


async def test_embeddings_answer(client):
    answer = await client.embeddings.create(model="embed", input="text", encoding_format="float")
    assert answer.data[0].embedding == [0.25, -0.5]


async def test_responses_answer(client):
    answer = await client.responses.create(model="base", input="text")
    assert answer.output_text == "base on base-0"


async def test_models_lists_everything_declared_also_at_zero_replicas(client):
    cards = {card.id: card async for card in client.models.list()}
    assert sorted(cards) == ["asleep", "base", "embed", "pirate"]
    assert cards["pirate"].parent == "base"
    assert cards["base"].parent is None
    assert (await client.models.retrieve("pirate")).id == "pirate"


async def test_an_unknown_model_is_404_with_the_nearest_name(client):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="pirat", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "`pirate`" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("pirat")


async def test_a_model_at_zero_replicas_is_503_with_retry_after(client):
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="asleep", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert caught.value.code == "model_at_zero"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_the_wrong_task_is_400(client):
    with pytest.raises(openai.BadRequestError, match="task: Embed"):
        await client.embeddings.create(model="base", input="text")


async def test_the_sync_client_works_from_a_thread(world):
    def talk():
        with openai.OpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0) as sync:
            plain = sync.chat.completions.create(model="base", messages=MESSAGES)
            stream = sync.chat.completions.create(model="base", messages=MESSAGES, stream=True)
            return plain.choices[0].message.content, len(list(stream))

    assert await asyncio.to_thread(talk) == ("base on base-0", 3)


async def test_the_anthropic_client_gets_messages_and_errors_in_its_own_shape(world):
    async with anthropic.AsyncAnthropic(base_url=world.url, api_key="none", max_retries=0) as claude:
        answer = await claude.messages.create(model="base", max_tokens=8, messages=MESSAGES)
        assert answer.content[0].text == "base on base-0"
        with pytest.raises(anthropic.NotFoundError) as caught:
            await claude.messages.create(model="bas", max_tokens=8, messages=MESSAGES)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "not_found_error"
