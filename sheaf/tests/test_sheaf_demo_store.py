"""The demo's cache: a folder is whole or not there, whatever happened to its builders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sheaf.demo import store
from sheaf.demo.store import cache_dir, is_whole, provide


def build(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_bytes(b"12345")


def never(folder: Path) -> None:
    raise AssertionError("built again")


def test_what_is_whole_is_not_built_again(tmp_path: Path) -> None:
    folder = provide(tmp_path / "cache" / "a", build)
    assert (folder / "deep" / "weights").read_bytes() == b"12345"
    assert provide(folder, never) == folder


@pytest.mark.parametrize("harm", ["shorten", "remove", "inventory"])
def test_what_was_damaged_is_built_again(tmp_path: Path, harm: str) -> None:
    folder = provide(tmp_path / "a", build)
    weights, inventory = folder / "deep" / "weights", folder / store.INVENTORY
    if harm == "shorten":
        weights.write_bytes(b"1")
    elif harm == "remove":
        weights.unlink()
    else:
        inventory.write_text("[nonsense")
    assert not is_whole(folder)
    provide(folder, build)
    assert is_whole(folder)
    assert weights.read_bytes() == b"12345"


def test_a_builder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        provide(tmp_path / "a", fail)
    assert list(tmp_path.iterdir()) == []


def test_of_two_builders_at_once_one_wins_and_both_have_the_folder(tmp_path: Path) -> None:
    def meanwhile(folder: Path) -> None:
        provide(tmp_path / "a", build)
        build(folder)

    assert is_whole(provide(tmp_path / "a", meanwhile))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_dead_builder_left_is_removed_and_a_living_ones_work_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    dead = tmp_path / f"{store.PARTIAL}{gone.pid}-x"
    alive = tmp_path / f"{store.PARTIAL}{os.getppid()}-x"
    for folder in (dead, alive):
        folder.mkdir()
    provide(tmp_path / "a", build)
    assert not dead.exists()
    assert alive.exists()


def test_a_place_that_cannot_be_taken_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file stands here")
    with pytest.raises(OSError, match="a"):
        provide(tmp_path / "a", build)


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "sheaf" / "demo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_dir() == Path("/home/somebody/.cache/sheaf/demo")
