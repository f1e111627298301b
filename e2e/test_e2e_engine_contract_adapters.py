"""The emulator and real vLLM answer alike: adapters are loaded, served and unloaded while the engine runs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from contract_checks import FRESH, LOAD, TEXT, UNLOAD, assert_refused, token_ids
from contract_engines import MAX_LORAS
from tiny_models import tiny_adapter

pytestmark = pytest.mark.timeout(600)


def test_an_adapter_answers_under_its_name_and_in_its_own_way(engine, adapter):
    body = engine.chat(model=adapter, return_token_ids=True, max_tokens=8)
    assert body["model"] == adapter
    assert token_ids(body) != token_ids(engine.chat(return_token_ids=True, max_tokens=8))
    assert {chunk["model"] for chunk in engine.stream_chat(model=adapter)} == {adapter}
    assert engine.post("/tokenize", {"model": adapter, "prompt": "x"}).status_code == 200


def test_a_loaded_adapter_is_listed_under_its_base_model(engine, adapter):
    (card,) = [card for card in engine.client.get("/v1/models").json()["data"] if card["id"] == adapter]
    assert (card["parent"], card["root"], card["max_model_len"]) == ("tiny", str(tiny_adapter(1)), None)


def test_more_adapters_than_slots_are_all_served(engine):
    names = [f"many-{next(FRESH)}" for _ in range(MAX_LORAS + 1)]
    for name in names:
        engine.post(LOAD, {"lora_name": name, "lora_path": str(tiny_adapter(2))}).raise_for_status()
    with ThreadPoolExecutor(len(names)) as pool:
        bodies = list(pool.map(lambda name: engine.chat(model=name, max_tokens=16), names))
    assert [body["model"] for body in bodies] == names
    for name in names:
        engine.post(UNLOAD, {"lora_name": name}).raise_for_status()


def test_loading_and_unloading_say_what_happened(engine):
    name = f"spoken-{next(FRESH)}"
    loaded = engine.post(LOAD, {"lora_name": name, "lora_path": str(tiny_adapter(1))})
    assert (loaded.status_code, loaded.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    again = engine.post(LOAD, {"lora_name": name, "lora_path": str(tiny_adapter(2)), "load_inplace": True})
    assert again.status_code == 200
    removed = engine.post(UNLOAD, {"lora_name": name})
    assert (removed.status_code, removed.text) == (200, f"Success: LoRA adapter '{name}' removed successfully.")
    assert_refused(engine.post(UNLOAD, {"lora_name": name}), 404, "NotFoundError", None)
    assert_refused(engine.post(TEXT, {"model": name, "prompt": "x"}), 404, "NotFoundError", "model")


def test_an_adapter_that_is_loaded_is_not_loaded_again(engine, adapter):
    response = engine.post(LOAD, {"lora_name": adapter, "lora_path": str(tiny_adapter(1))})
    assert_refused(response, 400, "InvalidUserInput", None)
    assert "has already been loaded" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        (LOAD, {"lora_name": "x", "lora_path": "/nowhere/at/all"}, 404, "NotFoundError", None),
        (LOAD, {"lora_name": "x", "lora_path": "owner/name"}, 404, "NotFoundError", None),
        (LOAD, {"lora_name": "x"}, 400, "Bad Request", "body.lora_path"),
        (LOAD, {"lora_name": "x", "lora_path": ""}, 400, "InvalidUserInput", None),
        (LOAD, {"lora_name": "", "lora_path": "/x"}, 400, "InvalidUserInput", None),
        (LOAD, {"lora_name": "tiny", "lora_path": "/x"}, 400, "InvalidUserInput", None),
        (LOAD, {"lora_name": 3, "lora_path": "/x"}, 400, "Bad Request", "body.lora_name"),
        (UNLOAD, {}, 400, "Bad Request", "body.lora_name"),
        (UNLOAD, {"lora_name": ""}, 400, "InvalidUserInput", None),
        (UNLOAD, {"lora_name": "never"}, 404, "NotFoundError", None),
    ],
)
def test_a_bad_adapter_request_is_refused(engine, path, body, status, kind, param):
    assert_refused(engine.post(path, body), status, kind, param)


def test_a_folder_without_an_adapter_is_not_found(engine, tmp_path: Path):
    assert_refused(engine.post(LOAD, {"lora_name": "x", "lora_path": str(tmp_path)}), 404, "NotFoundError", None)


def test_an_adapter_of_too_high_a_rank_is_refused(engine):
    response = engine.post(LOAD, {"lora_name": "x", "lora_path": str(tiny_adapter(3, rank=64))})
    assert "LoRA rank 64 is greater than max_lora_rank 16" in response.json()["error"]["message"]
    assert_refused(response, 500, "InternalServerError", None)
