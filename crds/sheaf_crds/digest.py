"""The digest of an adapter: one sha256 over the files that the engine reads.

For each file (`adapter_config.json` and every `*.safetensors`, by relative POSIX path in byte order) one line
`PATH SIZE SHA256\\n` is hashed. Other files (a README, an optimizer state) do not count, so that a model card may
change.
"""

import hashlib
from pathlib import Path

CONFIG_FILE = "adapter_config.json"


def adapter_files(directory: Path) -> list[Path]:
    """The files that count, in the order in which they are hashed."""
    weights = directory.rglob("*.safetensors")
    found = [path for path in (directory / CONFIG_FILE, *weights) if path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix().encode())


def directory_digest(directory: Path) -> str:
    """`sha256:HEX` of the adapter in that directory; raises FileNotFoundError where it has no such files."""
    files = adapter_files(directory)
    if not files:
        raise FileNotFoundError(f"{directory} holds neither {CONFIG_FILE} nor any *.safetensors file")
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(directory).as_posix()} {path.stat().st_size} {content}\n".encode())
    return f"sha256:{total.hexdigest()}"
