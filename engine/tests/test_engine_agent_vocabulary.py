"""What the agent tells of a model's tokens and template: exactly what tokenizer and Jinja do, or nothing."""

import json
from base64 import b64decode
from pathlib import Path

import pytest
from engine_agent_helpers import FakeEngine, agent_running, engine_running
from jinja2.sandbox import ImmutableSandboxedEnvironment
from sheaf_engine.agent.template import joined, learn
from sheaf_engine.agent.vocabulary import UnknownVocabularyError, read_vocabulary, token_bytes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
TALK = [("user", "Größe?"), ("assistant", " 7 "), ("user", "東京\n")]


def jinja(template: str, turns: list[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True, bos_token="<s>")


@pytest.mark.parametrize("template", [CHATML, LLAMA3, ALTERNATING])
@pytest.mark.parametrize("turns", [TALK, TALK[:1]])
def test_a_learned_template_renders_as_jinja_does(template, turns):
    form = learn(template, {"bos_token": "<s>"})
    assert form.problem == ""
    assert joined(form, turns) == jinja(template, turns)


def test_orders_that_a_template_refuses_are_not_covered():
    form = learn(ALTERNATING, {"bos_token": "<s>"})
    assert joined(form, [("system", "x"), ("user", "y")]) is None
    assert joined(form, [("user", "x"), ("user", "y")]) is None


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("", "no chat template"),
        ("{{ strftime_now('%d') }}{{ messages[0].content }}", "date"),
        ("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}", "more than their roles"),
        ("{{ messages[0].content }}", "leaves contents out"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "more than"),
        ("{% for m in messages %}[{{ m.content | length > 9 }}{{ m.content }}{% endfor %}", "more than"),
        ("{{ raise_exception('never') }}", "refuses an ordinary conversation: never"),
        ("{{ messages.append(1) }}", "cannot be rendered"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered"),
        ("{% for %}", "cannot be rendered"),
        ("x" * 300_000, "larger than"),
    ],
)
def test_templates_that_do_more_are_not_learned_and_the_reason_is_told(template, why):
    form = learn(template, {})
    assert why in form.problem
    assert form.begins == {}


def model(folder: Path, **changes: object) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<|im_start|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the quick brown fox and the lazy dog"] * 3, trainer)
    document = json.loads(tokenizer.to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(document))
    config = {"chat_template": CHATML, "bos_token": {"content": "<s>"}, "eos_token": "<e>", "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def unpacked(data: bytes) -> list[bytes]:
    found, place = [], 0
    while place < len(data):
        end = place + 2 + int.from_bytes(data[place : place + 2], "big")
        found.append(data[place + 2 : end])
        place = end
    return found


@pytest.mark.parametrize("text", ["the quick fox", "Größe 東京 🙂\n\t", "<|im_start|>user\n  two"])
def test_the_bytes_of_a_texts_tokens_are_the_text(tmp_path, text):
    words = unpacked(b64decode(read_vocabulary(model(tmp_path)).tokens))
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    assert b"".join(words[token] for token in ids) == text.encode()


def test_the_digest_names_content(tmp_path):
    one = read_vocabulary(model(tmp_path))
    assert read_vocabulary(model(tmp_path)).digest == one.digest
    (tmp_path / "chat_template.jinja").write_text(LLAMA3)
    other = read_vocabulary(tmp_path)
    assert other.digest != one.digest
    assert other.rendering.strip


def test_what_a_tokenizer_puts_before_texts_is_told(tmp_path):
    processor = {"type": "Sequence", "processors": [
        {"type": "ByteLevel"},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
    ]}  # fmt: skip
    assert read_vocabulary(model(tmp_path, post_processor=processor)).rendering.text == "<s>"


def test_a_list_of_templates_names_its_default(tmp_path):
    model(tmp_path)
    listed = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    assert read_vocabulary(tmp_path).rendering.begins["system"] == "<|im_start|>system\n"


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pre_tokenizer": {"type": "Metaspace"}}, "does not work on bytes"),
        ({"pre_tokenizer": None}, "does not work on bytes"),
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "puts a space"),
        ({"normalizer": {"type": "Lowercase"}}, "changes texts"),
        ({"model": {"type": "BPE", "vocab": {"a": 2**30}}}, "beyond every bound"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}}}, "beyond every bound"),
        ({"model": {"type": "BPE", "vocab": {"a": "b"}}}, "not sound"),
        ({"model": 7}, "not sound"),
    ],
)
def test_vocabularies_that_cannot_be_told_say_why(tmp_path, changes, why):
    with pytest.raises(UnknownVocabularyError, match=why):
        read_vocabulary(model(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, None])
def test_files_that_cannot_be_read_say_why(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UnknownVocabularyError, match=r"tokenizer\.json"):
        read_vocabulary(tmp_path)


def test_tokens_that_are_no_spelling_of_bytes_stand_for_nothing():
    plain = {"model": {"type": "BPE", "vocab": {"a": 0, "東": 1, "Ġb": 3}}, "pre_tokenizer": BYTE_LEVEL}
    assert token_bytes(plain | {"normalizer": {"type": "NFC"}}) == [b"a", b"", b"", b" b"]


async def test_the_agent_serves_it_under_the_digest_that_its_state_names(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    told = read_vocabulary(model(folder))
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine, modelDir=str(folder)) as agent:
        state = await agent.until(lambda state: state["vocabulary"])
        answer = await agent.http.get("/v1/vocabulary")
    assert state["vocabulary"] == told.digest == answer.json()["digest"]
    assert answer.json() == told.model_dump(by_alias=True, mode="json")


async def test_an_agent_without_one_says_so(tmp_path):
    async with engine_running(FakeEngine()) as engine, agent_running(tmp_path, engine) as agent:
        answer = await agent.http.get("/v1/vocabulary")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_vocabulary")
