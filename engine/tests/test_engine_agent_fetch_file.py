"""file:// sources: inside the allowed roots, real files only, copied; and the bounds that hold for every fetch."""

# ruff: noqa: F811 - pytest hands fixtures in by the name of the argument

import os
import shutil
from pathlib import Path

import pytest
from engine_agent_web import (  # noqa: F401 - fixtures are found by name
    HOST,
    NAMES,
    Site,
    adapter,
    get,
    hub,
    local,
    outside,
    public_loopback,
    refused,
    tls,
    web,
)
from sheaf_crds.digest import directory_digest
from sheaf_engine.agent import transfer
from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.transfer import Budget, Outside


def test_a_folder_gives_its_two_files_and_nothing_else(tmp_path: Path, adapter: Path) -> None:
    (adapter / "README.md").write_text("hello")
    (adapter / "optimizer.pt").write_bytes(b"pickle")
    (adapter / ".hidden").write_text("x")
    assert get(f"file://{adapter}", tmp_path / "out", local(tmp_path)) == NAMES
    assert directory_digest(tmp_path / "out") == directory_digest(adapter)


def test_a_later_change_of_the_folder_does_not_reach_what_was_fetched(tmp_path: Path, adapter: Path) -> None:
    get(f"file://{adapter}", tmp_path / "out", local(tmp_path))
    (adapter / NAMES[1]).write_bytes(b"changed")
    assert (tmp_path / "out" / NAMES[1]).read_bytes() != b"changed"


@pytest.mark.parametrize("where", ["/etc", "/", "/proc/self", "/sources", "/sourcesX"])
def test_a_folder_outside_of_the_allowed_roots_is_refused(tmp_path: Path, adapter: Path, where: str) -> None:
    reason, message = refused(f"file://{where}", tmp_path / "out", local(tmp_path))
    assert reason is Reason.SOURCE_REFUSED
    assert "sources" in message
    assert refused(f"file://{adapter}", tmp_path / "out", Outside())[0] is Reason.SOURCE_REFUSED


def test_a_sibling_whose_name_begins_like_the_root_is_outside_of_it(tmp_path: Path, adapter: Path) -> None:
    twin = shutil.copytree(adapter, tmp_path / "sources-of-others" / "pirate")
    assert refused(f"file://{twin}", tmp_path / "out", local(tmp_path))[0] is Reason.SOURCE_REFUSED


def test_a_link_that_leads_out_of_the_root_is_refused(tmp_path: Path, adapter: Path) -> None:
    elsewhere = shutil.copytree(adapter, tmp_path / "elsewhere")
    (tmp_path / "sources" / "link").symlink_to(elsewhere)
    assert refused(f"file://{tmp_path}/sources/link", tmp_path / "out", local(tmp_path))[0] is Reason.SOURCE_REFUSED


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_a_link_is_refused(tmp_path: Path, adapter: Path, name: str) -> None:
    (adapter / name).rename(tmp_path / name)
    (adapter / name).symlink_to(tmp_path / name)
    reason, message = refused(f"file://{adapter}", tmp_path / "out", local(tmp_path))
    assert reason is Reason.NOT_A_REGULAR_FILE
    assert "symbolic link" in message


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_a_file_that_is_none_is_refused_without_waiting_for_it(tmp_path: Path, adapter: Path, make: object) -> None:
    (adapter / NAMES[0]).unlink()
    make(adapter / NAMES[0])  # type: ignore[operator]
    assert refused(f"file://{adapter}", tmp_path / "out", local(tmp_path))[0] is Reason.NOT_A_REGULAR_FILE


def test_a_folder_that_is_not_there_or_is_a_file_is_told_so(tmp_path: Path, adapter: Path) -> None:
    assert refused(f"file://{adapter}-gone", tmp_path / "o", local(tmp_path))[0] is Reason.SOURCE_NOT_FOUND
    assert refused(f"file://{adapter}/{NAMES[0]}", tmp_path / "o", local(tmp_path))[0] is Reason.SOURCE_NOT_FOUND


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "weights.pth", "a.pkl", "b.ckpt"])
def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path, adapter: Path, name: str) -> None:
    (adapter / NAMES[1]).unlink()
    (adapter / name).write_bytes(b"never read")
    (adapter / name).chmod(0)
    reason, message = refused(f"file://{adapter}", tmp_path / "out", local(tmp_path))
    assert reason is Reason.PICKLED_WEIGHTS
    assert name in message


def test_missing_files_are_named_with_what_is_there(tmp_path: Path, adapter: Path) -> None:
    (adapter / NAMES[0]).rename(adapter / "config.json")
    reason, message = refused(f"file://{adapter}", tmp_path / "out", local(tmp_path))
    assert reason is Reason.FILES_MISSING
    assert "adapter_config.json" in message
    assert "'config.json'" in message


def test_more_bytes_than_allowed_are_refused(tmp_path: Path, adapter: Path) -> None:
    assert refused(f"file://{adapter}", tmp_path / "o", local(tmp_path), limit=100)[0] is Reason.SIZE_LIMIT_EXCEEDED


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the kernel has no /dev/full")
def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    monkeypatch.setattr(transfer.os, "open", lambda *_: real("/dev/full", os.O_WRONLY))
    with pytest.raises(AdapterError, match="disk") as caught:
        transfer.write([b"x" * 10], tmp_path / "file", Budget.of(100, 5.0))
    assert caught.value.reason is Reason.DISK_FULL


def test_a_fetch_ends_when_its_time_is_over_or_the_agent_stops(tmp_path: Path) -> None:
    stopped = Budget.of(100, 5.0)
    stopped.stop.set()
    for budget in (Budget.of(100, -1.0), stopped):
        with pytest.raises(AdapterError) as caught:
            transfer.write([b"x"], tmp_path / str(id(budget)), budget)
        assert caught.value.reason is Reason.SOURCE_UNREACHABLE
