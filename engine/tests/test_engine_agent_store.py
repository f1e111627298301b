"""The cache: complete entries only, bounded in bytes, what is in use stays."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from engine_agent_helpers import write_adapter, write_base
from sheaf_crds.agent_api import CatalogEntry
from sheaf_crds.digest import directory_digest
from sheaf_engine.agent import prepare
from sheaf_engine.agent.base_model import read_base_model
from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.plan import Files
from sheaf_engine.agent.prepare import Preparer
from sheaf_engine.agent.replacing import replace_file
from sheaf_engine.agent.store import Store
from sheaf_engine.agent.transfer import Outside


def preparer(tmp_path: Path, limit: int = 10**7) -> Preparer:
    base = read_base_model(write_base(tmp_path / "model"))
    store = Store(tmp_path / "cache", limit)
    return Preparer("base", store, base, Outside(file_roots=(tmp_path / "sources",)), 16, 5.0)


def declared(tmp_path: Path, name: str, **more: object) -> CatalogEntry:
    folder = tmp_path / "sources" / name
    if not folder.exists():
        write_adapter(folder, seed=sum(name.encode()))
    return CatalogEntry.model_validate({"name": name, "source": f"file://{folder}"} | more)


def held(found: Preparer, files: Files) -> bool:
    return found.store.hold(Path(files.path))


def size_of_one(tmp_path: Path) -> int:
    return sum(file.stat().st_size for file in write_adapter(tmp_path / "measure", seed=297).iterdir())


def test_an_entry_holds_exactly_what_was_checked(tmp_path: Path) -> None:
    wanted = declared(tmp_path, "a")
    found = preparer(tmp_path).prepare(wanted)
    assert directory_digest(Path(found.path)) == found.digest
    assert Path(found.path).name == found.digest.removeprefix("sha256:")
    assert (found.rank, found.size) == (4, sum(f.stat().st_size for f in Path(found.path).iterdir()))


def test_a_declared_digest_is_answered_by_the_cache_without_the_source(tmp_path: Path) -> None:
    wanted = declared(tmp_path, "a")
    first = preparer(tmp_path).prepare(wanted)
    shutil.rmtree(tmp_path / "sources")
    again = preparer(tmp_path).prepare(wanted.model_copy(update={"digest": first.digest}))
    assert again == first


def test_without_a_digest_a_changed_source_is_a_new_version(tmp_path: Path) -> None:
    wanted, found = declared(tmp_path, "a"), preparer(tmp_path)
    first = found.prepare(wanted)
    write_adapter(tmp_path / "sources" / "a", seed=99)
    assert found.prepare(wanted).digest != first.digest


def test_without_a_digest_an_unreachable_source_is_answered_by_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, found = declared(tmp_path, "a"), preparer(tmp_path)
    first = found.prepare(wanted)

    def away(*_: object) -> None:
        raise AdapterError(Reason.SOURCE_UNREACHABLE, "away")

    monkeypatch.setattr(prepare, "fetch", away)
    assert found.prepare(wanted) == first
    with pytest.raises(AdapterError, match="away"):
        found.prepare(wanted.model_copy(update={"source": "file:///other"}))
    with pytest.raises(AdapterError, match="not in the cache"):
        found.prepare(wanted.model_copy(update={"source": "file:///other"}), cached_only=True)


def test_a_cached_entry_that_was_tampered_with_is_fetched_again(tmp_path: Path) -> None:
    found = preparer(tmp_path)
    first = found.prepare(declared(tmp_path, "a"))
    (Path(first.path) / "adapter_model.safetensors").write_bytes(b"other weights")
    again = found.prepare(declared(tmp_path, "a", digest=first.digest))
    assert again == first
    assert directory_digest(Path(again.path)) == first.digest


def test_the_bound_in_bytes_lets_the_least_recently_used_go_first(tmp_path: Path) -> None:
    found = preparer(tmp_path, limit=size_of_one(tmp_path) * 5 // 2)
    first, second = found.prepare(declared(tmp_path, "a")), found.prepare(declared(tmp_path, "b"))
    os.utime(Path(first.path).with_suffix(".json"), (2_000_000_000, 2_000_000_000))
    found.prepare(declared(tmp_path, "c"))
    assert (Path(first.path).exists(), Path(second.path).exists()) == (True, False)
    assert found.store.used() <= found.store.limit


def test_what_is_held_is_never_evicted_also_by_another_agent(tmp_path: Path) -> None:
    found = preparer(tmp_path, limit=size_of_one(tmp_path) * 3 // 2)
    first = found.prepare(declared(tmp_path, "a"))
    assert held(found, first)
    for one in (found, preparer(tmp_path, limit=found.store.limit)):
        with pytest.raises(AdapterError, match="full of adapters in use") as caught:
            one.prepare(declared(tmp_path, "b"))
        assert caught.value.reason is Reason.DISK_FULL
    found.store.release(Path(first.path))
    found.prepare(declared(tmp_path, "b"))
    assert not Path(first.path).exists()
    assert not held(found, first)


def test_an_adapter_larger_than_the_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        preparer(tmp_path, limit=10).prepare(declared(tmp_path, "a"))
    assert caught.value.reason is Reason.SIZE_LIMIT_EXCEEDED


def test_half_downloads_of_a_crashed_agent_are_swept_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    store = Store(tmp_path, 100)
    (tmp_path / ".incoming" / "crashed").mkdir()
    with store.incoming("living") as folder:
        Store(tmp_path, 100)
        assert [path.name for path in (tmp_path / ".incoming").iterdir()] == [folder.name]
    assert list((tmp_path / ".incoming").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="cannot be written"):
        Store(tmp_path / "file" / "cache", 100)


def test_only_its_own_entries_belong_to_the_cache(tmp_path: Path) -> None:
    store = Store(tmp_path, 100)
    assert store.owns(tmp_path / "name" / "hex")
    for path in ("/etc/passwd", "relative/a", f"{tmp_path}/name", f"{tmp_path}/.incoming/x", f"{tmp_path}/a/b/c"):
        assert not store.owns(Path(path))


def test_the_same_content_installed_twice_at_once_is_one_entry(tmp_path: Path) -> None:
    wanted = declared(tmp_path, "a")
    found = [preparer(tmp_path) for _ in range(4)]
    results: list[Files] = []
    threads = [threading.Thread(target=lambda one=one: results.append(one.prepare(wanted))) for one in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert found[0].store.used() == results[0].size


def test_an_adapter_may_not_bear_the_models_name(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        preparer(tmp_path).prepare(declared(tmp_path, "base"))
    assert caught.value.reason is Reason.NAME_TAKEN


def test_a_file_is_replaced_as_a_whole_or_stays_and_no_draft_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_file(path, b"old")
    replace_file(path, b"new", 0o640)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o640)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "folder", b"content")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "folder"]
