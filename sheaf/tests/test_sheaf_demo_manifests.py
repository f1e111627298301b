"""The demo's manifests and the examples: what a reader finds there is what Sheaf accepts."""

import re
from pathlib import Path

import pytest
from sheaf.demo.judge import STYLES
from sheaf.demo.manifests import TEMPLATES_DIR, render, write
from sheaf.demo.recipe import DemoError
from sheaf_crds import Adapter, KubeObject, Model
from sheaf_crds.digest import directory_digest
from sheaf_crds.manifests import ManifestFile, parse

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def read(files: dict[str, str]) -> list[KubeObject]:
    found = parse([ManifestFile(name, text.encode()) for name, text in files.items()])
    assert [str(problem) for problem in found.problems] == []
    return [located.item for located in found.located]


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    folders = {name: tmp_path / "with space" / name for name in STYLES}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(f'{{"name": "{name}"}}')
    return folders


@pytest.fixture
def rendered(tmp_path: Path, adapters: dict[str, Path]) -> dict[str, str]:
    return render(TEMPLATES_DIR, {"SMOLLM2": tmp_path / "a", "MINILM": tmp_path / "b"}, adapters)


def test_the_demo_serves_two_models_and_every_style(rendered: dict[str, str]) -> None:
    objects = read(rendered)
    models = {item.metadata.name: item.spec for item in objects if isinstance(item, Model)}
    assert {name: (spec.task, spec.replicas) for name, spec in models.items()} == {
        "smollm2": ("Generate", 2),
        "minilm": ("Embed", 1),
    }
    assert models["smollm2"].lora.slots >= len(STYLES)
    assert {item.metadata.name for item in objects if isinstance(item, Adapter)} == set(STYLES)


def test_every_adapter_is_pinned_to_what_was_trained(rendered: dict[str, str], adapters: dict[str, Path]) -> None:
    found = [item for item in read(rendered) if isinstance(item, Adapter)]
    for item in found:
        assert item.spec.digest == directory_digest(adapters[item.metadata.name])
        assert item.spec.source.endswith(f"/with%20space/{item.metadata.name}")


def test_no_placeholder_is_left(rendered: dict[str, str]) -> None:
    assert not any(re.search(r"^[^#]*\$\{", text, re.MULTILINE) for text in rendered.values())


def test_an_unknown_placeholder_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("source: file://${SMOLLM3}")
    with pytest.raises(DemoError, match=r"odd\.yaml: bad placeholder 'SMOLLM3'; known are SMOLLM2"):
        render(tmp_path, {"SMOLLM2": tmp_path}, {})


def test_a_missing_folder_of_templates_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="holds no manifests"):
        render(tmp_path / "nowhere", {}, {})


def test_what_was_edited_in_the_written_folder_is_put_back(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.yaml": "one", "b.yaml": "two"})
    (folder / "a.yaml").write_text("edited")
    (folder / "c.yaml").write_text("added")
    assert write(tmp_path, {"a.yaml": "one", "b.yaml": "two"}) == folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.yaml": "one", "b.yaml": "two"}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_applies_as_it_is_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text()
    assert read({path.name: text})
    assert text.startswith("# ")


def test_the_examples_can_all_be_applied_together() -> None:
    assert len(EXAMPLES) >= 6
    read({path.name: path.read_text() for path in EXAMPLES})
