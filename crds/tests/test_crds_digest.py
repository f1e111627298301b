"""The digest of an adapter changes with its weights and its configuration, and with nothing else."""

from pathlib import Path

import pytest
from sheaf_crds.digest import directory_digest


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_the_digest_is_sha256_in_hexadecimal(adapter: Path) -> None:
    name, _, value = directory_digest(adapter).partition(":")
    assert (name, len(bytes.fromhex(value))) == ("sha256", 32)


@pytest.mark.parametrize("changed", ["adapter_config.json", "adapter_model.safetensors"])
def test_it_changes_with_what_the_engine_reads(adapter: Path, changed: str) -> None:
    before = directory_digest(adapter)
    (adapter / changed).write_bytes(b"other")
    assert directory_digest(adapter) != before


@pytest.mark.parametrize("beside", ["README.md", "checkpoint-10/adapter_model.safetensors"])
def test_what_lies_beside_the_adapter_does_not_change_it(adapter: Path, beside: str) -> None:
    before = directory_digest(adapter)
    (adapter / beside).parent.mkdir(exist_ok=True)
    (adapter / beside).write_text("# Pirate")
    assert directory_digest(adapter) == before


def test_a_directory_without_an_adapter_has_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        directory_digest(tmp_path)
