"""Memory, GPUs and engines: two pods never count on the same, and what is lacking is told with the remedy."""

from pathlib import Path

import pytest
from sheaf.local import resources
from sheaf.local.resources import GIB, Machine, available_memory, needed_memory
from sheaf_crds import ModelSpec


def spec(**fields: object) -> ModelSpec:
    return ModelSpec.model_validate({"source": "hf://org/name", **fields})


@pytest.fixture
def ample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 5.0 * GIB)
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda _: object())


def test_an_engine_needs_its_weights_its_cache_and_itself(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(GIB)
    assert needed_memory(spec(), tmp_path) == pytest.approx(3.1 * GIB)
    env = [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "4"}]
    assert needed_memory(spec(engine={"env": env}), tmp_path) == pytest.approx(6.1 * GIB)
    assert needed_memory(spec(engine={"name": "emulator"}), tmp_path) == 0.0


@pytest.mark.usefixtures("ample")
def test_engines_that_start_together_do_not_count_on_the_same_memory(tmp_path: Path) -> None:
    machine = Machine(gpus=0)
    assert machine.claim("a", spec(), tmp_path) is None
    assert machine.claim("a", spec(), tmp_path) is None
    assert machine.claim("b", spec(), tmp_path) is None
    lack = machine.claim("c", spec(), tmp_path)
    assert lack is not None
    assert lack.reason == "InsufficientMemory"
    assert "it needs about 2.0 GiB of memory" in lack.message
    machine.started("a")
    assert machine.claim("c", spec(), tmp_path) is None
    machine.release("b")
    assert machine.promised.keys() == {"c"}


@pytest.mark.usefixtures("ample")
def test_gpus_are_shared_out_and_given_back(tmp_path: Path) -> None:
    machine = Machine(gpus=2)
    wanted = spec(accelerators=[{"type": "nvidia-l4", "count": 1}])
    assert machine.claim("a", wanted, tmp_path) is machine.claim("b", wanted, tmp_path) is None
    assert machine.environment("a") == {"CUDA_VISIBLE_DEVICES": "0"}
    assert machine.environment("b") == {"CUDA_VISIBLE_DEVICES": "1"}
    lack = machine.claim("c", wanted, tmp_path)
    assert lack is not None
    assert lack.message.startswith("it needs 1 GPUs, 0 of 2 are free")
    machine.release("a")
    assert machine.claim("c", wanted, tmp_path) is None
    assert machine.environment("c") == {"CUDA_VISIBLE_DEVICES": "0"}


def test_without_gpus_models_run_on_cpu() -> None:
    machine = Machine(gpus=0)
    assert not machine.uses_gpu(spec(accelerators=[{"type": "nvidia-l4"}]))
    assert machine.environment("a") == {}


def test_an_engine_that_is_not_installed_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda _: None)
    lack = Machine(gpus=0).claim("a", spec(), tmp_path)
    assert lack is not None
    assert lack.reason == "EngineNotInstalled"
    assert "make install" in lack.message
    assert Machine(gpus=0).claim("a", spec(engine={"name": "emulator"}), tmp_path) is None


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    4194304 kB\n")
    monkeypatch.setattr(resources, "MEMINFO", meminfo)
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    assert available_memory() == 4 * GIB
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert available_memory() == 2 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 4 * GIB
    monkeypatch.setattr(resources, "MEMINFO", tmp_path / "none")
    assert available_memory() == float("inf")
