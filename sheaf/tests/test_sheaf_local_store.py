"""Declared objects: identity is kept over edits, a broken file keeps what it declared, and problems name file and line."""

from pathlib import Path

import pytest
from sheaf.local.manifests import NoManifestsError, find_files, read_files, require_files, time_zone_problem
from sheaf.local.store import Store
from sheaf_crds import Adapter, Model, ModelStatus
from sheaf_operator.planning import UpdateStatus

MODEL = """
apiVersion: sheaf.dev/v1alpha1
kind: Model
metadata: {name: %s}
spec: {source: "hf://org/name", replicas: %d}
"""


def load(store: Store, folder: Path, now: float = 1000.0) -> tuple[str, ...]:
    reading = read_files(find_files([folder]))
    store.load(reading.files, now)
    return reading.problems


def test_an_object_keeps_its_identity_while_it_is_declared(tmp_path: Path) -> None:
    store, file = Store(), tmp_path / "a.yaml"
    file.write_text(MODEL % ("m", 1))
    assert load(store, tmp_path) == ()
    (first,) = store.of(Model)
    assert (first.metadata.generation, len(first.metadata.uid)) == (1, 36)
    file.write_text(MODEL % ("m", 2))
    load(store, tmp_path, now=2000.0)
    (second,) = store.of(Model)
    assert second.metadata.uid == first.metadata.uid
    assert second.metadata.creation_timestamp == first.metadata.creation_timestamp
    assert (second.metadata.generation, second.spec.replicas) == (2, 2)
    load(store, tmp_path)
    assert store.of(Model)[0].metadata.generation == 2
    file.unlink()
    load(store, tmp_path)
    file.write_text(MODEL % ("m", 2))
    load(store, tmp_path)
    assert store.of(Model)[0].metadata.uid != first.metadata.uid


def test_a_status_stays_with_the_object_that_it_was_computed_for(tmp_path: Path) -> None:
    store = Store()
    (tmp_path / "a.yaml").write_text(MODEL % ("m", 1))
    load(store, tmp_path)
    uid = store.of(Model)[0].metadata.uid
    status = ModelStatus(ready_replicas=1)
    assert store.update_status(UpdateStatus("Model", "m", uid, status, "why"))
    assert not store.update_status(UpdateStatus("Model", "m", "another", ModelStatus(), "why"))
    assert not store.update_status(UpdateStatus("Model", "k", uid, ModelStatus(), "why"))
    (tmp_path / "a.yaml").write_text(MODEL % ("m", 3))
    load(store, tmp_path)
    assert store.of(Model)[0].status == status


def test_a_file_that_breaks_keeps_what_it_declared_and_the_others_go_on(tmp_path: Path) -> None:
    store, file, other = Store(), tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_text(MODEL % ("m", 1) + "---" + MODEL % ("k", 1))
    other.write_text(MODEL % ("o", 1))
    load(store, tmp_path)
    file.write_text(MODEL % ("m", 7) + "---" + (MODEL % ("k", 1)).replace("replicas", "replcas"))
    other.write_text(MODEL % ("o", 2))
    problems = load(store, tmp_path)
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}:10: spec.replcas: ")
    assert {model.name: model.spec.replicas for model in store.of(Model)} == {"m": 7, "k": 1, "o": 2}
    file.write_text("{ nonsense")
    load(store, tmp_path)
    assert {model.name for model in store.of(Model)} == {"m", "k", "o"}
    file.write_text(MODEL % ("m", 7))
    load(store, tmp_path)
    assert {model.name for model in store.of(Model)} == {"m", "o"}


def test_of_an_object_declared_twice_the_first_counts_and_the_second_is_a_line(tmp_path: Path) -> None:
    store = Store()
    (tmp_path / "a.yaml").write_text(MODEL % ("m", 1))
    (tmp_path / "b.yaml").write_text(MODEL % ("m", 2))
    (problem,) = load(store, tmp_path)
    assert "b.yaml" in problem
    assert store.of(Model)[0].spec.replicas == 1
    assert store.of(Adapter) == ()


def test_sources_that_are_not_there_are_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text((MODEL % ("m", 1)).replace("hf://org/name", "file:///no/such/folder"))
    (problem,) = load(Store(), tmp_path)
    assert "spec.source: there is no folder /no/such/folder" in problem


def test_hidden_files_and_files_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml", "c.json", ".hidden.yaml", ".git/d.yaml", "notes.txt", "deep/e.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = {str(path.relative_to(tmp_path)) for path in find_files([tmp_path])}
    assert found == {"a.yaml", "b.yml", "c.json", "deep/e.yaml"}


def test_paths_without_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoManifestsError, match="no such file or folder"):
        require_files([tmp_path / "missing"])
    with pytest.raises(NoManifestsError, match="holds no manifest"):
        require_files([tmp_path])


def test_a_file_that_cannot_be_read_is_a_line_and_one_that_is_gone_is_nothing(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    reading = read_files([loop, tmp_path / "gone.yaml"])
    assert list(reading.files) == [loop]
    assert reading.problems[0].startswith(f"{loop}:1: (document): cannot be read: ")


def test_time_zones_are_those_of_this_machine() -> None:
    assert time_zone_problem("Europe/Berlin") == ""
    assert time_zone_problem("Europe/Nowhere") != ""
    assert time_zone_problem("../../etc/passwd") != ""
