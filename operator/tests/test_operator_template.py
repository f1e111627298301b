"""Templates: what a version makes of a Model and of settings has the name that the versions before gave it.

These values change only where pods have to be made anew. Whoever changes one rolls every pod of every installation at
the upgrade, and says so in the changelog.
"""

import pytest
from operator_manifests import GPUS, make_settings
from operator_world import make_model
from sheaf_operator.planning.template import template_hash

FULL = {
    "source": "s3://bucket/prefix",
    "task": "Generate",
    "engine": {"name": "vllm", "args": ["--max-model-len=2048"], "env": [{"name": "A", "value": "b"}]},
    "accelerators": [{"type": "nvidia-l4", "count": 4}],
    "lora": {"slots": 4, "maxRank": 64},
}


@pytest.mark.parametrize(
    ("spec", "settings_digest", "spot", "expected"),
    [
        ({}, "", False, "ed4d203d"),
        (FULL, "", False, "22aa8d57"),
        (FULL, "digest", True, "4b618ff3"),
    ],
)
def test_an_upgrade_rolls_no_pod(spec, settings_digest, spot, expected):
    assert template_hash(make_model(**spec), settings_digest, spot=spot) == expected


def test_an_upgrade_changes_no_digest_of_settings():
    plain, full = make_settings(), make_settings(accelerators=GPUS, hostPaths=["/mnt/models"], sharedMemory="3Gi")
    assert (plain.digest, full.digest) == (
        "f8c63bc3dcc2dd24c4cbf75dc7fad3fafb8c6494784fd232afc01c9cc52f60bc",
        "4661962337bd7213b8e40af9673d60557100b2a095b7259bb629424e1fde0133",
    )
