"""The state directory: private, held by one `sheaf up`, and never left with half a file."""

import os
import stat
from pathlib import Path

import pytest
from sheaf.local.journal import Event, Journal
from sheaf.local.layout import Layout, LayoutError, default_state_dir, write_private


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_user_may_read_what_is_kept(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    with layout.open():
        assert [mode(path) for path in (layout.state, layout.logs, layout.sockets)] == [0o700] * 3
        assert mode(layout.token_file) == 0o600
        assert len(layout.token_file.read_text()) >= 32


def test_every_run_has_a_token_of_its_own(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    with layout.open():
        first = layout.token_file.read_text()
    with layout.open():
        assert layout.token_file.read_text() != first


def test_two_cannot_use_one_directory(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with Layout(state).open(), pytest.raises(LayoutError, match=r"another `sheaf up` uses .*--state-dir"):
        Layout(state).open().__enter__()
    with Layout(state).open():
        pass


def test_a_directory_that_cannot_be_made_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LayoutError, match=r"cannot use .*--state-dir"):
        Layout(tmp_path / "file" / "state").open().__enter__()


def test_socket_paths_fit_the_kernel_however_deep_the_directory(tmp_path: Path) -> None:
    layout = Layout(tmp_path / ("d" * 100))
    with layout.open():
        path = layout.socket("a-pod-with-a-long-name" * 5, "replay").removeprefix("ipc://")
        assert len(path) <= 107
        scratch = layout.sockets
        assert mode(scratch) == 0o700
    assert not scratch.exists()


def test_what_was_left_long_ago_is_forgotten(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    with layout.open():
        old, new = layout.log("old", "engine"), layout.log("new", "engine")
        (layout.adapters / "old-pod").mkdir()
        for path in (old, new):
            path.write_text("x")
        for path in (old, layout.adapters / "old-pod"):
            os.utime(path, (0, 0))
    with layout.open():
        assert not old.exists()
        assert not (layout.adapters / "old-pod").exists()
        assert new.exists()


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "fleet.json"
    write_private(target, "old")
    (tmp_path / f".fleet.json.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_private(target, "new")
    assert target.read_text() == "old"


def test_the_state_of_each_port_has_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_state_dir(8000) == Path("/somewhere/sheaf/8000")


def test_the_journal_says_nothing_twice_in_a_row_and_tells_of_recovery() -> None:
    said: list[Event] = []
    journal = Journal(said.append, clock=lambda: 0.0)
    for text in ("full", "full"):
        journal.say("disk", text, warning=True)
    journal.recovered("disk")
    journal.recovered("disk")
    journal.say("disk", "full", warning=True)
    assert [event.text for event in said] == ["full", "is well again", "full"]
    assert list(journal.recent) == said


def test_the_journals_memory_is_bounded() -> None:
    journal = Journal()
    for number in range(10_000):
        journal.say(f"subject {number}", "x")
    assert len(journal.recent) == 200
    assert len(journal._last) <= 4096
