"""`sheaf profile` against an engine whose timing is known: what it writes is that timing, straight and through a gateway,
and the emulator and the simulator take the file. Two of the four adapters are loaded when it begins: the last ones."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulator_fleet import EmulatorFleet, emulator_fleet
from sheaf_engine.emulator.options import parse
from sheaf_engine.timing import PRESETS, TimingProfile

pytestmark = pytest.mark.timeout(240)

TRUTH = PRESETS["h100-8b"].with_changes(
    step_overhead_s=0.010,
    prefill_token_s=2e-4,
    decode_sequence_s=1.5e-3,
    kv_token_s=1e-6,
    lora_adapter_s=6e-3,
    lora_rank_token_s=0.0,
    adapter_load_s=0.3,
    adapter_load_byte_s=0.0,
    adapter_activate_byte_s=0.0,
    max_loras=2,
    max_cpu_loras=2,
)
ADAPTERS = [f"{name}=/nowhere/{name}" for name in ("ada", "bob", "cyd", "dan")]
NEAR = 0.25
MANIFEST = """apiVersion: sheaf.dev/v1alpha1
kind: Model
metadata: {name: chat}
spec: {source: "hf://org/model", replicas: 2}
"""


def sheaf(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sheaf.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorFleet]:
    folder = tmp_path_factory.mktemp("profile")
    (folder / "truth.json").write_text(TRUTH.to_json())
    arguments = ["--profile", str(folder / "truth.json"), "--enable-lora", "--trust-adapter-paths"]
    with emulator_fleet(folder, 1, *arguments, "--lora-modules", *ADAPTERS) as found:
        yield found


def step(profile: TimingProfile, sequences: int, context: int) -> float:
    return profile.step_overhead_s + sequences * profile.decode_sequence_s + sequences * context * profile.kv_token_s


def prefill(profile: TimingProfile, tokens: int) -> float:
    return tokens * profile.prefill_token_s + tokens * tokens / 2 * profile.prefill_attention_s


def assert_near(found: TimingProfile) -> None:
    for sequences, context in ((1, 100), (4, 500), (8, 1000)):
        assert step(found, sequences, context) == pytest.approx(step(TRUTH, sequences, context), rel=NEAR)
    for tokens in (256, 1024, 1536):
        assert prefill(found, tokens) == pytest.approx(prefill(TRUTH, tokens), rel=NEAR)


def test_the_timing_of_an_engine_is_found_and_the_file_is_taken(fleet: EmulatorFleet, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    engine = f"http://127.0.0.1:{fleet.pods[0].port}"
    said = sheaf("profile", engine, "--base", "h100-8b", "--seconds", "45", "--longest", "1536", "--out", str(out))
    assert said.returncode == 0, said.stderr
    found = TimingProfile.from_json(out.read_text())
    assert_near(found)
    assert found.step_overhead_s == pytest.approx(TRUTH.step_overhead_s, rel=NEAR)
    assert found.decode_sequence_s == pytest.approx(TRUTH.decode_sequence_s, rel=NEAR)
    assert (found.num_blocks, found.max_model_len) == (TRUTH.num_blocks, TRUTH.max_model_len)
    assert parse(["--model", "none", "--profile", str(out)], {}).profile == found
    (tmp_path / "chat.yaml").write_text(MANIFEST)
    said = sheaf("simulate", "-f", str(tmp_path / "chat.yaml"), "--limit", "50", "--profile", str(out))
    assert said.returncode == 0, said.stderr


def test_through_a_gateway_the_same_timing_is_found(fleet: EmulatorFleet, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    said = sheaf("profile", fleet.url, "--base", "h100-8b", "--seconds", "45", "--longest", "1536", "--out", str(out))
    assert said.returncode == 0, said.stderr
    assert_near(TimingProfile.from_json(out.read_text()))


def test_what_adapters_cost_is_found(fleet: EmulatorFleet, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    engine = f"http://127.0.0.1:{fleet.pods[0].port}"
    said = sheaf(
        "profile",
        engine,
        "--adapter",
        "ada",
        "--adapter",
        "bob",
        "--seconds",
        "45",
        "--longest",
        "1536",
        "--out",
        str(out),
    )
    assert said.returncode == 0, said.stderr
    found = TimingProfile.from_json(out.read_text())
    assert_near(found)
    assert found.lora_adapter_s == pytest.approx(TRUTH.lora_adapter_s, rel=NEAR)
    assert found.adapter_load_s == pytest.approx(TRUTH.adapter_load_s, rel=NEAR)


def test_too_little_time_is_said_and_nothing_is_written(fleet: EmulatorFleet, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    said = sheaf("profile", fleet.url, "--requests", "12", "--out", str(out))
    assert said.returncode == 1
    assert "too few measurements" in said.stderr
    assert said.stderr.count("\n") == 1
    assert not out.exists()
