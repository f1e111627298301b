"""The cluster as pytest fixtures.

``cluster``: the one that runs already in the default state folder (``make cluster``), or one that is started for this
session and ends with it, also when the session is killed. ``kubectl``: a kubectl in a namespace of the test's own.
``faults``: faults of the test's making, taken back after it. Where this machine cannot run a cluster the tests skip with
one line that says so; with ``CI`` set they fail.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from cluster.cluster import Cluster
from cluster.errors import Unsupported
from cluster.faults import Faults
from cluster.kubectl import Kubectl


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster of three nodes."""
    cluster = Cluster()
    ours = cluster.external is None and not cluster.running
    cluster.owned = ours
    start(cluster)
    try:
        yield cluster
    finally:
        if ours:
            cluster.down()


def start(cluster: Cluster) -> None:
    """Start it, or skip the test where this machine cannot run it; in CI that is a failure."""
    try:
        cluster.up()
    except Unsupported as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must run the cluster's tests: {error}")
        pytest.skip(str(error))


@pytest.fixture
def kubectl(cluster: Cluster) -> Iterator[Kubectl]:
    """kubectl in a new namespace, which goes with the test."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    yield cluster.kubectl.within(namespace)
    cluster.kubectl.delete("namespace", namespace, wait=False)


@pytest.fixture
def faults(cluster: Cluster) -> Iterator[Faults]:
    """Faults, all taken back after the test."""
    if cluster.external is not None:
        pytest.skip("faults need the cluster that this machine runs: unset SHEAF_E2E_KUBECONFIG")
    faults = Faults(cluster)
    yield faults
    faults.heal()
