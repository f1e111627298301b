"""What the end-to-end tests share: each engine of the contract starts once for all the contract's files.

Whatever Sheaf relies on in vLLM is checked in `test_e2e_engine_contract_*.py`, so that the emulator cannot drift, and a
new vLLM that changes it is noticed. Both engines serve the same random two-layer Llama with the same command line. They
live until the session ends, so the contract runs last: no other test shares the machine with an engine it does not use.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("contract_checks")

from cluster_fixture import cluster, faults, kubectl  # noqa: E402, F401
from contract_checks import FRESH, LOAD, UNLOAD  # noqa: E402
from contract_engines import ContractEngine, running  # noqa: E402
from tiny_models import tiny_adapter  # noqa: E402


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name.startswith("test_e2e_engine_contract_"))


def pytest_itemcollected(item: pytest.Item) -> None:
    named = item.path.name.startswith(("test_e2e_chart_", "test_e2e_cluster_"))
    if named or "cluster" in getattr(item, "fixturenames", ()):
        item.add_marker("cluster")


@pytest.fixture(scope="session", params=["emulator", "vllm"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContractEngine]:
    with running(request.param, tmp_path_factory.mktemp("engine") / "log") as engine:
        yield engine


@pytest.fixture
def adapter(engine: ContractEngine) -> Iterator[str]:
    name = f"adapter-{next(FRESH)}"
    response = engine.post(LOAD, {"lora_name": name, "lora_path": str(tiny_adapter(1))})
    assert response.status_code == 200, response.text
    yield name
    engine.post(UNLOAD, {"lora_name": name})
