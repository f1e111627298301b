"""The rules of the house that no linter knows."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("crds", "engine", "gateway", "operator", "sheaf")
LONGEST_FILE = 400


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def test_pythons_own_operator_module_is_not_shadowed_from_the_root() -> None:
    code = "import operator; operator.itemgetter; print(operator.__file__)"
    found = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not found.stdout.startswith(str(ROOT / "operator"))


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_top_folder_is_not_a_package_itself(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_test_files_have_unique_names() -> None:
    names = Counter(path.name for path in tracked("*test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_grows_past_its_room() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked("*.py")}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FILE} == {}


def test_nothing_binary_is_tracked() -> None:
    binary = [path for path in tracked("*") if b"\0" in path.read_bytes()[:8192]]
    assert binary == []
