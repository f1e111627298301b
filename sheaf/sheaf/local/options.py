"""What `sheaf up` is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Manifests to serve, where to listen, where to keep state, and the file of API keys if there is one."""

    paths: Sequence[Path]
    host: str
    port: int
    state_dir: Path
    keys: Path | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return f"http://{self.address}"
