"""The plug-in: what it decides, what it says, and that it leaves an engine alone when anything is wrong."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from sheaf_engine import plugin
from sheaf_engine.plugin.decision import CPU_WRAPPER, CUDA_WRAPPER, Decision, Facts, decide, supported
from sheaf_engine.plugin.info import METRIC, OUTCOME, fall_back

GOOD = {"switch": "auto", "version": "0.32.0", "platform": "cpu", "compiler": True, "triton": True}


def facts(**changed: object) -> Facts:
    return Facts(**{**GOOD, **changed})  # type: ignore[arg-type]


def test_sheafs_kernels_run_on_cpu_without_being_asked() -> None:
    assert decide(facts()) == Decision("sheaf", CPU_WRAPPER, "CPU")


@given(
    st.sampled_from(["off", "OFF", " off ", "0", "false", "no", "stock"]),
    st.sampled_from(["cpu", "cuda", "other"]),
    st.text(max_size=8),
    st.booleans(),
)
def test_the_switch_turns_them_off_everywhere(switch: str, platform: str, version: str, compiler: bool) -> None:
    decision = decide(facts(switch=switch, platform=platform, version=version, compiler=compiler))
    assert decision == Decision("stock", None, "switched off by SHEAF_KERNELS")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"version": "0.31.2"}, "not among the supported versions"),
        ({"version": "1.32.0"}, "not among the supported versions"),
        ({"version": "unknown"}, "not among the supported versions"),
        ({"compiler": False}, "numba is not installed"),
        ({"platform": "other"}, "neither a CPU nor a CUDA"),
        ({"platform": "cuda"}, "not yet measured"),
        ({"platform": "cuda", "switch": "on", "triton": False}, "Triton is not installed"),
        ({"switch": "maybe"}, "none of auto, on, off"),
    ],
)
def test_stock_kernels_stay_where_sheafs_are_not_known_to_be_good(changed: dict[str, object], why: str) -> None:
    decision = decide(facts(**changed))
    assert (decision.kernels, decision.wrapper) == ("stock", None)
    assert why in decision.reason


def test_on_cuda_they_run_when_asked_for() -> None:
    assert decide(facts(platform="cuda", switch="on")) == Decision("sheaf", CUDA_WRAPPER, "CUDA")


def test_on_cuda_they_run_by_themselves_once_the_tile_table_was_tuned() -> None:
    assert decide(facts(platform="cuda", cuda_measured=True)) == Decision("sheaf", CUDA_WRAPPER, "CUDA")


@pytest.mark.parametrize("version", ["0.32.0", "0.32.7", "0.32.0+cpu", "0.32.1rc1", "0.32"])
def test_builds_of_a_supported_version_count(version: str) -> None:
    assert supported(version)


def shown() -> dict[str, str]:
    return {
        sample.labels["kernels"]: sample.labels["reason"]
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == METRIC
    }


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A process in which the plug-in was not loaded yet; the list takes what it selects."""
    selected: list[str] = []
    monkeypatch.setattr(plugin, "_said", [])
    monkeypatch.setenv(OUTCOME, "")
    monkeypatch.delenv(OUTCOME)
    monkeypatch.setattr(plugin, "_select", selected.append)
    return selected


def test_one_line_and_the_metric_say_which_kernels_run(
    fresh: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin, "_facts", facts)
    with caplog.at_level(logging.INFO, "vllm.sheaf"):
        plugin.register()
        plugin.register()
    assert caplog.messages == ["Sheaf kernels: sheaf (CPU)"]
    assert set(fresh) == {CPU_WRAPPER}
    assert shown() == {"sheaf": "CPU"}


def test_a_fallback_selects_nothing_and_says_why(
    fresh: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin, "_facts", lambda: facts(version="9.9.9"))
    with caplog.at_level(logging.INFO, "vllm.sheaf"):
        plugin.register()
    assert caplog.messages == ["Sheaf kernels: stock (vLLM 9.9.9 is not among the supported versions 0.32)"]
    assert fresh == []
    assert list(shown()) == ["stock"]


def test_a_plug_in_that_fails_lets_the_engine_start(
    fresh: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Facts:
        raise ImportError("no such platform")

    monkeypatch.setattr(plugin, "_facts", broken)
    with caplog.at_level(logging.INFO, "vllm.sheaf"):
        plugin.register()
    assert caplog.messages == ["Sheaf kernels: stock (the plug-in failed: ImportError('no such platform'))"]
    assert fresh == []


IN_A_CHILD = "from sheaf_engine.plugin.info import fall_back; fall_back('they do not compile')"


def test_a_computing_process_that_falls_back_is_believed(fresh: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_facts", facts)
    plugin.register()
    assert shown() == {"sheaf": "CPU"}
    subprocess.run([sys.executable, "-c", IN_A_CHILD], check=True, timeout=15)
    assert shown() == {"stock": "they do not compile"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kernels": "stock"}'])
def test_an_outcome_that_makes_no_sense_changes_nothing(
    content: str, fresh: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "outcome").write_text(content)
    monkeypatch.setattr(plugin, "_facts", facts)
    monkeypatch.setenv(OUTCOME, str(tmp_path / "outcome"))
    plugin.register()
    assert shown() == {"sheaf": "CPU"}


def test_an_engine_without_a_parent_falls_back_by_itself(fresh: list[str]) -> None:
    fall_back("alone")
    assert shown() == {"stock": "alone"}
