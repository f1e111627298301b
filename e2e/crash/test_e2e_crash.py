"""Killed before and after each write of each workload, the operator's successor brings everything to the same end.

Against a real API server: etcd's own optimistic locking, UID preconditions, server-side apply and validation. The pods
are pretended, so that a run takes seconds. `SHEAF_CRASH_STRIDE=5` tries every fifth write only. How many writes a run
makes differs a little, with the statuses that fall together; one that ends before its turn to die counts as a run without
a crash, of which there may be few.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from sweep import Run, run
from workloads import WORKLOADS, Workload

AT_ONCE = 4
DIED = 0.6
CRDS = Path(__file__).resolve().parents[2] / "crds"
STRIDE = int(os.environ.get("SHEAF_CRASH_STRIDE", "1"))


@pytest.fixture(scope="module", autouse=True)
def _kinds(cluster: Any) -> None:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename", CRDS)
    cluster.kubectl(
        "wait", "--for=condition=Established", "crd", "models.sheaf.dev", "adapters.sheaf.dev", "slos.sheaf.dev"
    )


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
async def test_every_crash_ends_like_no_crash(workload: Workload, cluster: Any, tmp_path: Path) -> None:
    kubeconfig = Path(cluster.kubectl.kubeconfig)
    whole = await run(workload, kubeconfig, tmp_path / "whole", None, 0, "before")
    print(f"\n{workload.name}: {len(whole.writes)} writes: {whole.writes}")
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(at: int, when: str) -> Run:
        async with gate:
            try:
                return await run(workload, kubeconfig, tmp_path / f"{at}-{when}", whole.state, at, when)
            except (AssertionError, TimeoutError) as error:
                raise AssertionError(
                    f"{workload.name}, killed {when} write {at} ({whole.writes[at - 1]}): {error}"
                ) from error

    points = [(at, when) for at in range(1, len(whole.writes) + 1, STRIDE) for when in ("before", "after")]
    runs = await asyncio.gather(*(one(at, when) for at, when in points), return_exceptions=True)
    wrong = [str(error) for error in runs if isinstance(error, BaseException)]
    assert not wrong, f"{len(wrong)} of {len(points)} runs went wrong\n" + "\n\n".join(wrong[:5])
    good = [one for one in runs if isinstance(one, Run)]
    assert sum(one.died for one in good) >= len(points) * DIED, "the operator hardly ever died"
    assert max(one.most_pods for one in good) <= whole.most_pods + 1, "pods were made twice"
    print(f"{workload.name}: {len(points)} crashes, all end alike")
