"""One installation for all tests of this folder, with one Model that serves throughout."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from cluster.cluster import Cluster

from resilience.fleet import Fleet, emulated, fleet


@pytest.fixture(scope="package")
def sheaf(cluster: Cluster) -> Iterator[Fleet]:
    """The chart installed; Model `good` has two replicas."""
    if cluster.external is not None:
        pytest.skip("faults need the cluster that this machine runs: unset SHEAF_E2E_KUBECONFIG")
    with fleet(cluster, f"resilience-{secrets.token_hex(3)}") as running:
        running.serve("good", emulated(replicas=2), timeout=120)
        yield running
