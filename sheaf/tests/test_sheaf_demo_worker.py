"""The demo's worker: it makes what is missing and no more, tells how far it is, and says in one line why it cannot."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from sheaf.demo import __main__ as command
from sheaf.demo import worker
from sheaf.demo.assets import places
from sheaf.demo.judge import STYLES
from sheaf.demo.recipe import DemoError, Style
from sheaf.demo.store import provide

Advance = Callable[[float], None]


class Teacher:
    """Stands for the trainer, which needs torch and a model."""

    def __init__(self, base: Path, settings: object) -> None:
        assert (base / "weights").is_file()

    def teach(self, style: Style, folder: Path, advance: Advance) -> None:
        advance(0.25)
        if style.style == "lawyer":
            raise DemoError("the style lawyer did not take")
        (folder / "weights").write_text(style.style)


def convert(source: Path, gguf_file: str, target: Path) -> None:
    (target / "weights").write_text(gguf_file)


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sheaf.demo.training", SimpleNamespace(Trainer=Teacher))  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "sheaf.demo.conversion", SimpleNamespace(convert=convert))  # type: ignore[misc]
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path)])


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_stops_at_a_style_that_does_not_take_and_keeps_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert worker.main() == 1
    events = said(capsys)
    assert events[:2] == [{"stage": "convert smollm2", "fraction": 0.0}, {"stage": "convert smollm2", "fraction": 1.0}]
    assert {"stage": "train json", "fraction": 0.25} in events
    assert events[-1] == {"error": "the style lawyer did not take"}
    assert (places(tmp_path).adapters["json"] / "weights").read_text() == "json"
    assert not places(tmp_path).adapters["lawyer"].exists()


def test_it_makes_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = places(tmp_path)
    for folder in (where.smollm2, *(where.adapters[name] for name in STYLES if name != "pirate")):
        provide(folder, lambda scratch: (scratch / "weights").touch())
    assert worker.main() == 0
    assert {event["stage"] for event in said(capsys)} == {"load smollm2", "train pirate"}
    assert worker.main() == 0
    assert said(capsys) == []


def test_a_disk_that_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").write_text("a file stands here")
    assert worker.main() == 1
    assert "choose another cache with XDG_CACHE_HOME" in str(said(capsys)[-1]["error"])


def test_the_command_line_reaches_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "run", lambda *given, keep: 7 if (given, keep) == (("h:1", tmp_path), True) else 0)
    monkeypatch.setattr(sys, "argv", ["demo", "--keep", "--listen", "h:1", "--cache-dir", str(tmp_path)])
    assert command.main() == 7
