"""The live view shows what is declared, what runs, and what happened."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from sheaf.cli.view import View, requests_total
from sheaf.local.journal import Journal
from sheaf.local.manifests import read_files
from sheaf.local.options import Options
from sheaf.local.up import LocalSheaf
from sheaf_crds import Model
from sheaf_crds.model import ModelAutoscaling, ModelStatus
from sheaf_operator.planning import UpdateStatus

MANIFEST = """
apiVersion: sheaf.dev/v1alpha1
kind: Model
metadata: {name: base}
spec: {source: "hf://org/name", replicas: 2}
---
apiVersion: sheaf.dev/v1alpha1
kind: Adapter
metadata: {name: pirate-%d}
spec: {modelRef: {name: base}, source: "s3://bucket/pirate"}
"""


@pytest.fixture
def sheaf(tmp_path: Path) -> LocalSheaf:
    file = tmp_path / "a.yaml"
    file.write_text("---".join(MANIFEST % number for number in range(30)))
    sheaf = LocalSheaf(Options([file], "127.0.0.1", 8000, tmp_path / "state"), Journal(), lambda: None)
    sheaf.store.load(read_files([file]).files, 0.0)
    sheaf.journal.say("pod base-0", "engine exited with code 1: [bold]no memory", warning=True)
    return sheaf


def shown(sheaf: LocalSheaf) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(View(sheaf, console).draw())
    return console.export_text()


def test_everything_is_on_one_page(sheaf: LocalSheaf) -> None:
    text = shown(sheaf)
    assert "http://127.0.0.1:8000" in text
    assert "0/2" in text
    assert "pirate-0" in text
    assert "and 10 more" in text
    assert "[bold]no memory" in text


def test_replicas_are_counted_against_what_autoscaling_wants(sheaf: LocalSheaf) -> None:
    status = ModelStatus(ready_replicas=3, autoscaling=ModelAutoscaling(policy="steady", desired_replicas=5))
    uid = sheaf.store.of(Model)[0].metadata.uid
    assert sheaf.store.update_status(UpdateStatus("Model", "base", uid, status, "five are wanted"))
    assert "3/5" in shown(sheaf)


def test_requests_are_counted_over_all_labels() -> None:
    text = (
        "# TYPE sheaf_gateway_requests_total counter\n"
        'sheaf_gateway_requests_total{served="a"} 3\nsheaf_gateway_requests_total{served="b"} 4\n'
        "# TYPE other_total counter\nother_total 9\n"
    )
    assert requests_total(text) == 7.0
