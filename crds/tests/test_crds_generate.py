"""What is generated is what the repository holds, and a difference is shown and fails."""

import runpy
import sys
from pathlib import Path

import pytest
from sheaf_crds.generate import ROOT, differences, generated_files, main


def test_the_repository_holds_what_is_generated() -> None:
    assert list(differences(ROOT)) == []


def test_what_was_just_written_does_not_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    assert capsys.readouterr() == ("", "")


def test_a_difference_is_shown_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([], tmp_path)
    path = tmp_path / "crds/sheaf.dev_models.yaml"
    path.write_text(path.read_text().replace("scope: Namespaced", "scope: Cluster"))
    (tmp_path / "docs/api.md").unlink()
    assert main(["--check"], tmp_path) == 1
    shown = capsys.readouterr()
    assert "-  scope: Cluster\n+  scope: Namespaced\n" in shown.out
    assert "+# The API: `sheaf.dev/v1alpha1`" in shown.out
    assert "make generate" in shown.err


def test_it_runs_as_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "crds/sheaf_crds/generate.py"), run_name="__main__")
    assert ended.value.code == 0


def test_the_reference_has_every_field_and_every_rule() -> None:
    page = generated_files()["docs/api.md"]
    assert "| `spec.spot.onDemandFloor` | integer, from 0 to 10000 | `0` |" in page
    assert "| `spec.engine.env[].name` |" in page
    assert "minReplicas is above maxReplicas; lower minReplicas or raise maxReplicas" in page
