"""One installation for all tests of this folder, with one Model that serves throughout."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from cluster.cluster import Cluster

from resilience.fleet import Fleet, emulated, fleet
from resilience.logs import surprises


@pytest.fixture(scope="package")
def sheaf(cluster: Cluster) -> Iterator[Fleet]:
    """The chart installed; Model `good` has two replicas."""
    if cluster.external is not None:
        pytest.skip("faults need the cluster that this machine runs: unset SHEAF_E2E_KUBECONFIG")
    with fleet(cluster, f"resilience-{secrets.token_hex(3)}") as running:
        running.serve("good", emulated(replicas=2), timeout=120)
        yield running


@pytest.fixture(autouse=True)
def _nothing_surprises(sheaf: Fleet) -> Iterator[None]:
    """Whatever is done to it, neither operator nor gateway meets what it was not written for."""
    before = set(surprises(sheaf))
    yield
    assert [line for line in surprises(sheaf) if line not in before] == []
