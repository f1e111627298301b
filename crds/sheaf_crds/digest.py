"""The digest of an adapter: one sha256 over the two files that the engine reads.

For `adapter_config.json` and `adapter_model.safetensors`, in this order, one line `NAME SIZE SHA256\\n` is hashed.
Other files (a README, an optimizer state, checkpoints of the training) do not count, so that they may change.
"""

import hashlib
from pathlib import Path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def adapter_files(directory: Path) -> list[Path]:
    """Return the files that count, in the order in which they are hashed."""
    return [path for path in (directory / CONFIG_FILE, directory / WEIGHTS_FILE) if path.is_file()]


def directory_digest(directory: Path) -> str:
    """Return `sha256:HEX` of the adapter in that directory.

    Raises:
        FileNotFoundError: It holds neither of the two files.
    """
    files = adapter_files(directory)
    if not files:
        raise FileNotFoundError(f"{directory} holds neither {CONFIG_FILE} nor {WEIGHTS_FILE}")
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name} {path.stat().st_size} {content}\n".encode())
    return f"sha256:{total.hexdigest()}"
