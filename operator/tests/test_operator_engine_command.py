"""The engine's command line: what Sheaf owns is there, what the user says comes last, defaults give way."""

import json

from operator_world import make_model
from sheaf_operator.planning import EngineEndpoints, engine_command
from sheaf_operator.planning.engine import lora_capacity

AT = EngineEndpoints(9000, kv_events="ipc:///run/kv", kv_replay="ipc:///run/replay")


def flags(argv: tuple[str, ...]) -> dict[str, str]:
    return {flag: value for flag, value in zip(argv, [*argv[1:], ""], strict=True) if flag.startswith("--")}


def test_vllm_with_adapters_on_cpu():
    model = make_model(engine={"name": "vllm", "args": ["--max-model-len=2048"]}, lora={"slots": 4, "maxRank": 8})
    command = engine_command("m", model.spec, "/models/m", AT, python="py", cpu=True)
    assert command.argv[:3] == ("py", "-m", "vllm.entrypoints.openai.api_server")
    given = flags(command.argv)
    assert given["--model"] == "/models/m"
    assert given["--served-model-name"] == "m"
    assert (given["--host"], given["--port"]) == ("127.0.0.1", "9000")
    assert given["--block-size"] == "32"
    assert (given["--max-loras"], given["--max-lora-rank"], given["--max-cpu-loras"]) == ("4", "8", "16")
    assert json.loads(given["--kv-events-config"]) == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "ipc:///run/kv",
        "replay_endpoint": "ipc:///run/replay",
        "topic": "kv",
    }
    assert command.argv[-1] == "--max-model-len=2048"
    assert command.env["HF_HUB_OFFLINE"] == "1"
    assert command.env["OMP_NUM_THREADS"] == "1"


def test_on_an_accelerator_nothing_is_set_for_the_cpu():
    command = engine_command("m", make_model().spec, "/m", EngineEndpoints(1), cpu=False)
    assert "--block-size" not in command.argv
    assert "--kv-events-config" not in command.argv
    assert "OMP_NUM_THREADS" not in command.env


def test_replay_may_be_left_out():
    command = engine_command("m", make_model().spec, "/m", EngineEndpoints(1, kv_events="tcp://*:5557"), cpu=False)
    assert "replay_endpoint" not in json.loads(flags(command.argv)["--kv-events-config"])


def test_the_emulator_takes_the_same_flags():
    emulated = engine_command("m", make_model().spec, "/m", AT, cpu=True).argv
    real = engine_command("m", make_model(engine={"name": "vllm"}).spec, "/m", AT, cpu=True).argv
    assert emulated[2] == "sheaf_engine.emulator"
    assert emulated[3:] == real[3:]


def test_embedding_models_take_no_adapters():
    spec = make_model(task="Embed").spec
    command = engine_command("m", spec, "/m", AT, cpu=True)
    assert flags(command.argv)["--runner"] == "pooling"
    assert "--enable-lora" not in command.argv
    assert lora_capacity(spec) == 0


def test_no_slots_turn_lora_off():
    assert "--enable-lora" not in engine_command("m", make_model(lora={"slots": 0}).spec, "/m", AT, cpu=True).argv


def test_host_memory_holds_at_least_what_a_batch_does():
    spec = make_model(lora={"slots": 4, "maxAdapters": 6}).spec
    assert flags(engine_command("m", spec, "/m", AT, cpu=True).argv)["--max-cpu-loras"] == "6"


def test_the_users_block_size_and_environment_win_but_not_over_what_sheaf_needs():
    env = [
        {"name": "OMP_NUM_THREADS", "value": "8"},
        {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "False"},
    ]
    spec = make_model(engine={"name": "vllm", "args": ["--block_size=64"], "env": env}).spec
    command = engine_command("m", spec, "/m", AT, cpu=True)
    assert "--block-size" not in command.argv
    assert command.env["OMP_NUM_THREADS"] == "8"
    assert command.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
