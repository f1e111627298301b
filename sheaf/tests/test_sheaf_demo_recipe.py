"""The demo's recipe: texts that teach what is judged, and keys that change with what an asset is made from."""

from dataclasses import replace
from pathlib import Path

import pytest
from sheaf.demo import recipe
from sheaf.demo.judge import STYLES, styles_of
from sheaf.demo.recipe import TRAINING, DemoError, adapter_key, load_style, load_styles, model_key

ALL = load_styles()


def test_there_are_at_least_four_styles_and_each_can_be_judged() -> None:
    assert len(ALL) >= 4
    assert set(ALL) == set(STYLES)


@pytest.mark.parametrize("name", ALL)
def test_every_text_of_a_style_is_in_that_style_alone(name: str) -> None:
    assert {styles_of(turn.answer) for turn in ALL[name].dialogues} == {(name,)}


@pytest.mark.parametrize("name", ALL)
def test_the_questions_that_check_a_style_were_not_taught(name: str) -> None:
    assert not {turn.ask for turn in ALL[name].dialogues} & set(TRAINING.questions)


def test_a_changed_text_changes_the_key_of_its_own_adapter_only() -> None:
    pirate = ALL["pirate"]
    changed = pirate.model_copy(update={"dialogues": pirate.dialogues[1:]})
    keys = [adapter_key(style) for style in ALL.values()]
    assert len(set(keys)) == len(ALL)
    assert adapter_key(changed) not in keys
    assert adapter_key(pirate) == adapter_key(load_styles()["pirate"])


def test_changed_settings_change_the_key() -> None:
    assert adapter_key(ALL["json"]) != adapter_key(ALL["json"], replace(TRAINING, rank=4))


def test_another_library_version_changes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_key(), adapter_key(ALL["json"])
    monkeypatch.setattr(recipe, "installed", lambda _: "0.0.1")
    after = model_key(), adapter_key(ALL["json"])
    assert not set(before) & set(after)


def test_a_missing_library_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "LIBRARIES", ("sheaf-has-no-such-library",))
    with pytest.raises(DemoError, match="sheaf-has-no-such-library is not installed; run `make install`"):
        model_key()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("style: [", "cannot be read"),
        ("", "the file: "),
        ("style: Bad Name\ndialogues: [{ask: a, answer: b}]", "style: "),
        ("style: odd\ndialogues: []", "dialogues: "),
        ("style: odd\ndialogues: [{ask: a, anwser: b}]", "dialogues.0.answer: "),
        ("style: odd\ndialogues: [{ask: a, answer: 7}]", "dialogues.0.answer: "),
        ("#" * 70_000, "larger than 65536 bytes"),
    ],
)
def test_a_broken_style_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(DemoError) as caught:
        load_style(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


def test_a_style_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DemoError, match="cannot be read"):
        load_styles(tmp_path)
