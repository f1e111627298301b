"""The engine's command line: defaults give way to what the user says, and that to what Sheaf owns."""

import json
from argparse import ArgumentParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
    assert "--max-model-len=2048" in command.argv
    assert command.env["HF_HUB_OFFLINE"] == "1"
    assert command.env["OMP_NUM_THREADS"] == "1"


def test_on_an_accelerator_nothing_is_set_for_the_cpu():
    command = engine_command("m", make_model().spec, "/m", EngineEndpoints(1), cpu=False)
    assert "--block-size" not in command.argv
    assert "--kv-events-config" not in command.argv
    assert "OMP_NUM_THREADS" not in command.env


@pytest.mark.parametrize(
    ("count", "args", "expected"),
    [
        (1, [], []),
        (4, [], ["--tensor-parallel-size=4"]),
        (4, ["--tensor-parallel-size=2"], []),
        (4, ["-tp=2"], []),
        (4, ["--pipeline_parallel_size=4"], []),
        (4, ["--data-parallel-size=4"], []),
        (8, ["--prefill-context-parallel-size=8"], []),
        (8, ["--prefill_context_parallel_size", "8"], []),
        (8, ["-pcp", "8"], []),
        (8, ["--enable-prefix-caching"], ["--tensor-parallel-size=8"]),
    ],
)
def test_several_accelerators_are_one_group_unless_the_user_divides_them(count, args, expected):
    spec = make_model(accelerators=[{"type": "h100", "count": count}], engine={"name": "vllm", "args": args}).spec
    given = engine_command("m", spec, "/m", AT, cpu=False).argv
    assert [word for word in given if word.startswith("--tensor-parallel-size") and word not in args] == expected
    assert not [word for word in engine_command("m", spec, "/m", AT, cpu=True).argv if word in expected]


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
    assert list(command.argv).index("--block_size=64") > list(command.argv).index("--block-size")
    assert command.env["OMP_NUM_THREADS"] == "8"
    assert command.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


def as_an_engine_reads_it(argv: tuple[str, ...]) -> dict[str, object]:
    """argparse as vLLM uses it: abbreviations are taken, and the last value counts."""
    parser = ArgumentParser()
    for flag in ("--model", "--served-model-name", "--host", "--port", "--kv-events-config", "--runner"):
        parser.add_argument(flag)
    for flag in ("--max-loras", "--max-lora-rank", "--max-cpu-loras", "--block-size"):
        parser.add_argument(flag, type=int)
    parser.add_argument("--enable-prompt-tokens-details", action="store_true")
    parser.add_argument("--enable-lora", action="store_true")
    return vars(parser.parse_args(list(argv[3:])))


OWNED_ABBREVIATED = ["--mod=x", "--serv=x", "--hos=0.0.0.0", "--po=1", "--kv={}", "--max-loras=1", "--max-lora-r=8",
                     "--max-c=1", "--kv-events=x"]  # fmt: skip


@given(st.lists(st.sampled_from(OWNED_ABBREVIATED), max_size=4))
def test_no_abbreviated_flag_of_the_user_changes_what_sheaf_owns(args: list[str]):
    plain = engine_command("m", make_model().spec, "/m", AT, cpu=True)
    meddled = engine_command("m", make_model(engine={"name": "vllm", "args": args}).spec, "/m", AT, cpu=True)
    assert as_an_engine_reads_it(meddled.argv) == as_an_engine_reads_it(plain.argv)


def test_the_users_abbreviated_block_size_wins_over_the_default():
    spec = make_model(engine={"name": "vllm", "args": ["--block-si=64"]}).spec
    assert as_an_engine_reads_it(engine_command("m", spec, "/m", AT, cpu=True).argv)["block_size"] == 64
